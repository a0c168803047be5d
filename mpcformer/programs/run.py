"""One party's run of a program: its inputs are shared, its function is called, and what is declared is opened."""

from collections.abc import Mapping

import torch

from mpcformer.engines.crypten.compat import PartyState, active, crypten
from mpcformer.engines.crypten.play import open_results, share_inputs
from mpcformer.errors import MPCFormerError, UserInputError
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
        shared = share_inputs(program.inputs, values, device=device)
        try:
            with watch.randomness():
                results = program.results(shared)
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
        return open_results(program, results)


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
