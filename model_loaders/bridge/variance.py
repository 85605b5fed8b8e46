"""The variance that a network predicts behind its noise, which ComfyUI's samplers have no place for."""

from collections.abc import Callable

from torch import Tensor

from .compat import patcher_extension

_KEY = "weft_variance"


def with_recorded_variance(model: object) -> tuple[object, Callable[[], Tensor | None]]:
    """A clone of a MODEL, and what it predicted for the positive text in its latest call: (B, C, T, H, W), or None."""
    latest: list[Tensor] = []

    def record(
        executor: Callable[..., Tensor],
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None,
        control: object,
        options: dict[str, list[int]],
        **given: object,
    ) -> Tensor:
        out = executor(x, timesteps, context, control, options, **given)
        colours = model.model.latent_format.latent_channels  # type: ignore[attr-defined]
        branches = options["cond_or_uncond"]
        for branch, rows in zip(branches, out.chunk(len(branches)), strict=True):
            if branch == 0 and out.shape[1] > colours:
                latest[:] = [rows[:, colours:].float()]
        return out

    patched = model.clone()  # type: ignore[attr-defined]
    patched.add_wrapper_with_key(patcher_extension.WrappersMP.DIFFUSION_MODEL, _KEY, record)
    return patched, lambda: latest[0] if latest else None
