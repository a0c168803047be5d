"""Models of torch as CrypTen's modules, with the pinned torch: `crypten.nn.from_pytorch`.

CrypTen traces a model into ONNX with torch's older exporter, which torch 2.13 keeps under an option. That exporter puts
an `Identity` between parameters that are equal, which CrypTen does not know.
"""

import io
import logging
import threading
import warnings
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from mpcformer.engines.crypten.compat.library import crypten

# torch's exporter keeps its state in the process.
_exporting = threading.Lock()


class Identity(crypten.nn.Module):  # type: ignore[misc]
    """The module that returns its input."""

    def forward(self, x: Any) -> Any:
        """Return x."""
        return x

    @staticmethod
    def from_onnx(attributes: Any = None) -> "Identity":
        """Return the module of an ONNX node, which has no attributes."""
        return Identity()


def _export(f: Any, model: Any, dummy_input: Any) -> Any:
    """Write a model's ONNX graph, traced on an input of the right shape, into a file."""
    converter = crypten.nn.onnx_converter
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # A mode that watches operations would stand between the tracer and the model.
        with _exporting, warnings.catch_warnings(), _disable_current_modes():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                dummy_input if isinstance(dummy_input, tuple) else (dummy_input,),
                f,
                do_constant_folding=False,
                export_params=True,
                input_names=["input"],
                output_names=["output"],
                operator_export_type=converter.OperatorExportTypes.ONNX,
                opset_version=converter._OPSET_VERSION,
                dynamo=False,
            )
    finally:
        logger.setLevel(level)
    assert isinstance(f, io.BytesIO)
    return f


class _Arrays:
    """ONNX's reader of arrays, which gives each a memory of its own: torch warns of one that is read-only."""

    @staticmethod
    def to_array(tensor: Any) -> Any:
        return _to_array(tensor).copy()


_to_array = crypten.nn.onnx_converter.numpy_helper.to_array


def patch() -> None:
    """Put the exporter, the reader and the module into CrypTen."""
    crypten.nn.onnx_converter.numpy_helper = _Arrays
    crypten.nn.onnx_converter._export_pytorch_model = _export
    crypten.nn.module.Identity = Identity
