"""How one party plays a program: its inputs are shared, and what is declared is opened. Both inside `active(party)`.

`mpcformer.programs` runs programs from files with it, and the engine `crypten` runs BERT's.
"""

from collections.abc import Mapping
from typing import Any

import torch

from mpcformer.channel import Spec
from mpcformer.engines.crypten.compat import crypten, current
from mpcformer.engines.crypten.program import Input, Program


def share_inputs(
    inputs: Mapping[str, Input], values: Mapping[str, torch.Tensor], *, device: str | torch.device = "cpu"
) -> dict[str, Any]:
    """Share inputs without a message: both parties draw the same sharing of zero, and the owner adds its value.

    Args:
        inputs: what a program declares, by names.
        values: this party's inputs by their names.
        device: "meta" when planning on shapes alone.

    Returns:
        CrypTen's tensors by the inputs' names.
    """
    rank, shared = current().rank, {}
    for name, declared in inputs.items():
        precision = 0 if declared.whole else None
        tensor = crypten.mpc.primitives.ArithmeticSharedTensor(
            tensor=values[name] if declared.rank == rank else None,
            size=declared.shape,
            precision=precision,
            src=declared.rank,
            device=device,
        )
        shared[name] = crypten.mpc.MPCTensor.from_shares(tensor.share, precision=precision)
    return shared


def open_results(program: Program, results: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Open each result to who learns it: one message from each owner, at the same time.

    Args:
        program: what it declares.
        results: CrypTen's tensors by the names in `program.reveal`.

    Returns:
        What this party learns.
    """
    state = current()
    mine = [name for name in program.reveal if state.rank in program.learners(name) and results[name].nelement()]
    theirs = [name for name in program.reveal if 1 - state.rank in program.learners(name) and results[name].nelement()]
    assert state.channel is not None
    if theirs:
        state.channel.send([results[name].share.clone() for name in theirs])
    arrived = state.channel.receive([Spec.of(results[name].share) for name in mine]) if mine else []
    opened = {name: results[name].share for name in program.reveal if state.rank in program.learners(name)}
    for name, share in zip(mine, arrived, strict=True):
        is_binary = results[name].ptype == crypten.mpc.binary
        opened[name] = opened[name] ^ share if is_binary else opened[name] + share
    return {name: results[name].encoder.decode(value) for name, value in opened.items()}
