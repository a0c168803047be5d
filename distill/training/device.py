"""The device on which a process trains, and the precision of its products."""

import contextlib
from typing import Any

import torch

from distill.recipe import PRECISIONS
from distill.training.processes import current
from mpcformer.errors import UserInputError


def pick_device() -> torch.device:
    """Return the launcher's device for this process; without a launcher, a CUDA device if there is one."""
    return current().device


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which products are computed in bfloat16, or a context that changes nothing.

    Args:
        precision: "fp32", "bf16", or "auto", which chooses bfloat16 where the hardware supports it.
        device: the device that computes.

    Raises:
        UserInputError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise UserInputError(f"--precision: {precision!r} is unknown", f"choose one of: {', '.join(PRECISIONS)}")
    native = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if precision == "fp32" or (precision == "auto" and not native):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
