"""Windows of clips around what is not background.

Shapes: B clips, T frames, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed import gathered, own


def crop_to_foreground(video: Tensor, size: int) -> Tensor:
    """A random window of every clip (B, 3, T, H, W) -> (B, 3, T, size, size).

    Its centre is drawn among the pixels of the middle frame in proportion to their distance from that frame's median
    colour, and moved so that the window lies inside. It uses torch's random state.
    """
    height, width = video.shape[-2:]
    middle = video[:, :, video.shape[2] // 2]
    median = middle.flatten(2).median(dim=2).values
    distance = (middle - median[:, :, None, None]).abs().sum(1) + 1e-3
    centres = own(torch.multinomial(gathered(distance.flatten(1)), 1))[:, 0].tolist()
    windows = []
    for clip, centre in zip(video, centres, strict=True):
        top = min(max(centre // width - size // 2, 0), height - size)
        left = min(max(centre % width - size // 2, 0), width - size)
        windows.append(clip[:, :, top : top + size, left : left + size])
    return torch.stack(windows)
