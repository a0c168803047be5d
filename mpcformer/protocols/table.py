"""A function of one private number a row, from public tables and secret keys; see `mpcformer.correlations.table`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mpcformer.correlations import Request
from mpcformer.correlations.beaver import TripleSpec
from mpcformer.correlations.table import GUARD, TableSpec, pieces
from mpcformer.protocols.cost import ProtocolCost, dealt, opening
from mpcformer.protocols.matmul import half as masked_half
from mpcformer.protocols.party import Half, Party, shift
from mpcformer.ring.kernels import load


@dataclass(frozen=True)
class Argument:
    """The conversion of a shared number x to the 24-bit argument of a table: v = (x multiplier >> shift) - base."""

    spec: TableSpec
    multiplier: int
    shift: int

    def of(self, share: torch.Tensor, rank: int) -> torch.Tensor:
        """Compute this owner's share of v, which is valid over Z_2^24."""
        scaled = shift(share * self.multiplier, self.shift, rank)
        return scaled - self.spec.base if rank == 0 else scaled


@dataclass(frozen=True)
class TableFunction:
    """A function given by one table, or by two if its range is wide.

    Args:
        upper: the only table, or the one that spans the whole range.
        lower: the finer table for the low end of the range, if there is one.
        guard: the table of marks for arguments above the range, if the argument may leave it.
        guard_bits: the guard reaches up to 2^(guard_bits + 1), in the argument's integers; see `protocols.guard`.
    """

    upper: Argument
    lower: Argument | None = None
    guard: Argument | None = None
    guard_bits: int = 0

    @property
    def limits(self) -> tuple[float, float]:
        """The interval in which no argument is marked."""
        return (self.lower or self.upper).spec.low, self.upper.spec.high

    @property
    def parts(self) -> list[Argument]:
        """The tables in order."""
        return [part for part in (self.upper, self.guard, self.lower) if part is not None]


def cost(function: TableFunction, rows: int) -> ProtocolCost:
    """Return the cost of a lookup with the opening of its arguments, as `Lookup` states it."""
    found = opening(*[((rows,), TableSpec.BITS)] * len(function.parts)) + dealt(*Lookup.requests(function, rows))
    return found if function.lower is None else found + opening(((2, rows), 64), ((rows,), 64))


