"""What a protocol may do with the other owner: send tensors, receive tensors. Nothing else.

`memory_pair` joins two threads for tests; parties/ implements the same two verbs on a gRPC stream.
"""

import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from mpcformer.errors import PartyError, ProtocolError


@dataclass(frozen=True)
class Spec:
    """What a receiver expects of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor's elements."""
        n_elements = 1
        for size in self.shape:
            n_elements *= size
        return n_elements * self.dtype.itemsize

    @staticmethod
    def of(tensor: torch.Tensor) -> "Spec":
        """The description of an existing tensor."""
        return Spec(tensor.dtype, tuple(tensor.shape))


@dataclass
class Counters:
    """What went over a channel.

    rounds: messages on the critical path, one way each; a message tells how many its sender had waited for, and the
    receiver goes on from there plus one. So a two-way opening is one round, a question and its answer two.
    seconds_waited: spent in `receive`.
    """

    bytes_sent: int = 0
    bytes_received: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    rounds: int = 0
    seconds_waited: float = 0.0

    def minus(self, before: "Counters") -> "Counters":
        """The difference since `before`."""
        return Counters(*(getattr(self, name) - getattr(before, name) for name in self.__dataclass_fields__))

    def copy(self) -> "Counters":
        """A snapshot."""
        return Counters(**vars(self))


class Channel(Protocol):
    """An ordered, reliable, authenticated link to the other owner. Messages match by order."""

    counters: Counters

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        """Queue one message of several tensors; returns without waiting for the receiver."""

    def receive(self, specs: Sequence[Spec]) -> list[torch.Tensor]:
        """The next message, which must have exactly these dtypes and shapes.

        Raises:
            ProtocolError: something else arrived.
            PartyError: the peer is gone or silent.
        """


class MemoryChannel:
    """One end of an in-memory pair. Counts the tensors' bytes, as there are no frames."""

    def __init__(
        self,
        inbox: "queue.Queue[tuple[int, list[torch.Tensor]]]",
        outbox: "queue.Queue[tuple[int, list[torch.Tensor]]]",
        timeout_s: float,
    ) -> None:
        self.counters = Counters()
        self._inbox = inbox
        self._outbox = outbox
        self._timeout_s = timeout_s

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        """Queue one message; the tensors are copied, as the sender may reuse them."""
        self.counters.messages_sent += 1
        self.counters.bytes_sent += sum(t.numel() * t.element_size() for t in tensors)
        self._outbox.put((self.counters.rounds, [t.clone() for t in tensors]))

    def receive(self, specs: Sequence[Spec]) -> list[torch.Tensor]:
        """The next message."""
        start = time.monotonic()
        try:
            rounds, tensors = self._inbox.get(timeout=self._timeout_s)
        except queue.Empty:
            raise PartyError("peer", f"sent nothing for {self._timeout_s} s") from None
        self.counters.seconds_waited += time.monotonic() - start
        arrived = [Spec.of(t) for t in tensors]
        if arrived != list(specs):
            raise ProtocolError(f"expected {list(specs)}, the peer sent {arrived}")
        self.counters.messages_received += 1
        self.counters.bytes_received += sum(spec.n_bytes for spec in specs)
        self.counters.rounds = max(self.counters.rounds, rounds + 1)
        return tensors


def memory_pair(timeout_s: float = 60.0) -> tuple[MemoryChannel, MemoryChannel]:
    """Two joined channels for two threads of one process."""
    left: queue.Queue[tuple[int, list[torch.Tensor]]] = queue.Queue()
    right: queue.Queue[tuple[int, list[torch.Tensor]]] = queue.Queue()
    return MemoryChannel(left, right, timeout_s), MemoryChannel(right, left, timeout_s)
