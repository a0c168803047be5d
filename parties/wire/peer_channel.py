"""The channel of the protocols (`mpcformer.channel.Channel`) on the gRPC stream between the two owners.

`send` only queues a message and a thread of gRPC cuts it into frames, so both owners can send at the same time without
blocking each other. `receive` pulls frames straight from the stream: gRPC's flow control limits what waits in memory.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import grpc
import torch

from mpcformer.channel import Counters, Spec
from mpcformer.errors import MPCFormerError, ProtocolError
from mpcformer.ring.random import derive_key
from parties.wire import causes
from parties.wire.frame import Frame
from parties.wire.frames import StreamEndedError, from_frames, to_frames

# The two streams of a session: correlations are dealt on one and used on the other.
ASKING, DEALING = "asking", "dealing"
MAX_ROUNDS = 1 << 31
FLUSH_TIMEOUT_S = 5.0
# How often a wait asks whether the stream still stands.
POLL_S = 0.2


class PeerChannel:
    """One end of the stream between the owners.

    Args:
        party_id: the id of this party.
        peer_id: the id of the party at the other end.
        session_id: 16 bytes.
        stream: the name of the stream, if the owners have several in this session. It goes into the id that frames
            carry, so that a frame of one stream fits into no other.
    """

    def __init__(self, *, party_id: str, peer_id: str, session_id: bytes, stream: str = "") -> None:
        self.counters = Counters()
        # Looks at each frame that is sent, for whoever wants to see what crosses the wire.
        self.tap: Callable[[Frame], None] | None = None
        self._party_id, self._peer_id = party_id, peer_id
        self._session_id = derive_key(session_id, "stream", stream) if stream else session_id
        self._outbox: queue.SimpleQueue[tuple[int, int, list[torch.Tensor]] | None] = queue.SimpleQueue()
        self._n_queued, self._fewer_queued = 0, threading.Condition()
        self._incoming: Iterator[Frame] | None = None
        self._attached = threading.Event()
        self._sent_all = threading.Event()
        self._cancel: Callable[[], object] = lambda: None
        self._error: MPCFormerError | None = None
        self._waiting_since: float | None = None
        self._at_leisure = False

    def attach(self, incoming: Iterator[Frame], cancel: Callable[[], object]) -> None:
        """Join the stream.

        Args:
            incoming: the frames of the peer.
            cancel: ends the stream at once.
        """
        self._incoming, self._cancel = incoming, cancel
        self._attached.set()

    def outgoing(self) -> Iterator[Frame]:
        """Yield the frames to send, for gRPC to iterate over; end after `close`."""
        try:
            while (item := self._outbox.get()) is not None:
                operation, rounds, tensors = item
                frames = to_frames(tensors, session_id=self._session_id, sender=self._party_id, operation=operation)
                for frame in frames:
                    frame.header.round = rounds
                    self.counters.bytes_sent += frame.ByteSize()
                    if (tap := self.tap) is not None:
                        tap(frame)
                    yield frame
                n_bytes = _n_bytes(tensors)
                del item, tensors, frames, frame  # or they would last until the next message
                self._count_queued(-n_bytes)
        finally:
            self._sent_all.set()

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        """Queue one message. The tensors must not be changed afterwards.

        Raises:
            MPCFormerError: the session was aborted.
        """
        if self._error:
            raise self._error
        self._count_queued(_n_bytes(tensors))
        self._outbox.put((self.counters.messages_sent, self.counters.rounds, list(tensors)))
        self.counters.messages_sent += 1

    def _count_queued(self, n_bytes: int) -> None:
        with self._fewer_queued:
            self._n_queued += n_bytes
            self._fewer_queued.notify_all()

    def settle(self, n_bytes: int) -> None:
        """Wait until at most so many bytes of messages are queued; see `Channel.settle`.

        Raises:
            MPCFormerError: the session was aborted.
            PartyError: the stream has ended before.
        """
        self._waiting_since = time.monotonic()
        try:
            with self._fewer_queued:
                while self._n_queued > n_bytes:
                    if self._error:
                        raise self._error
                    if self._sent_all.is_set():
                        raise causes.connection_ended(self._peer_id)
                    self._fewer_queued.wait(POLL_S)
        finally:
            self._waiting_since = None

    def receive(self, specs: Sequence[Spec]) -> list[torch.Tensor]:
        """Return the next message of the peer.

        Raises:
            PartyError: the peer's stream ended, or the session was aborted.
            ProtocolError: the message that arrived does not match `specs`.
        """
        self._waiting_since = start = time.monotonic()
        try:
            while not self._attached.wait(POLL_S):
                if self._error:
                    raise self._error
            assert self._incoming is not None
            tensors, n_bytes = from_frames(
                self._noting_rounds(self._incoming),
                specs,
                session_id=self._session_id,
                sender=self._peer_id,
                operation=self.counters.messages_received,
            )
        except grpc.RpcError as error:
            raise self._error or causes.of_call(self._peer_id, error) from None
        except StreamEndedError:
            raise self._error or causes.connection_ended(self._peer_id) from None
        except ProtocolError as error:
            raise self._error or error from None
        finally:
            self._waiting_since = None
        self.counters.seconds_waited += time.monotonic() - start
        self.counters.messages_received += 1
        self.counters.bytes_received += n_bytes
        return tensors

    def receive_at_leisure(self, specs: Sequence[Spec]) -> list[torch.Tensor]:
        """Do as `receive`, for a message that the peer sends when it likes; the wait does not count in `waited_s`."""
        self._at_leisure = True
        try:
            return self.receive(specs)
        finally:
            self._at_leisure = False

    def _noting_rounds(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame in frames:
            self.counters.rounds = max(self.counters.rounds, min(frame.header.round, MAX_ROUNDS) + 1)
            yield frame

    def waited_s(self) -> float:
        """Return for how many seconds `receive` or `settle` has been waiting; 0 if none is."""
        since = self._waiting_since
        return 0.0 if since is None or self._at_leisure else time.monotonic() - since

    def idle_s(self) -> float:
        """Return for how many seconds the peer has not sent what it may send when it likes; 0 if none is awaited."""
        since = self._waiting_since
        return 0.0 if since is None or not self._at_leisure else time.monotonic() - since

    def abort(self, error: MPCFormerError) -> None:
        """End the session from another thread; a `receive` that is waiting raises `error`."""
        self._error = self._error or error
        self._cancel()
        self.close()

    def close(self) -> None:
        """Send nothing more: `outgoing` ends after the messages that are queued."""
        self._outbox.put(None)

    def finish(self) -> None:
        """Send what is queued, wait for that a limited time, and end the stream."""
        self.close()
        if not self._sent_all.wait(FLUSH_TIMEOUT_S):
            self._cancel()


def _n_bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
