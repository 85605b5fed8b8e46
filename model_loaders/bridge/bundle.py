"""All native objects of one file."""

from ..checkpoint import MODEL, VAE, ReadOptions, read
from .model import LoadOptions, load_model, make_model
from .operations import torch_dtype_of
from .text import make_clip
from .vae import make_vae


def load_checkpoint(path: str, options: ReadOptions, dtype: str) -> tuple[object, object, object]:
    """MODEL, CLIP and VAE of a file that is read once.

    Raises:
        CheckpointError: the file has no denoiser or no VAE, or does not fit.
    """
    checkpoint = read(path, options)
    checkpoint.component(MODEL)
    if not checkpoint.latent.pixels:
        checkpoint.component(VAE)
    weights = torch_dtype_of(dtype)
    model = make_model(checkpoint, weights)
    model.cached_patcher_init = (load_model, (path, LoadOptions(options, weights)))
    return model, make_clip(checkpoint), make_vae(checkpoint)
