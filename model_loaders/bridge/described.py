"""What all MODEL objects of this pack share: the checkpoint they were made of, and what is refused."""

from torch import Tensor

from ...kernels.sampling.schedules import NoiseSchedule
from ..bundle import DESCRIPTION, describe, description_tensor
from ..checkpoint import MODEL, Checkpoint
from .compat import model_base
from .sampling import BETA_SCHEDULES


class DescribedModel(model_base.BaseModel):
    """A diffusion model that knows its file's description."""

    checkpoint: Checkpoint

    def check_text(self, text: Tensor, width: int) -> None:
        """Refuse text of another width.

        Raises:
            ValueError: it comes from the text encoder of another model.
        """
        if text.shape[-1] != width:
            raise ValueError(
                f"The text has width {text.shape[-1]}, this model was made for {width}: encode the prompt with the "
                f"CLIP that belongs to {self.checkpoint.name}."
            )

    def state_dict_for_saving(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        """What the stock save nodes write, with the description that the loaders need beside the weights."""
        tensors = super().state_dict_for_saving(*args, **kwargs)
        tensors[DESCRIPTION] = description_tensor(describe(self.checkpoint, [MODEL]))
        return tensors


def prediction_of(schedule: NoiseSchedule) -> model_base.ModelType:
    """ComfyUI's name for what the network predicts."""
    kinds = {"noise": model_base.ModelType.EPS, "velocity": model_base.ModelType.V_PREDICTION}
    return kinds[schedule.prediction]


def sampling_settings(schedule: NoiseSchedule) -> dict[str, object]:
    """A schedule as ComfyUI's model configurations describe it."""
    return {
        "beta_schedule": BETA_SCHEDULES[schedule.spacing],
        "linear_start": schedule.linear_start,
        "linear_end": schedule.linear_end,
        "timesteps": schedule.steps,
        "zsnr": schedule.zero_terminal_snr,
    }
