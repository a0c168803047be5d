"""Stand-ins for channel and store, with which an engine's own forward pass on meta tensors tells its plan."""

from collections.abc import Sequence

import torch

from mpcformer.channel import Counters, Spec
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
