"""ReLU in place of GeLU."""

from typing import Any

import torch

from mpcformer.approximations.forms import CRYPTEN, LIFT, GeluForm, LiftPieces


def _crypten(ops: Any, x: Any) -> Any:
    return ops.relu(x)


RELU = GeluForm(
    name="relu",
    title="ReLU",
    description="max(x, 0)",
    function=torch.relu,
    private={
        LIFT: LiftPieces(pieces=(((0,), (0, 1)),), scale=13, bits=32, result_scale=13, result_shift=0),
        CRYPTEN: _crypten,
    },
)
