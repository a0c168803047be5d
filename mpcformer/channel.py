"""The channel to the other owner. A protocol can send tensors and receive tensors, and nothing else.

`memory_pair` joins two threads for tests; the package `parties` implements the same channel on a gRPC stream.
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
    """The dtype and shape that a receiver expects of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """The bytes of all elements together."""
        n_elements = 1
        for size in self.shape:
            n_elements *= size
        return n_elements * self.dtype.itemsize

    @staticmethod
    def of(tensor: torch.Tensor) -> "Spec":
        """Describe an existing tensor."""
        return Spec(tensor.dtype, tuple(tensor.shape))


@dataclass
class Counters:
    """Counts of the messages that went over a channel.

    Attributes:
        bytes_sent, bytes_received: the bytes of all messages.
        messages_sent, messages_received: the number of messages.
        rounds: the number of messages on the critical path. Every message tells how many messages its sender had waited
            for, and the receiver counts one more than that. An opening in both directions is therefore one round; a
            question and its answer are two.
        seconds_waited: the time spent in `receive`.
    """

    bytes_sent: int = 0
    bytes_received: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    rounds: int = 0
    seconds_waited: float = 0.0

    def minus(self, before: "Counters") -> "Counters":
        """Return the difference since `before`."""
        return Counters(*(getattr(self, name) - getattr(before, name) for name in self.__dataclass_fields__))

    def copy(self) -> "Counters":
        """Return a snapshot."""
        return Counters(**vars(self))


class Channel(Protocol):
    """An ordered, reliable, authenticated link to the other owner. The two ends match messages by their order."""

    counters: Counters

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        """Queue one message of several tensors and return without waiting for the receiver."""

    def settle(self, n_bytes: int) -> None:
        """Wait until at most so many bytes of messages are queued, so that their memory is free again.

        Only an end that sends while the other one does nothing but receive may wait, or both might wait for each other.

        Raises:
            PartyError: the peer is gone or silent.
        """

    def receive(self, specs: Sequence[Spec]) -> list[torch.Tensor]:
        """Return the next message, which must have exactly these dtypes and shapes.

        Raises:
            ProtocolError: the message has other tensors.
            PartyError: the peer is gone or silent.
        """


class MemoryChannel:
    """One end of an in-memory pair. It counts the bytes of the tensors, because there are no frames."""

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
        """Queue one message. The tensors are copied, because the sender may reuse them."""
        self.counters.messages_sent += 1
        self.counters.bytes_sent += sum(t.numel() * t.element_size() for t in tensors)
        self._outbox.put((self.counters.rounds, [t.clone() for t in tensors]))

    def settle(self, n_bytes: int) -> None:
        """Do nothing: what is queued has arrived."""

    def receive(self, specs: Sequence[Spec]) -> list[torch.Tensor]:
        """Return the next message; see `Channel.receive`."""
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
    """Return two joined channels for two threads of the same process."""
    left: queue.Queue[tuple[int, list[torch.Tensor]]] = queue.Queue()
    right: queue.Queue[tuple[int, list[torch.Tensor]]] = queue.Queue()
    return MemoryChannel(left, right, timeout_s), MemoryChannel(right, left, timeout_s)
