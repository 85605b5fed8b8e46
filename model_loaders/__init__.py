"""From a file on disk to a network: family detection, key maps and configs."""
