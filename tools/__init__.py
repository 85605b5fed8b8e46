"""What dev.py is made of: set-up, server and demo, in the standard library."""