class Lookup:
    """The lookup of a function for one set of rows, from before the opening to the result.

    Ideal function: f((v + base) unit) 2^scale, piecewise quadratic; and a mark, which is zero if all is in range.
    Shapes: x (rows,), result (rows,).
    Scale: that of the table.
    Range and error: see `correlations.table`; outside the range the mark is not zero modulo 2^32.
    The cost for m rows, with 2^u bins in the upper or only table, 2^l in the lower one and 2^g in the guard, is:
    Cost of one table: 1 round; 3 m bytes each way; m (16 u + 24) dealer bytes; m (16 u + 24) passed-on bytes.
    Cost of one table with a guard: 1 round; 6 m bytes each way; m (16 u + 16 g + 32) dealer bytes;
        m (16 u + 16 g + 32) passed-on bytes.
    Cost of one table with tags: 1 round; 3 m bytes each way; m (16 u + 48) dealer bytes;
        m (16 u + 48) passed-on bytes.
    Cost of two tables: 2 rounds; 30 m bytes each way; m (16 u + 16 l + 64) dealer bytes;
        m (16 u + 16 l + 48) passed-on bytes.
    Cost of two tables with a guard: 2 rounds; 33 m bytes each way; m (16 u + 16 l + 16 g + 72) dealer bytes;
        m (16 u + 16 l + 16 g + 56) passed-on bytes.
    Source: tables by point functions after Gilboa and Ishai, EUROCRYPT 2014; the public quadratics over two bins are
        ours.
    """

    def __init__(self, function: TableFunction, tensors: list[list[torch.Tensor]], rank: int) -> None:
        self._function, self._tensors, self._rank = function, tensors, rank
        # This owner's shares of the results times their keys (rows,), after `evaluate`, where results are tagged.
        self.tags: torch.Tensor | None = None

    @staticmethod
    def requests(function: TableFunction, rows: int) -> list[Request]:
        """Return the requests, in order."""
        tables = [argument.spec.request(rows) for argument in function.parts]
        return tables if function.lower is None else [*tables, TripleSpec("mul", (2, rows), (rows,)).request()]

    def halves(self, share: torch.Tensor) -> list[Half]:
        """Return this owner's halves of the openings of the arguments."""
        return [
            (argument.of(share, self._rank) + tensors[0], TableSpec.BITS)
            for argument, tensors in zip(self._function.parts, self._tensors, strict=False)  # the triple comes after
        ]

    def evaluate(self, party: Party, opened: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute [f] and the share of the mark from the opened arguments."""
        parts = list(zip(self._function.parts, self._tensors, opened, strict=False))
        value, mark, *below = _look_up(parts[0][0].spec, parts[0][1], parts[0][2])
        if self._function.guard is not None:
            mark = mark + _look_up(parts[1][0].spec, parts[1][1], parts[1][2])[0]
        if self._function.lower is None:
            self.tags = below[0] if below else None
            return value, mark
        lower = torch.stack(_look_up(parts[-1][0].spec, parts[-1][1], parts[-1][2]))  # (2, rows)
        a, b, c = self._tensors[-1]
        d, e = party.open([masked_half(lower, a, 64), masked_half(below[0], b, 64)])
        chosen = d * b + a * e + c + party.only(0, d * e)
        return value + chosen[0], mark + chosen[1]


def _look_up(spec: TableSpec, tensors: list[torch.Tensor], c: torch.Tensor) -> list[torch.Tensor]:
    """Compute [f], the share of the mark and, if there is a lower table, the share of "below"; the mark of a guard.

    Where results are tagged, the last is [f] times the key.
    """
    if c.device.type == "meta":  # planning, in which no public number may be computed either
        return [c] if spec.function == GUARD else [c, c, c] if spec.has_lower or spec.tags else [c, c]
    public, n = pieces(spec), spec.n_bins
    # Place p of a row holds the number of bin c_high - p. Tables are turned in their reverse, so that rows are pieces.
    first = (n - 1 - (c >> spec.bin_bits)) % n
    marks = [public.outside, public.below] if spec.has_lower else [public.outside]
    kernels, _ = load()
    look_up = look_up_by_torch if kernels is None else kernels.tables.look_up
    if spec.function == GUARD:
        return look_up(tensors[1], first, marks)
    return look_up(tensors[1], first, marks, public.coefficients, spec.step_of(c))


def look_up_by_torch(
    vectors: torch.Tensor,
    first: torch.Tensor,
    marks: Sequence[torch.Tensor],
    coefficients: torch.Tensor | None = None,
    x: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Multiply turned tables by shares of the indicator of each row's bin, and add up.

    Args:
        vectors: shares that are zero but at r_high, (C, rows, bins): of 1, r_low and r_low^2; then, where results are
            tagged, of the same times the row's key. Without coefficients the first alone is used.
        first: where the turned tables of each row begin, (rows,).
        marks: for each mark, the number of each bin, (bins,).
        coefficients: (3, bins), of the function's quadratics; None: only marks are wanted.
        x: the low bits of what was opened, (rows,).

    Returns:
        With coefficients [f]; then the share of each mark; then, where results are tagged, [f] times the key.
    """
    one, *powers = vectors  # each (rows, bins)

    def turned(numbers: torch.Tensor) -> torch.Tensor:
        """Return for each row and place the number of bin b = c_high - place, (rows, bins)."""
        return numbers.flip(0).repeat(2).unfold(0, numbers.numel(), 1)[first]

    found = [(turned(mark) * one).sum(1) for mark in marks]
    if coefficients is None or x is None:
        return found
    k0, k1, k2 = (turned(each) for each in coefficients)

    def quadratic(one: torch.Tensor, low: torch.Tensor, low_squared: torch.Tensor) -> torch.Tensor:
        """Return k0 + k1 (x - low) + k2 (x - low)^2 times what the first vector holds."""
        value = (k0 * one).sum(1) + x * (k1 * one).sum(1) - (k1 * low).sum(1)
        return value + x * x * (k2 * one).sum(1) - 2 * x * (k2 * low).sum(1) + (k2 * low_squared).sum(1)

    tagged = [quadratic(*powers[2:])] if len(powers) > 2 else []
    return [quadratic(one, *powers[:2]), *found, *tagged]
