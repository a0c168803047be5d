"""The check that nothing in a batch left its calibrated range: marks of tables and guard, added up over the pass."""

import torch

from mpcformer.protocols import guard
from mpcformer.protocols.party import Party
from mpcformer.protocols.table import Lookup, TableFunction

# The marks of tables are numbers of Z_2^32.
TABLE_MARK_SHIFT = 32


class RangeCheck:
    """Adds up this party's shares of all marks; the opened total is zero if all was in range."""

    def __init__(self, party: Party) -> None:
        self._party = party
        self._mark: torch.Tensor | int = 0
        # What the guard looks at after the last layer: numbers, the bits of their bound, and which rows are real.
        self._guarded: list[tuple[torch.Tensor, int, torch.Tensor]] = []

    def lookup(self, function: TableFunction, n_rows: int) -> Lookup:
        """Return a lookup of `n_rows` numbers with its correlations."""
        tables = [self._party.take(request) for request in Lookup.requests(function, n_rows)]
        return Lookup(function, tables, self._party.rank)

    def evaluate(self, lookup: Lookup, opened: list[torch.Tensor], real: torch.Tensor) -> torch.Tensor:
        """Return the result of a lookup; the marks of `real` rows count."""
        value, mark = lookup.evaluate(self._party, opened)
        # Padding rows hold anything; their keys are masked, so they reach no real token.
        self._mark = self._mark + ((mark * real).sum() << TABLE_MARK_SHIFT)
        return value

    def guard(self, bits: int, argument: torch.Tensor, real: torch.Tensor) -> None:
        """Remember shares of numbers that must stay below 2^(bits + 1), for the guard after the last layer."""
        self._guarded.append((argument, bits, real))

    def count(self, outside: torch.Tensor) -> None:
        """Add shares of numbers that are zero if all was in range, and positive but far below 2^64 if not."""
        self._mark = self._mark + outside.sum()

    def total(self) -> torch.Tensor:
        """Return this party's share of the sum of all marks, (1,)."""
        mark = self._mark + guard.mark(self._party, self._guarded)
        return torch.as_tensor(mark).reshape(1)
