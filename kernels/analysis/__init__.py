"""Measuring videos."""
