"""CrypTen's settings: each thread has its own, and a party begins with those of this release.

They are `crypten.cfg`, and the type of new tensors (`crypten.set_default_cryptensor_type`).

CrypTen overrides settings in the middle of its functions (`reciprocal_all_pos` within softmax, say) and puts back what
it found. Its settings are the process's, so that two parties in two threads override each other's: an override that one
thread found in place is put back for good, and every division after it is wrong.
"""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mpcformer.engines.crypten.compat.library import crypten

_local = threading.local()
_shipped: Any = None
# What `crypten.cryptensor` makes, unless a program has set another type.
TENSOR_TYPE = "mpc"


def _get(cfg: Any) -> Any:
    if not hasattr(_local, "settings"):
        # Whoever sets `cfg.encoder.precision_bits` changes the object itself, so every thread needs a copy.
        _local.settings = copy.deepcopy(_shipped)
    return _local.settings


def _set(cfg: Any, settings: Any) -> None:
    _local.settings = settings


def _get_type(cls: Any) -> str:
    return getattr(_local, "tensor_type", TENSOR_TYPE)


def _set_type(cls: Any, name: str) -> None:
    _local.tensor_type = name


@contextmanager
def fresh_settings() -> Iterator[None]:
    """Run with this release's settings in this thread, and put back what the thread had before."""
    mine = vars(_local)  # this thread's; what is not in it is this release's
    before = dict(mine)
    mine.clear()
    try:
        yield
    finally:
        mine.clear()
        mine.update(before)


def patch() -> None:
    """Take the settings as they are now for this release's, and give each thread a copy of them."""
    global _shipped
    _shipped = crypten.cfg.config
    # A data descriptor of the class comes before an attribute of the instance.
    type(crypten.cfg).config = property(_get, _set)
    type(crypten.CrypTensor).__DEFAULT_CRYPTENSOR_TYPE__ = property(_get_type, _set_type)
