"""Did anything of a batch leave its calibrated range: the tables' marks and the guard, summed up over the pass."""

import torch

from mpcformer.protocols import guard
from mpcformer.protocols.party import Party
from mpcformer.protocols.table import Lookup, TableFunction

# Tables' marks are numbers of Z_2^32.
TABLE_MARK_SHIFT = 32


class RangeCheck:
    """Collects this party's shares; the opened total is zero if all was in range."""

    def __init__(self, party: Party) -> None:
        self._party = party
        self._mark: torch.Tensor | int = 0
        # What the guard looks at after the last layer: numbers, their bound's bits, which rows are real.
        self._guarded: list[tuple[torch.Tensor, int, torch.Tensor]] = []

    def lookup(self, function: TableFunction, n_rows: int) -> Lookup:
        """A lookup with its correlations."""
        tables = [self._party.take(request) for request in Lookup.requests(function, n_rows)]
        return Lookup(function, tables, self._party.rank)

    def evaluate(self, lookup: Lookup, opened: list[torch.Tensor], real: torch.Tensor) -> torch.Tensor:
        """The lookup's result; the marks of `real` rows count."""
        value, mark = lookup.evaluate(self._party, opened)
        # Padding rows hold anything; their keys are masked, so they reach no real token.
        self._mark = self._mark + ((mark * real).sum() << TABLE_MARK_SHIFT)
        return value

    def guard(self, bits: int, argument: torch.Tensor, real: torch.Tensor) -> None:
        """Remember the share of what must stay below 2^(bits + 1), to look at it after the last layer."""
        self._guarded.append((argument, bits, real))

    def count(self, outside: torch.Tensor) -> None:
        """The share of a number that is zero if all was in range, and positive but far below 2^64 if not."""
        self._mark = self._mark + outside.sum()

    def total(self) -> torch.Tensor:
        """This party's share of the sum of all marks: (1,)."""
        mark = self._mark + guard.mark(self._party, self._guarded)
        return torch.as_tensor(mark).reshape(1)
