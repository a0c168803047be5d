"""Open a value in a small ring and go on in the large one: lifting, squares and row products from a single opening.

The large ring is Z_2^T, of 64 bits or fewer. A value x with -2^(k-2) <= x < 2^(k-2), shared over Z_2^k, is opened as
c = x + 2^(k-2) + r mod 2^k. As x + 2^(k-2) fits k - 1 bits, the sum wrapped exactly when r has its top bit m and c has
not. Hence x = C - rho with the public C = c - 2^(k-2) and rho = r - 2^k m [msb c = 0]. The dealer shares r and m over
Z_2^T, so x is lifted; products of r and m give the square of x, or its product with another opened value. The public c
tells which of its two values rho has.
Source: Escudero, Ghosh, Keller, Rachuri, Scholl, CRYPTO 2020, section 5; the products are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mpcformer.correlations import Request
from mpcformer.correlations.lifted import FACTOR_BITS, FACTOR_EXTRA_BITS, LiftedSpec
from mpcformer.protocols.cost import ProtocolCost, dealt, opening
from mpcformer.protocols.party import Half, Party, Share, fused, shift
from mpcformer.ring.kernels import load
from mpcformer.ring.packing import WORD, Operand, logical_shift, unpacked


def request(use: str, shape: tuple[int, ...], bits: int, lift: int = WORD) -> Request:
    """Return the request for values of `shape` over Z_2^bits that are lifted to Z_2^lift.

    Args:
        use: one of `correlations.lifted.USES`.
        shape: the shape of the value; its last axis is a row.
        bits, lift: the widths of the two rings.
    """
    return LiftedSpec(use, shape, bits, lift).request()


def cost(use: str, shape: tuple[int, ...], bits: int, lift: int = WORD, *, ahead: bool = False) -> ProtocolCost:
    """Return the cost of opening a value of n elements in m rows over Z_2^k. All that follows is local in Z_2^T.

    The opening of the rows' factor, for norm and scale, is not included; see `factor_cost`. `ahead` is that of
    `opening`.

    Cost of plain: 1 round; k / 8 n bytes each way; 2 (T - k) / 8 n dealer bytes.
    Cost of square: 1 round; k / 8 n bytes each way; (3 (T - k) + T) / 8 n dealer bytes.
    Cost of length: 1 round; k / 8 n bytes each way; 3 (T - k) / 8 n + T / 8 m dealer bytes.
    Cost of norm: 1 round; k / 8 n bytes each way; (4 (T - k) + T + T - 40) / 8 n + (T / 8 + 11) m dealer
        bytes, where T > 40.
    Cost of scale: 1 round; k / 8 n bytes each way; (3 (T - k) + T + T - 40) / 8 n + 11 m dealer bytes, where T > 40.
    """
    return opening((shape, bits), ahead=ahead) + dealt(request(use, shape, bits, lift))


def factor_cost(shape: tuple[int, ...]) -> ProtocolCost:
    """Return the cost of opening the factor of each of m rows of a value of `shape`.

    Cost: 1 round; 8 m bytes each way.
    """
    return opening(((*shape[:-1], 1), WORD))


@dataclass(repr=False)
class Mask:
    """A lifted mask before its opening.

    Args:
        tensors: this owner's part of the correlation, see `correlations.lifted.Lifted`.
        bits: the width of the small ring.
        use: what the mask is used for.
        lift: the width of the large ring.
    """

    tensors: Sequence[Operand]
    bits: int
    use: str
    lift: int = WORD

    def half(self, share: Share, rank: int) -> Half:
        """Return this owner's half of the opening of `share`, which is valid over Z_2^bits."""
        masked = fused(share) + unpacked(self.tensors[0])
        return (masked + (1 << (self.bits - 2)) if rank == 0 else masked), self.bits

    def factor_half(self, factor: torch.Tensor, rank: int) -> Half:
        """Return this owner's half of the opening of the rows' factor, which has FACTOR_EXTRA_BITS; norm and scale."""
        masked = factor + unpacked(self.tensors[1])
        return (masked + (1 << 62) if rank == 0 else masked), WORD


