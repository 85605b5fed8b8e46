"""The error of everything that reads model files."""


class CheckpointError(ValueError):
    """A model file cannot be used; the message names the file, what was found, what was expected and what to do."""
