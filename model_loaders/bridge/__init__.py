"""The only code that borrows ComfyUI internals."""
