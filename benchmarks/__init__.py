"""Speed and memory next to peers."""
