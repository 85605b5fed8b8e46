"""The trainer and its evaluation, independent of ComfyUI."""
