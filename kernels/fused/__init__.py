"""Fast paths for memory-bound operations, each beside the plain torch version that defines it."""
