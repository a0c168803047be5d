"""The check that nothing in a sentence left its calibrated range: marks of tables and guard, added up over the pass."""

from collections.abc import Sequence

import torch

from mpcformer.protocols import guard
from mpcformer.protocols.party import Half, Party
from mpcformer.protocols.table import Lookup, TableFunction
from mpcformer.ring.packing import WORD

# The marks of tables are numbers of Z_2^32.
TABLE_MARK_SHIFT = 32


def guard_bits(bits: int, ring: int) -> int:
    """Return the bits of the bound of a number of Z_2^ring as the guard sees it: in the top bits of a word."""
    return bits + WORD - ring


class RangeCheck:
    """Adds up this party's shares of all marks by sentence; an opened total is zero if all of a sentence was in range.

    The rows that it is given are those of a batch in order, as many of each sentence. Tables mark rows when they are
    looked up. The guard looks at all rows at once, from `begin` on: its openings go along with those of the head.

    Args:
        party: this owner.
        mask: public int64 (B, L), 1 at real tokens.
    """

    def __init__(self, party: Party, mask: torch.Tensor) -> None:
        self._party, self._n_batch = party, mask.size(0)
        self._marks = mask.new_zeros(self._n_batch)
        # What the guard looks at in the end: numbers, the bits of their bound, and which rows are real.
        self._guarded: list[tuple[torch.Tensor, int, torch.Tensor]] = []
        self._marking: guard.Marking | None = None

    def lookup(self, function: TableFunction, n_rows: int) -> Lookup:
        """Return a lookup of `n_rows` numbers with its correlations."""
        tables = [self._party.take(request) for request in Lookup.requests(function, n_rows)]
        return Lookup(function, tables, self._party.rank)

    def evaluate(self, lookup: Lookup, opened: list[torch.Tensor], real: torch.Tensor) -> torch.Tensor:
        """Return the result of a lookup; the marks of `real` rows count."""
        value, mark = lookup.evaluate(self._party, opened)
        # Padding rows hold anything; their keys are masked, so they reach no real token.
        self._marks = self._marks + (self._by_sentence(mark * real) << TABLE_MARK_SHIFT)
        return value

    def guard(self, bits: int, argument: torch.Tensor, real: torch.Tensor, ring: int = WORD) -> None:
        """Remember shares of numbers that must stay below 2^(bits + 1), for the guard in the end.

        Args:
            bits: of the bound.
            argument: the shares, over Z_2^ring.
            real: which rows count.
            ring: the width of their ring.
        """
        self._guarded.append((argument << (WORD - ring), guard_bits(bits, ring), real))

    def count(self, outside: torch.Tensor) -> None:
        """Add shares of numbers that are zero where all was in range, and positive but far below 2^64 elsewhere.

        Args:
            outside: (B, ...), or (rows,) like all other rows.
        """
        self._marks = self._marks + self._by_sentence(outside)

    def begin(self) -> None:
        """Begin the guard; no number is remembered any more."""
        self._marking = guard.Marking(self._party, self._guarded, self._n_batch)

    def open(self, halves: Sequence[Half]) -> list[torch.Tensor]:
        """Open numbers as `Party.open` does, and the guard's next ones along with them."""
        beside = [] if self._marking is None else self._marking.halves
        opened = self._party.open([*halves, *beside])
        if self._marking is not None and beside:
            self._marking.take(opened[len(halves) :])
        return opened[: len(halves)]

    def totals(self) -> torch.Tensor:
        """Return this party's shares of the sums of all marks of each sentence, (B,), after the rest of the guard."""
        if self._marking is None:
            self.begin()
        assert self._marking is not None
        while self._marking.halves:
            self.open([])
        return self._marks + self._marking.marks

    def _by_sentence(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.reshape(self._n_batch, -1).sum(1)
