"""CrypTen's gradients: a flag of its own for each thread, and masks of dropout from the party's own streams.

CrypTen's flag is the process's, so that one thread's party would switch another's. Its masks come from MT19937.
"""

import logging
import threading
from typing import Any

import torch

from mpcformer.engines.crypten.compat.library import crypten
from mpcformer.engines.crypten.compat.provider import public_uniform

_local = threading.local()


def _get_flag(cls: Any) -> bool:
    return getattr(_local, "enabled", True)


def _set_flag(cls: Any, mode: bool) -> None:
    _local.enabled = bool(mode)


def _dropped(name: str, ctx: Any, x: Any, p: float, training: bool, inplace: bool, size: Any) -> Any:
    """Zero what a public mask of `size` says, which both parties draw alike, and scale the rest up by 1 / (1 - p)."""
    if not training:
        return x if inplace else x.clone()
    if inplace:
        logging.warning("CrypTen %s does not support inplace computation during training.", name)
    mask = (public_uniform(size, x.device) > p).double()
    mask = mask.reshape(*size, *(1,) * (x.dim() - len(size))).expand(x.size())
    result = x.mul_(mask / (1.0 - p)) if inplace else x.mul(mask / (1.0 - p))
    ctx.save_multiple_for_backward([mask, p])
    return result


def _dropout(ctx: Any, input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return _dropped("dropout", ctx, input, p, training, inplace, torch.Size(input.size()))


def _feature_dropout(ctx: Any, input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return _dropped("_feature_dropout", ctx, input, p, training, inplace, torch.Size(input.size()[:2]))


def patch() -> None:
    """Put the flag and the masks in the place of CrypTen's."""
    # A data descriptor of the metaclass comes before an attribute of the class.
    type(crypten.CrypTensor).AUTOGRAD_ENABLED = property(_get_flag, _set_flag)
    crypten.gradients.AutogradDropout.forward = staticmethod(_dropout)
    crypten.gradients.AutogradFeatureDropout.forward = staticmethod(_feature_dropout)
