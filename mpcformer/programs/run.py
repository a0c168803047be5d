"""One party's run of a program: its inputs are shared, its function is called, and what is declared is opened."""

from collections.abc import Mapping
from typing import Any

import torch

from mpcformer.channel import Spec
from mpcformer.engines.crypten.compat import PartyState, active, crypten
from mpcformer.errors import MPCFormerError, UserInputError
from mpcformer.programs.declaration import Program
from mpcformer.programs.load import LoadedProgram
from mpcformer.programs.watch import Watch

# As much of what an error says is quoted, while there is no secret in it.
MAX_QUOTED = 200


def run_program(
    loaded: LoadedProgram,
    state: PartyState,
    values: Mapping[str, torch.Tensor],
    *,
    device: str = "cpu",
    rehearsal: bool = False,
    sizes: dict[str, tuple[int, ...]] | None = None,
) -> dict[str, torch.Tensor]:
    """Run a program as one party, and return the results that this party learns.

    Args:
        loaded: the program.
        state: this party, whose correlations and channel are used up.
        values: this party's inputs, by their names. Of the other party's inputs the shape alone is needed.
        device: "meta" when planning on shapes alone.
        rehearsal: whether there is no secret in it, so that an error may quote what the program says.
        sizes: is given the shape of each result, also of those that this party does not learn.

    Raises:
        UserInputError: the program opens what it did not declare, draws from torch's generator, fails by itself, or
            returns other results than it declares.
    """
    program, watch = loaded.program, Watch(loaded.path)
    state.watch, state.comparisons = watch.opening, program.comparisons
    with active(state, gradients=True):
        shared = {}
        for name, declared in program.inputs.items():
            mine = state.rank == declared.rank
            tensor = values[name] if mine else torch.zeros(declared.shape, device=device)
            shared[name] = crypten.cryptensor(tensor, src=declared.rank)
        try:
            with watch.randomness():
                results = program.function(**shared)
        except MPCFormerError:
            raise
        except Exception as error:
            # What an error says may show a value of this party; its kind and its line do not.
            told = f"program: {type(error).__name__} at {watch.line_of(error)}"
            what = f"{told}: {(str(error).splitlines() or [''])[0][:MAX_QUOTED]}" if rehearsal else told
            cause = error if rehearsal else None
            raise UserInputError(what, "correct the program at both owners", told=told) from cause
        _check(loaded, results)
        if sizes is not None:
            sizes.update({name: tuple(value.size()) for name, value in results.items()})
        return _open(program, results, state)


def _open(program: Program, results: dict[str, Any], state: PartyState) -> dict[str, torch.Tensor]:
    """Open each result to who learns it: one message from each owner, at the same time."""
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


def _check(loaded: LoadedProgram, results: object) -> None:
    program = loaded.program
    if not isinstance(results, dict) or set(results) != set(program.reveal):
        found = ", ".join(map(str, results)) if isinstance(results, dict) else type(results).__name__
        raise UserInputError(
            f"program: {program.name} returns {found or 'nothing'}, declared is {', '.join(program.reveal)}",
            "return a dictionary with exactly the results that `reveal` declares",
        )
    for name, value in results.items():
        if not isinstance(value, crypten.CrypTensor):
            what = f"program: the result {name} of {program.name} is a {type(value).__name__}, no shared tensor"
            raise UserInputError(what, "return what is computed from the inputs")
