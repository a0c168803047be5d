"""Comparisons: by CrypTen's adder of bits, or by keys of signs and of equality, in one round where it takes eight.

A program chooses keys (`comparisons="keys"`). Both are exact for every value. For keys the dealer sends more, ahead of
time, and the owners send less while the program runs.
"""

from collections.abc import Callable
from typing import Any

import torch

from mpcformer.correlations import Request
from mpcformer.correlations.keys import point_function, sign
from mpcformer.correlations.keys.sign import N_BITS
from mpcformer.engines.crypten.compat.library import crypten
from mpcformer.engines.crypten.compat.party import KEYS, current
from mpcformer.ring.packing import logical_shift

# How many keys are asked for at once: a hundred MiB, of which the pool has room for several.
MOST_KEYS = 1 << 16


def negative(share: torch.Tensor) -> torch.Tensor:
    """Return shares over Z_2^64 of whether each value is below zero.

    Ideal function: the top bit, exactly.
    Cost for n values: 1 round, 8 n bytes each way, 1,528 n dealer bytes, which rank 0 passes on ahead.
    Source: see `mpcformer.correlations.keys.sign`.

    Args:
        share: int64 of any shape.
    """

    def found(rank: int, keys: list[torch.Tensor], masked: torch.Tensor) -> torch.Tensor:
        root, levels, numbers, ends = keys
        top = logical_shift(masked, N_BITS)
        bit = (1 - 2 * top) * sign.evaluate(rank, root, levels, numbers, ends, masked)
        return bit + top if rank == 0 else bit

    return _by_keys("sign", share, found)


def zero(share: torch.Tensor) -> torch.Tensor:
    """Return shares over Z_2^64 of whether each value is zero.

    Ideal function: exact for every value.
    Cost for n values: 1 round, 8 n bytes each way, 1,032 n dealer bytes, which rank 0 passes on ahead.
    Source: see `mpcformer.correlations.keys.equality`.

    Args:
        share: int64 of any shape.
    """

    def found(rank: int, keys: list[torch.Tensor], masked: torch.Tensor) -> torch.Tensor:
        root, levels, leaves = keys
        return point_function.evaluate(rank, root, levels, leaves, masked)[0]

    return _by_keys("equality", share, found)


def _by_keys(
    kind: str, share: torch.Tensor, found: Callable[[int, list[torch.Tensor], torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Open each value under its mask, and return what an owner finds by its keys."""
    if not share.numel():
        return share.clone()
    state, flat = current(), share.reshape(-1)
    parts = [flat[at : at + MOST_KEYS] for at in range(0, flat.numel(), MOST_KEYS)]
    dealt = [state.store.take(Request(kind, (tuple(part.shape),))).shares for part in parts]
    opened = state.open([part + mask for part, (mask, *_) in zip(parts, dealt, strict=True)])
    if opened[0].device.type == "meta":
        return torch.empty_like(share)
    bits = [found(state.rank, keys, masked) for masked, (_, *keys) in zip(opened, dealt, strict=True)]
    return torch.cat(bits).view(share.shape)


def _one_bit(x: Any) -> Any:
    """Return the lowest bit of each word, shared by XOR, as a whole number, whatever the scale of what was compared.

    CrypTen multiplies it by the default scale over that one: 256 in place of 1 at 8 fraction bits, and 0 at 20.
    """
    x.encoder = crypten.encoder.FixedPointEncoder(precision_bits=0)
    return x.to(crypten.mpc.arithmetic, precision=0, bits=1)


def _below_zero_by_bits(x: Any) -> Any:
    """Return whether each value is below zero, by CrypTen's adder."""
    words = x.to(crypten.mpc.binary)
    words.share >>= N_BITS
    return _one_bit(words)


def _zero_by_bits(x: Any) -> Any:
    """Return whether each value is zero: whether one share is the other one's opposite."""
    shares = x.share, -x.share
    left, right = (crypten.mpc.MPCTensor(share, src=src, ptype=crypten.mpc.binary) for src, share in enumerate(shares))
    left._tensor = left._tensor.eq(right._tensor)
    return _one_bit(left)


def _at_any_scale(to_arithmetic: Callable[..., Any]) -> Callable[..., Any]:
    """Let words that are shared by XOR become numbers of a coarser scale, too: CrypTen multiplies them by 0 there."""

    def converted(words: Any, precision: int | None = None, bits: int | None = None) -> Any:
        encoder = crypten.encoder.FixedPointEncoder(precision_bits=precision)
        if words.encoder.scale <= encoder.scale:
            return to_arithmetic(words, precision=precision, bits=bits)
        return to_arithmetic(words, precision=words.encoder.scale.bit_length() - 1, bits=bits).encode_(encoder)

    return converted


def patch() -> None:
    """Let CrypTen's comparisons choose, by this thread's party."""
    shared: Any = crypten.mpc.MPCTensor
    converters = crypten.mpc.primitives.converters
    converters._B2A = _at_any_scale(converters._B2A)

    def choose(by_keys: Callable[[torch.Tensor], torch.Tensor], by_bits: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def chosen(self: Any) -> Any:
            if current().comparisons == KEYS and self.ptype == crypten.mpc.arithmetic:
                return shared.from_shares(by_keys(self.share), precision=0)
            return by_bits(self)

        return chosen

    shared._ltz, shared._eqz_2PC = choose(negative, _below_zero_by_bits), choose(zero, _zero_by_bits)
