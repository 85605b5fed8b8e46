"""What folders in diffusers' layout say in JSON: noise schedules, and settings of the denoiser."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from ..kernels.sampling.schedules import NoiseSchedule, Spacing
from .errors import CheckpointError

SPACINGS: dict[str, Spacing] = {"scaled_linear": "roots", "squaredcos_cap_v2": "cosine"}
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
    if kind not in SPACINGS or prediction not in PREDICTIONS:
        raise CheckpointError(
            f"{name}: its scheduler has beta_schedule {kind!r} and prediction_type {prediction!r}, expected one of "
            f"{', '.join(SPACINGS)} and one of {', '.join(PREDICTIONS)}."
        )
    spacing = SPACINGS[kind]
    if spacing == "cosine":  # betas that stand beside it are ignored
        start, end = default.linear_start, default.linear_end
    return NoiseSchedule(start, end, steps, stretched, PREDICTIONS[prediction], spacing=spacing, eta=default.eta)


def read_settings(name: str, configuration: str | None) -> Mapping[str, Any]:
    """The settings of the denoiser's configuration in a folder; none without one.

    Raises:
        CheckpointError: it is no JSON object.
    """
    try:
        settings = json.loads(configuration or "{}")
    except ValueError as error:
        raise CheckpointError(f"{name}: unet/config.json cannot be read ({error}).") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{name}: unet/config.json holds {settings!r}, expected an object with settings.")
    return settings
