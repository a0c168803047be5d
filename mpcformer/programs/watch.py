"""What a program may not do while it runs: open what it did not declare, or draw from a generator that is not ours.

Python is not a sandbox, and both owners choose to run the file. The watch finds what a program does by mistake: it
names the line, in the dry run first.
"""

import random  # noqa: TID251 (its state is looked at, and never drawn from)
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mpcformer.errors import UserInputError

DECLARE = "return it, and declare in `reveal` who learns it"


class Watch:
    """Refuses what the program of one file may not do.

    Args:
        path: the program's file; errors name its lines.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()

    def opening(self, operation: str) -> None:
        """Refuse an operation that tells a value. Declared results are opened after the program has ended.

        Raises:
            UserInputError: the program opens a value in its middle.
        """
        raise UserInputError(f"program: {operation} at {self.line()} opens a value in the middle", DECLARE)

    def line(self) -> str:
        """Return the file and line of the program that is at work, as FILE:LINE."""
        return _line(self._path, traceback.extract_stack(sys._getframe()))

    def line_of(self, error: BaseException) -> str:
        """Return the line of the program from which an error came."""
        return _line(self._path, traceback.extract_tb(error.__traceback__))

    @contextmanager
    def randomness(self) -> Iterator[None]:
        """Refuse draws from the generators of torch, NumPy and Python inside the block.

        Raises:
            UserInputError: the program drew from one.
        """
        before = random.getstate(), _numpy_state()
        with _NoDraws(self):
            yield
        for name, same in (("random", random.getstate() == before[0]), ("numpy.random", _numpy_state() == before[1])):
            if not same:
                raise UserInputError(f"program: it draws from {name}'s generator", _OWN_RANDOMNESS)


_OWN_RANDOMNESS = "use crypten.rand, crypten.randn or crypten.bernoulli, whose values no party knows"


class _NoDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, watch: Watch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watch = watch

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Programs are not compiled; what torch would import to keep its compiler out takes two seconds.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            where = self._watch.line()
            raise UserInputError(f"program: {func.name()} at {where} draws from torch's generator", _OWN_RANDOMNESS)
        return func(*args, **(kwargs or {}))


def _numpy_state() -> str:
    # The legacy generator's state: a name, an array, and numbers.
    return repr([np.asarray(part).tolist() for part in np.random.get_state()])  # noqa: TID251 (looked at, not drawn from)


def _line(path: Path, frames: Sequence[traceback.FrameSummary]) -> str:
    for frame in reversed(frames):
        if Path(frame.filename).resolve() == path:
            return f"{path.name}:{frame.lineno}"
    return path.name
