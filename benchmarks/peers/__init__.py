"""Plain eager compositions of the same networks, written from the descriptions of the released models."""