class Opened:
    """An opened value: the public C and the shared rho.

    Args:
        party: the owner that computes.
        mask: the mask of the value.
        c: the opened number, in [0, 2^bits).
    """

    def __init__(self, party: Party, mask: Mask, c: torch.Tensor) -> None:
        self._party, self._mask, self._c = party, mask, c
        r, self._factor_masks = mask.tensors[0], mask.tensors[1:2] if mask.use in ("norm", "scale") else []
        carry, m, *self._rest = mask.tensors[1 + len(self._factor_masks) :]
        self._arrays: dict[str, Operand] = {"c": c, "r": r, "carry": carry, "m": m}

    @property
    def public(self) -> torch.Tensor:
        """The number C."""
        return self._c - (1 << (self._mask.bits - 2))

    def value(self, down: int = 0) -> torch.Tensor:
        """Compute [x] over Z_2^T; for every use. Local.

        Ideal function: the identity; then a shift by `down` bits, as `protocols.party.shift` does it.
        Shapes: x (...), result (...).
        Scale: unchanged, less `down`.
        Range and error: |x| < 2^(bits - 2); exact.
        """
        return self._computed("value", {}, down=down)

    def square(self, offset: int = 0, down: int = 0) -> torch.Tensor:
        """Compute [(x + offset)^2] over Z_2^T; for use square. Local.

        Ideal function: the elementwise square, without truncation; then a shift by `down` bits.
        Shapes: x (...), result (...).
        Scale: f -> 2 f, less `down`.
        Range and error: |x| < 2^(bits - 2); exact.
        """
        return self._computed("square", {"rm": self._rest[0], "squares": self._rest[1]}, offset=offset, down=down)

    def sum_of_squares(self) -> torch.Tensor:
        """Compute [sum x^2] over Z_2^T along the last axis (kept); for use length and norm. Local.

        Ideal function: the sum of squares, without truncation.
        Shapes: x (..., n), result (..., 1).
        Scale: f -> 2 f.
        Range and error: |x| < 2^(bits - 2); exact.
        """
        return self._computed("length", {"rm": self._rest[0], "squares": self._rest[1]})

    def times(self, opened_factor: torch.Tensor, down: int = 0) -> torch.Tensor:
        """Compute [x y] over Z_2^T for the rows' factor y, opened from `factor_half`; for use norm and scale. Local.

        Ideal function: x floor(y / 2^FACTOR_EXTRA_BITS), or x times that floor plus one; then a shift by `down` bits.
        Shapes: x (..., n), y (..., 1), result (..., n).
        Scale: f and g + FACTOR_EXTRA_BITS -> f + g, less `down`.
        Range and error: |x| < 2^(bits - 2), |y| < 2^62; 1 unit in the last place of y.
        """
        of_b, of_n, r_b, m_b, *r_n = self._rest[2 if self._mask.use == "norm" else 0 :]
        b, n = unpacked(of_b), unpacked(of_n)
        wrapped = (opened_factor >= 0).long()
        public = logical_shift(opened_factor, FACTOR_EXTRA_BITS) - (1 << (62 - FACTOR_EXTRA_BITS))
        arrays: dict[str, Operand] = {"rb": r_b, "mb": m_b}
        arrays |= {"factor": public, "eta": b - ((n * wrapped) << FACTOR_BITS)}
        arrays |= {"wrapped": wrapped, "rn": r_n[0]} if r_n else {"wrapped": wrapped}
        return self._computed("times", arrays, down=down)

    def _computed(self, use: str, arrays: Mapping[str, Operand], *, offset: int = 0, down: int = 0) -> torch.Tensor:
        if self._c.device.type == "meta":  # a plan
            shape = (*self._c.shape[:-1], 1) if use == "length" else self._c.shape
            return torch.empty(shape, dtype=torch.int64, device="meta")
        numbers = {"bits": self._mask.bits, "lift": self._mask.lift, "rank": self._party.rank}
        numbers |= {"offset": offset, "down": down}
        whole = {**self._arrays, **arrays}
        kernels, _ = load()
        return (lifted_by_torch if kernels is None else kernels.lifting.opened)(use, arrays=whole, **numbers)


def lifted_by_torch(
    use: str, *, arrays: Mapping[str, Operand], bits: int, lift: int, rank: int, offset: int, down: int
) -> torch.Tensor:
    """Do as `ring.lifting.LiftKernels.opened`, which explains the arguments, without the compiled functions."""
    whole = {name: unpacked(array) for name, array in arrays.items()}
    c = whole["c"]
    no_msb = 1 - (c >> (bits - 1))
    public, wrap = c - (1 << (bits - 2)) + offset, whole["m"] * no_msb
    rho = whole["r"] - ((whole["carry"] + wrap) << bits)
    if use == "value":
        found = public - rho if rank == 0 else -rho
    elif use == "times":
        factor = whole["factor"]
        # rho eta = (r - 2^k m [..]) (b - 2^40 n [..]); the last product vanishes, as k + 40 >= T.
        rho_eta = whole["rb"] - ((whole["mb"] * no_msb) << bits)
        if "rn" in whole:
            rho_eta = rho_eta - ((whole["rn"] * whole["wrapped"]) << FACTOR_BITS)
        found = rho_eta - public * whole["eta"] - rho * factor
        if rank == 0:
            found = found + public * factor
    else:
        # [rho^2] - [r^2] = -2^(k+1) r m [msb c = 0] + 2^(2k) m [msb c = 0]
        beyond = -((whole["rm"] * no_msb) << (bits + 1))
        if 2 * bits < lift:
            beyond = beyond + (wrap << (2 * bits))
        found = beyond - 2 * public * rho
        if rank == 0:
            found = found + public * public
        if use == "length":
            return found.sum(-1, keepdim=True) + whole["squares"]
        found = found + whole["squares"]
    return shift(found, down, rank)
