"""Two parties in two threads of this process, with a dealer: what most tests of shared computation run on."""

import threading
from collections.abc import Callable
from typing import Any

import torch

from mpcformer.channel import Counters, MemoryChannel, memory_pair
from mpcformer.correlations import Dealt, Request, deal, expand, session_key, unpacked, weight_mask_key
from mpcformer.engines.crypten import compat as compat
from mpcformer.engines.crypten import ops as ops
from mpcformer.ring.random import fresh_key


class InlineDealer:
    """A correlation store that deals on demand, from both seeds."""

    def __init__(self, party: int, seeds: list[bytes], session_id: bytes) -> None:
        self.party, self.seeds, self.session_id, self.requests = party, seeds, session_id, []

    def take(self, request: Request) -> Dealt:
        keys = [session_key(seed, self.session_id, len(self.requests), request) for seed in self.seeds]
        self.requests.append(request)
        correction = unpacked(request, deal(request, *keys, self.weight_mask_key())) if self.party == 0 else []
        return expand(request, keys[self.party], self.party, correction)

    def preview(self, operation: int, request: Request) -> Dealt:
        key = session_key(self.seeds[self.party], self.session_id, operation, request)
        return expand(request, key, self.party, [])

    def skip(self, request: Request) -> None:
        self.requests.append(request)

    def weight_mask_key(self) -> bytes:
        return weight_mask_key(self.seeds[0], self.session_id)


def in_two_threads(function: Callable[[int], Any]) -> list[Any]:
    """function(party) for both parties at once; the first exception is raised here."""
    results: list[Any] = [None, None]
    errors: list[BaseException] = []

    def run(party: int) -> None:
        try:
            results[party] = function(party)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(party,), daemon=True) for party in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    return results


def run_pair(
    function: Callable[[int], Any], channels: tuple[MemoryChannel, MemoryChannel] | None = None
) -> tuple[list[Any], Counters, list[Request]]:
    """function(party) inside CrypTen, both parties; also party 0's counters and the correlations asked for."""
    ends = channels or memory_pair(timeout_s=20)
    seeds, session_id, zero_key = [fresh_key(), fresh_key()], fresh_key(), fresh_key()
    dealers = [InlineDealer(party, seeds, session_id) for party in (0, 1)]

    def run(party: int) -> Any:
        state = compat.PartyState(rank=party, channel=ends[party], store=dealers[party], zero_key=zero_key)
        with compat.active(state):
            return function(party)

    return in_two_threads(run), ends[0].counters, dealers[0].requests


def shared(values: torch.Tensor, owner: int = 1) -> Any:
    """`values` shared by `owner`, inside `run_pair`."""
    mine = compat.current().rank == owner
    return ops.Shared(tensor=values if mine else None, size=values.shape, src=owner)
