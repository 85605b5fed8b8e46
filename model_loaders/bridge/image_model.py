"""Image models in Stable Diffusion 1's layout, at any size: ComfyUI's own network, described by our files."""

import torch
from torch import Tensor

from ..checkpoint import MODEL, Checkpoint
from ..errors import CheckpointError
from ..image_unet import ImageUNetConfig
from .compat import supported_models, supported_models_base
from .described import DescribedModel, prediction_of, sampling_settings
from .latent import DescribedLatentFormat


class ImageModel(DescribedModel):
    """Stable Diffusion on 4D latents of pictures."""

    def __init__(self, config: "ImageModelConfig", device: torch.device | None = None) -> None:
        super().__init__(config, prediction_of(config.checkpoint.schedule), device=device)
        self.checkpoint = config.checkpoint

    def extra_conds(self, **kwargs: object) -> dict[str, object]:
        """Those of the core; refuses latents and text that the network cannot take.

        Raises:
            ValueError: a latent of a video or of another model, or text of another width.
        """
        noise, channels = kwargs["noise"], self.latent_format.latent_channels
        if noise.ndim != 4 or noise.shape[1] != channels:
            raise ValueError(
                f"{self.checkpoint.name} makes pictures and needs a latent (batch, {channels}, height, width), found "
                f"{tuple(noise.shape)}: use Empty Latent Image, or encode with the VAE that belongs to the model."
            )
        if kwargs.get("cross_attn") is not None:
            self.check_text(kwargs["cross_attn"], self.model_config.unet_config["context_dim"])
        return super().extra_conds(**kwargs)


class ImageModelConfig(supported_models.SD15):
    """ComfyUI's view of such a checkpoint: Stable Diffusion 1.5 in other widths."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        sizes = checkpoint.component(MODEL).config
        if not isinstance(sizes, ImageUNetConfig):
            raise CheckpointError(f"{checkpoint.name}: its denoiser is one of ComfyUI's, use the core loader.")
        self.latent_format = lambda: DescribedLatentFormat(checkpoint.latent)
        self.unet_extra_config = {"num_heads": sizes.heads, "num_head_channels": -1}
        super().__init__(_unet_config(sizes))
        self.checkpoint = checkpoint.without_weights()
        self.sampling_settings = sampling_settings(checkpoint.schedule)

    def inpaint_model(self) -> bool:
        """Never: channels are those of the latent, however many."""
        return False

    def process_clip_state_dict_for_saving(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Under the core's prefix, as for every encoder that is not CLIP-L."""
        return supported_models_base.BASE.process_clip_state_dict_for_saving(self, state_dict)

    def get_model(
        self, state_dict: dict[str, Tensor], prefix: str = "", device: torch.device | None = None
    ) -> ImageModel:
        """The model without its weights."""
        return ImageModel(self, device)


def _unet_config(sizes: ImageUNetConfig) -> dict[str, object]:
    """Arguments of ComfyUI's UNetModel, with all that it would detect in a file."""
    blocks = sizes.num_res_blocks
    return {
        "image_size": 32,
        "in_channels": sizes.in_channels,
        "out_channels": sizes.out_channels,
        "model_channels": sizes.model_channels,
        "num_res_blocks": [blocks] * len(sizes.channel_mult),
        "channel_mult": list(sizes.channel_mult),
        "transformer_depth": [int(attend) for attend in sizes.attends for _ in range(blocks)],
        "transformer_depth_output": [int(attend) for attend in sizes.attends for _ in range(blocks + 1)],
        "transformer_depth_middle": 1,
        "context_dim": sizes.context_width,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "use_temporal_attention": False,
        "adm_in_channels": None,
        "legacy": False,
    }
