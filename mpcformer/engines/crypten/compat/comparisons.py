"""Comparisons by keys of signs and of equality: one round, where CrypTen's adder of bits takes eight.

A program chooses them (`comparisons="keys"`). They are exact for every value, as CrypTen's are. The dealer sends more
for each, ahead of time, and the owners less while the program runs.
"""

from collections.abc import Callable
from typing import Any

import torch

from mpcformer.correlations import Request, point_function, sign
from mpcformer.correlations.sign import N_BITS
from mpcformer.engines.crypten.compat.library import crypten
from mpcformer.engines.crypten.compat.party import KEYS, current
from mpcformer.ring.packing import logical_shift

# How many keys are asked for at once: a hundred MiB, of which the pool has room for several.
MOST_KEYS = 1 << 16


def negative(share: torch.Tensor) -> torch.Tensor:
    """Return shares over Z_2^64 of whether each value is below zero.

    Ideal function: the top bit, exactly.
    Cost for n values: 1 round, 8 n bytes each way, 1,528 n dealer bytes, which rank 0 passes on ahead.
    Source: see `mpcformer.correlations.sign`.

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
    Source: see `mpcformer.correlations.equality`.

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


def patch() -> None:
    """Let CrypTen's comparisons choose, by this thread's party."""
    shared: Any = crypten.mpc.MPCTensor
    below_zero = shared._ltz

    def by_keys(self: Any) -> bool:
        return bool(current().comparisons == KEYS and self.ptype == crypten.mpc.arithmetic)

    def _ltz(self: Any) -> Any:
        return shared.from_shares(negative(self.share), precision=0) if by_keys(self) else below_zero(self)

    def _eqz(self: Any) -> Any:
        if by_keys(self):
            return shared.from_shares(zero(self.share), precision=0)
        # As CrypTen does it, but for the precision: it gives 65536 in place of 1 where numbers are whole.
        x, y = (shared(share, src=src, ptype=crypten.mpc.binary) for src, share in enumerate((self.share, -self.share)))
        x._tensor = x._tensor.eq(y._tensor)
        x.encoder = self.encoder
        result = x.to(crypten.mpc.arithmetic, precision=0 if self.encoder.scale == 1 else None, bits=1)
        result.encoder._scale = 1
        return result

    shared._ltz, shared._eqz_2PC = _ltz, _eqz
