"""Training data: the procedural Moving Shapes set, its tracker, and video files."""
