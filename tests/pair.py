"""Two owners in two threads of this process, with a dealer: what most tests of shared computation run on."""

import threading
from collections.abc import Callable
from typing import Any

import torch

from mpcformer.channel import Counters, MemoryChannel, memory_pair
from mpcformer.correlations import (
    Dealt,
    Request,
    correction_specs,
    deal,
    expand,
    session_key,
    unpacked,
    weight_mask_key,
)
from mpcformer.engines.crypten import compat as compat
from mpcformer.engines.crypten import ops as ops
from mpcformer.protocols.party import Party
from mpcformer.ring.random import Stream, fresh_key


class InlineDealer:
    """A correlation store that deals on demand, from both seeds.

    Attributes:
        requests: what was asked for, in order.
        dealt_bytes: the bytes of all corrections for rank 0.
    """

    def __init__(self, rank: int, seeds: list[bytes], session_id: bytes) -> None:
        self.rank, self.seeds, self.session_id = rank, seeds, session_id
        self.requests: list[Request] = []
        self.dealt_bytes = 0

    def take(self, request: Request) -> Dealt:
        keys = [session_key(seed, self.session_id, len(self.requests), request) for seed in self.seeds]
        self.requests.append(request)
        correction = deal(request, *keys, self.weight_mask_key()) if self.rank == 0 else []
        self.dealt_bytes += sum(tensor.numel() * tensor.element_size() for tensor in correction)
        return expand(request, keys[self.rank], self.rank, unpacked(request, correction) if correction else [])

    def preview(self, operation: int, request: Request) -> Dealt:
        key = session_key(self.seeds[self.rank], self.session_id, operation, request)
        return expand(request, key, self.rank, [])

    def skip(self, request: Request) -> None:
        self.requests.append(request)

    def weight_mask_key(self) -> bytes:
        return weight_mask_key(self.seeds[0], self.session_id)


def in_two_threads(function: Callable[[int], Any]) -> list[Any]:
    """Run function(rank) for both owners at once and return both results; the first exception is raised here."""
    results: list[Any] = [None, None]
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = function(rank)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    return results


def run_protocol(function: Callable[[Party], Any]) -> tuple[list[Any], list[Counters], list[Request]]:
    """Run function(party) at both owners.

    Returns:
        Both results, what each owner's channel counted, and the correlations that were asked for.
    """
    ends: tuple[MemoryChannel, MemoryChannel] = memory_pair(timeout_s=20)
    seeds, session_id = [fresh_key(), fresh_key()], fresh_key()
    dealers = [InlineDealer(rank, seeds, session_id) for rank in (0, 1)]
    results = in_two_threads(lambda rank: function(Party(rank, ends[rank], dealers[rank])))
    return results, [end.counters for end in ends], dealers[0].requests


def share(x: torch.Tensor, bits: int = 64) -> list[torch.Tensor]:
    """Split x into two shares over Z_2^bits, with meaningless bits above."""
    mask = Stream(fresh_key()).int64(tuple(x.shape))
    noise = Stream(fresh_key()).int64(tuple(x.shape)) << bits if bits < 64 else 0
    return [x - mask + noise, mask]


def dealer_bytes(requests: list[Request]) -> int:
    """Return the bytes of the corrections for these requests."""
    return sum(spec.n_bytes for request in requests for spec in correction_specs(request))


def integers(*shape: int, bits: int, signed: bool = True) -> torch.Tensor:
    """Draw uniform integers of so many bits; the first few are the edges of the range."""
    x = Stream(fresh_key()).bits(shape, bits)
    x = x - (1 << (bits - 1)) if signed else x
    edges = torch.tensor([-(1 << (bits - 1)), (1 << (bits - 1)) - 1, 0, -1] if signed else [0, (1 << bits) - 1])
    x.view(-1)[: edges.numel()] = edges[: x.numel()]
    return x


def run_pair(
    function: Callable[[int], Any], channels: tuple[MemoryChannel, MemoryChannel] | None = None
) -> tuple[list[Any], Counters, list[Request]]:
    """Run function(rank) at both owners inside CrypTen.

    Returns:
        Both results, what rank 0's channel counted, and the correlations that were asked for.
    """
    ends = channels or memory_pair(timeout_s=20)
    seeds, session_id, zero_key = [fresh_key(), fresh_key()], fresh_key(), fresh_key()
    dealers = [InlineDealer(rank, seeds, session_id) for rank in (0, 1)]

    def run(rank: int) -> Any:
        state = compat.PartyState(rank=rank, channel=ends[rank], store=dealers[rank], zero_key=zero_key)
        with compat.active(state):
            return function(rank)

    return in_two_threads(run), ends[0].counters, dealers[0].requests


def shared(values: torch.Tensor, owner: int = 1) -> Any:
    """Share `values`, which the owner with the rank `owner` knows; inside `run_pair`."""
    mine = compat.current().rank == owner
    return ops.Shared(tensor=values if mine else None, size=values.shape, src=owner)
