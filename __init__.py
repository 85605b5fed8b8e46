"""Weft: text-to-video systems as native ComfyUI models and nodes."""

WEB_DIRECTORY = "./web"

# A test runner imports this file bare, without a parent package.
if __package__:
    try:
        import comfy_api.v0_0_2  # noqa: F401
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("comfy_api"):
            raise
    else:
        from .nodes import comfy_entrypoint  # noqa: F401
