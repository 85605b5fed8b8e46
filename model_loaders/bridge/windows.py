"""The windows of a long video: sampled in their order under one progress bar, kept on disk as they come.

Shapes: B videos, C channels, T latents of a window, L of the video, H, W latent size.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.sampling import long_video
from ...kernels.sampling.long_video import Window
from .runs import Progress
from .segments import Segments

SampleWindow = Callable[[int, Window, Tensor, Progress], Tensor]
"""Number of a window, the window, its latents (B, C, T, H, W) with the given ones in their places, the bar that steps
are counted on -> the sample."""


def walked(plan: list[Window], video: Tensor, sample: SampleWindow, steps: int, segments: Segments | None) -> Tensor:
    """The video with what the windows of a plan make; those that are on disk are read instead.

    Args:
        plan: of the windows.
        video: (B, C, L, H, W), as long as the plan needs, with the known latents in their places; it is filled.
        sample: makes a window; what it returns in places of given latents is not used.
        steps: of every window.
        segments: where finished windows are kept; None keeps none.

    Raises:
        OSError: a window could not be written, as on a full disk; those before it are kept.
    """
    finished = segments.finished()[: len(plan)] if segments else []
    progress = Progress(steps * len(plan))

    def window_sample(number: int, window: Window, latents: Tensor) -> Tensor:
        progress.reach(number * steps)
        if number < len(finished):
            return latents.index_copy(2, torch.tensor(window.made), finished[number]["samples"].to(latents))
        made = sample(number, window, latents, progress).to(latents)
        if segments:
            segments.add({"samples": made[:, :, list(window.made)]})
        return made

    for _ in long_video.walk(plan, video, window_sample):
        pass
    progress.reach(steps * len(plan))
    return video
