"""Stand-ins on meta tensors, with which an engine's own forward pass tells its plan and its cost without running."""

import threading
from collections.abc import Callable, Sequence

import torch

from mpcformer.channel import Channel, Counters, Spec, memory_pair
from mpcformer.correlations import Dealt, Request, sketch


class PlanRecorder:
    """A correlation store that records what is asked for, and gives back tensors without values."""

    def __init__(self, rank: int) -> None:
        self.plan: list[Request] = []
        self._rank = rank

    def take(self, request: Request) -> Dealt:
        """Note the request."""
        self.plan.append(request)
        return sketch(request, self._rank)

    def preview(self, operation: int, request: Request) -> Dealt:
        """Return what will be asked for, without values."""
        return sketch(request, self._rank)

    def skip(self, request: Request) -> None:
        """Note the request."""
        self.plan.append(request)


class SilentChannel:
    """A channel for plans, on which every awaited message has arrived. It counts each message received as a round."""

    def __init__(self) -> None:
        self.counters = Counters()

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        """Count a message."""
        self.counters.messages_sent += 1
        self.counters.bytes_sent += sum(t.numel() * t.element_size() for t in tensors)

    def receive(self, specs: Sequence[Spec]) -> list[torch.Tensor]:
        """Count a message of the expected shapes."""
        self.counters.messages_received += 1
        self.counters.rounds += 1
        self.counters.bytes_received += sum(spec.n_bytes for spec in specs)
        return [torch.empty(spec.shape, dtype=spec.dtype, device="meta") for spec in specs]


def rehearse(owner: Callable[[int, Channel], None]) -> list[Counters]:
    """Run owner(rank, channel) for both owners, joined in memory, and return what each one's channel counted."""
    ends = memory_pair()
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            owner(rank, ends[rank])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [end.counters for end in ends]
