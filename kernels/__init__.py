"""The papers in native torch."""
