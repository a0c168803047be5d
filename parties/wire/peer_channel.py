"""The protocols' Channel on the owners' gRPC stream.

Sending is queued and cut into frames by gRPC's own thread, so that both owners can send at once without blocking.
Receiving pulls frames straight from the stream: gRPC's flow control bounds what waits in memory.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import grpc
import torch

from mpcformer.channel import Counters, Spec
from mpcformer.errors import MPCFormerError, PartyError, ProtocolError
from parties.stubs import parties_pb2 as pb
from parties.wire.frames import from_frames, to_frames

MAX_ROUNDS = 1 << 31
FLUSH_TIMEOUT_S = 5.0


class PeerChannel:
    """One end of the stream between the owners.

    Args:
        me, peer: party ids.
        session_id: 16 bytes.
    """

    def __init__(self, *, me: str, peer: str, session_id: bytes) -> None:
        self.counters = Counters()
        self._me, self._peer, self._session_id = me, peer, session_id
        self._outbox: queue.SimpleQueue[tuple[int, int, list[torch.Tensor]] | None] = queue.SimpleQueue()
        self._incoming: Iterator[pb.Frame] | None = None
        self._attached = threading.Event()
        self._sent_all = threading.Event()
        self._cancel: Callable[[], object] = lambda: None
        self._error: MPCFormerError | None = None
        self._waiting_since: float | None = None

    def attach(self, incoming: Iterator[pb.Frame], cancel: Callable[[], object]) -> None:
        """Join the stream: its frames, and how to end it."""
        self._incoming, self._cancel = incoming, cancel
        self._attached.set()

    def outgoing(self) -> Iterator[pb.Frame]:
        """The frames to send, for gRPC to iterate over; ends after `close`."""
        try:
            while (item := self._outbox.get()) is not None:
                operation, rounds, tensors = item
                for frame in to_frames(tensors, session_id=self._session_id, sender=self._me, operation=operation):
                    frame.round = rounds
                    self.counters.bytes_sent += frame.ByteSize()
                    yield frame
        finally:
            self._sent_all.set()

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        """Queue one message; the tensors must not be changed afterwards."""
        self._outbox.put((self.counters.messages_sent, self.counters.rounds, list(tensors)))
        self.counters.messages_sent += 1

    def receive(self, specs: Sequence[Spec]) -> list[torch.Tensor]:
        """The next message.

        Raises:
            PartyError: the peer's stream ended, or the session was aborted.
            ProtocolError: something else than `specs` arrived.
        """
        self._waiting_since = start = time.monotonic()
        try:
            while not self._attached.wait(0.2):
                if self._error:
                    raise self._error
            assert self._incoming is not None
            tensors, n_bytes = from_frames(
                self._noting_rounds(self._incoming),
                specs,
                session_id=self._session_id,
                sender=self._peer,
                operation=self.counters.messages_received,
            )
        except grpc.RpcError as error:
            detail = error.details() if isinstance(error, grpc.Call) else str(error)
            raise self._error or PartyError(self._peer, f"its stream broke: {detail or 'connection lost'}") from None
        except ProtocolError as error:
            ended = "stream ended" in str(error)
            raise self._error or (PartyError(self._peer, "it ended the stream") if ended else error) from None
        finally:
            self._waiting_since = None
        self.counters.seconds_waited += time.monotonic() - start
        self.counters.messages_received += 1
        self.counters.bytes_received += n_bytes
        return tensors

    def _noting_rounds(self, frames: Iterator[pb.Frame]) -> Iterator[pb.Frame]:
        for frame in frames:
            self.counters.rounds = max(self.counters.rounds, min(frame.round, MAX_ROUNDS) + 1)
            yield frame

    def waited_s(self) -> float:
        """Seconds that `receive` has been waiting, 0 if it is not."""
        since = self._waiting_since
        return 0.0 if since is None else time.monotonic() - since

    def abort(self, error: MPCFormerError) -> None:
        """End the session from another thread: a waiting `receive` raises `error`."""
        self._error = self._error or error
        self._cancel()
        self.close()

    def close(self) -> None:
        """No more to send."""
        self._outbox.put(None)

    def finish(self) -> None:
        """Let what is queued go out, but not for ever, and end the stream."""
        self.close()
        if not self._sent_all.wait(FLUSH_TIMEOUT_S):
            self._cancel()
