"""The check that nothing in a sentence left its calibrated range: marks of tables and guard, added up over the pass."""

import torch

from mpcformer.protocols import guard
from mpcformer.protocols.party import Party
from mpcformer.protocols.table import Lookup, TableFunction
from mpcformer.ring.packing import WORD

# The marks of tables are numbers of Z_2^32.
TABLE_MARK_SHIFT = 32


def guard_bits(bits: int, ring: int) -> int:
    """Return the bits of the bound of a number of Z_2^ring as the guard sees it: in the top bits of a word."""
    return bits + WORD - ring


class RangeCheck:
    """Adds up this party's shares of all marks by sentence; an opened total is zero if all of a sentence was in range.

    The rows that it is given are those of a batch in order, as many of each sentence.

    Args:
        party: this owner.
        mask: public int64 (B, L), 1 at real tokens.
    """

    def __init__(self, party: Party, mask: torch.Tensor) -> None:
        self._party, self._n_batch = party, mask.size(0)
        self._marks = mask.new_zeros(self._n_batch)
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
        self._marks = self._marks + (self._by_sentence(mark * real) << TABLE_MARK_SHIFT)
        return value

    def guard(self, bits: int, argument: torch.Tensor, real: torch.Tensor, ring: int = WORD) -> None:
        """Remember shares of numbers that must stay below 2^(bits + 1), for the guard after the last layer.

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

    def totals(self) -> torch.Tensor:
        """Return this party's shares of the sums of all marks of each sentence, (B,)."""
        return self._marks + guard.mark(self._party, self._guarded, self._n_batch)

    def _by_sentence(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.reshape(self._n_batch, -1).sum(1)
