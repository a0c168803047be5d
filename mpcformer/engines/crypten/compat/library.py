"""CrypTen 0.4.1 itself. This is the only module that imports it; the folder's other modules replace parts of it."""

import logging
import sys
import types
from typing import Any


def _import_crypten() -> Any:
    # torch 2.13 has no `torch.onnx._internal.registration`; an empty stand-in lets CrypTen import.
    name = "torch.onnx._internal.registration"
    if name not in sys.modules:
        stand_in = types.ModuleType(name)
        stand_in.registry = None  # type: ignore[attr-defined]
        sys.modules[name] = stand_in
    level = logging.getLogger().level
    import crypten

    logging.getLogger().setLevel(level)
    return crypten


crypten: Any = _import_crypten()
