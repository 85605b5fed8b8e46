"""Networks that others trained and papers compare videos with: I3D, Inception, CLIP; their weights are the user's.

Shapes: N clips or frames, T frames, H, W pixels, D features, K classes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..kernels.networks.inception3d import preprocess
from ..model_loaders.errors import CheckpointError
from ..model_loaders.files import read_tensors
from ..model_loaders.inception3d import read_inception3d
from .settings import InputError

BATCH = 16
"""Frames that are looked at together; clips one by one."""


class ClipNetwork:
    """I3D, for FVD and KVD."""

    def __init__(self, path: Path, device: torch.device) -> None:
        """Raises CheckpointError for an unusable file."""
        self.network, self.device = read_inception3d(path).to(device), device

    @torch.no_grad()
    def __call__(self, clip: np.ndarray) -> Tensor:
        """Frames uint8 (T, H, W, 3) -> features (D,)."""
        features: Tensor = self.network(preprocess(torch.from_numpy(clip)[None].to(self.device)))[0]
        return features.cpu()


class FrameNetwork:
    """FID's Inception, as its authors released it for TensorFlow, in the port of torch-fidelity."""

    def __init__(self, path: Path, device: torch.device) -> None:
        """Raises CheckpointError for an unusable file, InputError where the package is missing."""
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise InputError("FID needs the package torch-fidelity: pip install torch-fidelity") from error
        tensors, _ = read_tensors(path)
        # The package reads any pickle, code included: it is given only what was read without running any.
        with tempfile.TemporaryDirectory() as folder:
            safe = Path(folder) / "inception.pth"
            torch.save(tensors, safe)
            try:
                network = FeatureExtractorInceptionV3(
                    "inception-v3-compat", ["2048", "logits"], feature_extractor_weights_path=str(safe)
                )
            except RuntimeError as error:
                raise CheckpointError(
                    f"{path.name} does not fit FID's Inception: choose weights-inception-2015-12-05-6726825d.pth of "
                    f"torch-fidelity; {str(error).splitlines()[-1].strip()[:200]}"
                ) from error
        self.network, self.device = network.eval().to(device), device

    @torch.no_grad()
    def __call__(self, frames: np.ndarray) -> tuple[Tensor, Tensor]:
        """Frames uint8 (N, H, W, 3) -> features (N, D), logits (N, K)."""
        parts = [self.network(part.to(self.device)) for part in _pictures(frames)]
        features, logits = (torch.cat(group).cpu() for group in zip(*parts, strict=True))
        return features, logits


class CaptionNetwork:
    """CLIP, for CLIPSIM and frame consistency; papers use ViT-B/32."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Raises InputError for anything but a folder as transformers saves a CLIP model, processor included."""
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPTokenizer

        needed = ("config.json", "preprocessor_config.json", "tokenizer_config.json")
        missing = [name for name in needed if not (folder / name).is_file()]
        if missing:
            raise InputError(
                f"{folder}: no {', '.join(missing)}; expected a folder of a CLIP model as transformers saves it, such "
                "as that of openai/clip-vit-base-patch32"
            )
        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            self.processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
            model = CLIPModel.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise InputError(f"{folder}: cannot be read as a CLIP model: {str(error).splitlines()[0]}") from error
        self.model, self.device = model.eval().requires_grad_(False).to(device), device
        text = model.config.text_config
        assert isinstance(text, CLIPTextConfig)
        self.length: int = text.max_position_embeddings

    @torch.no_grad()
    def frames(self, frames: np.ndarray) -> Tensor:
        """Frames uint8 (N, H, W, 3) -> features (N, D)."""
        parts = []
        for part in _pictures(frames):
            pixels = self.processor(images=list(part), return_tensors="pt")["pixel_values"].to(self.device)
            parts.append(self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output))
        return torch.cat(parts).cpu()

    @torch.no_grad()
    def caption(self, text: str) -> Tensor:
        """A caption, cut to CLIP's length, as features (D,)."""
        words = self.tokenizer([text], truncation=True, max_length=self.length, return_tensors="pt").to(self.device)
        features: Tensor = self.model.text_projection(self.model.text_model(**words).pooler_output)[0]
        return features.cpu()


def _pictures(frames: np.ndarray) -> list[Tensor]:
    """uint8 (N, H, W, 3) as batches (N', 3, H, W)."""
    return list(torch.from_numpy(frames).movedim(-1, 1).contiguous().split(BATCH))
