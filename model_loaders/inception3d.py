"""I3D's weights for FVD and KVD: `i3d_pretrained_400.pt`, which the video metrics of VideoGPT, TATS and LVDM use."""

import string
from pathlib import Path

import torch

from ..kernels.networks.inception3d import Inception3D
from .errors import CheckpointError
from .files import read_tensors
from .keymap import KeyMap, check_finite, check_tensors

_STAGES = {"3": 0, "4": 1, "5": 2}
KEYS = KeyMap(
    (
        (r"^Conv3d_1a_7x7\.", "stem.0."),
        (r"^Conv3d_2b_1x1\.", "stem.1."),
        (r"^Conv3d_2c_3x3\.", "stem.2."),
        (
            r"^Mixed_([345])([b-f])\.",
            lambda found: f"stages.{_STAGES[found[1]]}.{string.ascii_lowercase.index(found[2]) - 1}.",
        ),
        (r"\.b0\.", ".single."),
        (r"\.b1a\.", ".first.0."),
        (r"\.b1b\.", ".first.1."),
        (r"\.b2a\.", ".second.0."),
        (r"\.b2b\.", ".second.1."),
        (r"\.b3b\.", ".pooled."),
        (r"\.conv3d\.", ".conv."),
        (r"\.bn\.", ".norm."),
        (r"^logits\.conv\.", "head."),
    )
)


def read_inception3d(path: Path) -> Inception3D:
    """The network of a file, frozen.

    Raises:
        CheckpointError: the file is missing, damaged, of another network, or holds values that are not finite.
    """
    tensors, _ = read_tensors(path)
    if not any(name.startswith("Mixed_") for name in tensors):
        raise CheckpointError(
            f"{path.name} holds {next(iter(tensors))}, expected I3D's Conv3d_1a_7x7 and Mixed_3b to Mixed_5c: choose "
            "i3d_pretrained_400.pt of the released video metrics; those in other layouts give other distances."
        )
    tensors = KEYS(tensors)
    # How many batches a norm has seen is a whole number, and not used.
    tensors = {name: x.float() if name.endswith("num_batches_tracked") else x for name, x in tensors.items()}
    with torch.device("meta"):
        network = Inception3D()
    check_tensors(network, tensors, path.name)
    check_finite(tensors, path.name)
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return network.eval().requires_grad_(False)
