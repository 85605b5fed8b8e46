"""A stock ControlNet on some frames of a video whose frames lie in the batch.

Shapes: R rows of a call: the frames of all videos and guidance branches; F frames of a video.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .compat import controlnet


class ControlNetOnFrames(controlnet.ControlBase):
    """Runs another control object on chosen frames alone, each with its own hint; the others stay free.

    Under context windows every window gets the hints of its own frames.
    """

    def __init__(self, inner: object, frames: Sequence[int], clip: int) -> None:
        super().__init__()
        self.inner, self.frames, self.clip = inner, tuple(frames), clip

    def set_cond_hint(self, cond_hint: Tensor, *args: object, **kwargs: object) -> object:
        """Hints (frames, C, H, W) in the order of the chosen frames, or one for all of them.

        Raises:
            ValueError: another number of hints.
        """
        if len(cond_hint) not in (1, len(self.frames)):
            raise ValueError(
                f"There are {len(cond_hint)} hints for {len(self.frames)} chosen frames {list(self.frames)}: give one "
                "image for each of them, or a single one for all."
            )
        self.inner.set_cond_hint(cond_hint, *args, **kwargs)  # type: ignore[attr-defined]
        super().set_cond_hint(cond_hint, *args, **kwargs)
        self.strength = 1.0  # the inner object applies it
        return self

    def copy(self) -> "ControlNetOnFrames":
        """For the Apply nodes, which change a copy."""
        twin = ControlNetOnFrames(self.inner.copy(), self.frames, self.clip)  # type: ignore[attr-defined]
        self.copy_to(twin)
        return twin

    def pre_run(self, model: object, percent_to_timestep_function: Callable[[float], float]) -> None:
        """Before sampling."""
        super().pre_run(model, percent_to_timestep_function)
        self.inner.pre_run(model, percent_to_timestep_function)  # type: ignore[attr-defined]

    def cleanup(self) -> None:
        """After sampling."""
        super().cleanup()
        self.inner.cleanup()  # type: ignore[attr-defined]
        self.inner.cond_hint_original = self.cond_hint_original  # type: ignore[attr-defined]

    def get_models(self) -> list[object]:
        """What has to be on the device."""
        return [*super().get_models(), *self.inner.get_models()]  # type: ignore[attr-defined]

    def inference_memory_requirements(self, dtype: torch.dtype) -> float:
        """Bytes."""
        inner = self.inner.inference_memory_requirements(dtype)  # type: ignore[attr-defined]
        return super().inference_memory_requirements(dtype) + inner  # type: ignore[no-any-return]

    def get_control(
        self, x_noisy: Tensor, t: Tensor, cond: dict[str, object], batched_number: int, transformer_options: dict
    ) -> object:
        """What the inner object adds to the chosen frames' rows, and zeros in the others."""
        before = None
        if self.previous_controlnet is not None:
            before = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        rows, hints = self._chosen(len(x_noisy), batched_number, transformer_options)
        if not rows:
            return before
        at = torch.tensor(rows, device=x_noisy.device)
        original = self.cond_hint_original
        self.inner.cond_hint_original = original if len(original) == 1 else original[hints]  # type: ignore[attr-defined]
        self.inner.cond_hint = None  # type: ignore[attr-defined]
        chosen = {
            name: value[at.to(value.device)] if isinstance(value, Tensor) and len(value) == len(x_noisy) else value
            for name, value in cond.items()
        }
        # One branch: the hints are already those of every row.
        control = self.inner.get_control(x_noisy[at], t[at], chosen, 1, transformer_options)  # type: ignore[attr-defined]
        if control is None:
            return before
        full = {key: [_spread(part, at, len(x_noisy)) for part in parts] for key, parts in control.items()}
        return self.control_merge(full, before, None)

    def _chosen(self, rows: int, branches: int, options: dict) -> tuple[list[int], list[int]]:
        """Rows of the chosen frames, and which hint each of them gets.

        Raises:
            ValueError: a chosen frame that the video does not have.
        """
        window = options.get("context_window")
        per_branch = rows // branches
        if window is None:
            clip = self.clip or per_branch
            shown = list(range(clip)) * (per_branch // clip)
            total = clip
        else:
            anchor = getattr(window, "causal_anchor_index", None)
            shown = [*([anchor] if anchor is not None and anchor >= 0 else []), *window.index_list]
            total = window.total_frames
        missing = [frame for frame in self.frames if frame >= total]
        if missing:
            raise ValueError(
                f"Frame {missing[0]} was chosen for the ControlNet, the video has frames 0 to {total - 1}."
            )
        hint_of = {frame: index for index, frame in enumerate(self.frames)}
        pairs = [
            (branch * per_branch + place, hint_of[frame])
            for branch in range(branches)
            for place, frame in enumerate(shown)
            if frame in hint_of
        ]
        return [row for row, _ in pairs], [hint for _, hint in pairs]


def _spread(part: Tensor | None, at: Tensor, rows: int) -> Tensor | None:
    if part is None:
        return None
    full = part.new_zeros(rows, *part.shape[1:])
    full[at.to(part.device)] = part
    return full


def control_on_frames(control_net: object, frames: str, clip: int) -> ControlNetOnFrames:
    """A ControlNet for chosen frames.

    Args:
        control_net: any of the core's.
        frames: their numbers, separated by commas.
        clip: frames of a video; 0: the whole batch is one.

    Raises:
        ValueError: no numbers, one twice, or a negative one.
    """
    numbers = []
    for part in frames.replace("\n", ",").split(","):
        if not part.strip():
            continue
        if not part.strip().isdigit():
            raise ValueError(f"Found '{part.strip()}' among the frames, expected numbers from 0, such as '0, 23'.")
        numbers.append(int(part))
    if not numbers:
        raise ValueError("No frame was chosen: type their numbers, such as '0, 23'.")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"Found a frame twice among {numbers}: each can have one hint.")
    return ControlNetOnFrames(control_net.copy(), numbers, clip)  # type: ignore[attr-defined]
