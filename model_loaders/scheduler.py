"""Noise schedules as folders in diffusers' layout describe them."""

import json
from typing import Literal

from ..kernels.sampling.schedules import NoiseSchedule
from .errors import CheckpointError

PREDICTIONS: dict[str, Literal["noise", "velocity"]] = {"epsilon": "noise", "v_prediction": "velocity"}


def read_schedule(name: str, configuration: str | None, default: NoiseSchedule) -> NoiseSchedule:
    """The noise schedule of the scheduler's configuration in a folder; without one the default.

    Raises:
        CheckpointError: it cannot be read, or says what no model of these systems has.
    """
    if configuration is None:
        return default
    try:
        said = json.loads(configuration)
        kind, prediction = said.get("beta_schedule", "linear"), said.get("prediction_type", "epsilon")
        start, end = float(said.get("beta_start", 0.0001)), float(said.get("beta_end", 0.02))
        steps, stretched = int(said.get("num_train_timesteps", 1000)), bool(said.get("rescale_betas_zero_snr", False))
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: scheduler/scheduler_config.json cannot be read ({error}).") from error
    if kind != "scaled_linear" or prediction not in PREDICTIONS:
        raise CheckpointError(
            f"{name}: its scheduler has beta_schedule {kind!r} and prediction_type {prediction!r}, expected "
            f"'scaled_linear' and one of {', '.join(PREDICTIONS)}."
        )
    return NoiseSchedule(start, end, steps, stretched, PREDICTIONS[prediction], eta=default.eta)
