"""A party's tie to the coordinator: one stream for life. Hello, heartbeats, commands; if it breaks the party ends."""

import queue
import resource
import threading
import time
from collections.abc import Callable, Iterator

import grpc

from mpcformer.errors import MPCFormerError, PartyError
from parties.config import PROTOCOL_VERSION, PartyConfig
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import open_channel

HEARTBEAT_S = 1.0
# A stopped process keeps its connections open: only missing heartbeats tell. Both sides use this.
SILENCE_S = 8.0
FLUSH_TIMEOUT_S = 3.0


def peak_rss_bytes() -> int:
    """The largest resident memory this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Membership:
    """The Join stream of one party.

    Raises:
        PartyError: the coordinator cannot be reached.
    """

    def __init__(self, config: PartyConfig) -> None:
        self._config = config
        self._outbox: queue.SimpleQueue[pb.PartyEvent | None] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[pb.Job | MPCFormerError | None] = queue.SimpleQueue()
        self._on_abort: list[Callable[[MPCFormerError], None]] = []
        self._watched: list[tuple[str, Callable[[], float]]] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._last_heard = time.monotonic()
        self.error: MPCFormerError | None = None
        self._channel = open_channel(config.coordinator, config.peers.coordinator, config.tls)
        try:
            grpc.channel_ready_future(self._channel).result(timeout=config.join_timeout_s)
        except grpc.FutureTimeoutError:
            raise PartyError(
                config.peers.coordinator,
                f"no answer at {config.coordinator} for {config.join_timeout_s:.0f} s",
                "check the address, that it runs, and that both certificates come from one authority",
            ) from None
        self.send(hello=pb.Hello(protocol_version=PROTOCOL_VERSION, role=config.role))
        self._stream = rpc.CoordinatorStub(self._channel).Join(self._events())
        threading.Thread(target=self._listen, name="commands", daemon=True).start()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def send(self, **event: object) -> None:
        """Queue one event, named as in the PartyEvent message."""
        self._outbox.put(pb.PartyEvent(**event))  # type: ignore[arg-type]

    def on_abort(self, callback: Callable[[MPCFormerError], None]) -> None:
        """Call `callback` once when the session ends badly; at once if it has."""
        with self._lock:
            if self.error is None:
                self._on_abort.append(callback)
                return
        callback(self.error)

    def watch(self, peer: str, waited_s: Callable[[], float]) -> None:
        """End the session when `peer` is waited for longer than the configured deadline."""
        self._watched.append((peer, waited_s))

    def job(self) -> pb.Job | None:
        """Wait for the job; None when the coordinator says that all is done.

        Raises:
            MPCFormerError: the session was aborted.
        """
        item = self._jobs.get()
        if isinstance(item, MPCFormerError):
            raise item
        return item

    def fail(self, error: MPCFormerError) -> None:
        """Report a failure, unless the coordinator knows already, and let it out."""
        if self.error is None:
            culprit = error.party if isinstance(error, PartyError) else self._config.id
            what = error.what.removeprefix(f"{culprit}: ")
            self.send(failure=pb.Failure(culprit=culprit, what=what, remedy=error.remedy, exit_code=error.exit_code))
        self.close()

    def close(self) -> None:
        """Send what is queued and leave."""
        self._outbox.put(None)
        self._ended.wait(FLUSH_TIMEOUT_S)
        self._channel.close()

    def _events(self) -> Iterator[pb.PartyEvent]:
        while (event := self._outbox.get()) is not None:
            yield event

    def _listen(self) -> None:
        name = self._config.peers.coordinator
        try:
            for command in self._stream:
                self._last_heard = time.monotonic()
                kind = command.WhichOneof("command")
                if kind == "job":
                    self._jobs.put(command.job)
                elif kind == "finish":
                    self._jobs.put(None)
                elif kind == "abort":
                    self._abort(PartyError(command.abort.culprit, command.abort.reason))
            self._abort(PartyError(name, "it ended the session"), only_if_idle=True)
        except grpc.RpcError as error:
            detail = error.details() if isinstance(error, grpc.Call) else str(error)
            self._abort(PartyError(name, f"the connection to it broke: {detail or 'connection lost'}"))
        finally:
            self._ended.set()

    def _abort(self, error: MPCFormerError, only_if_idle: bool = False) -> None:
        with self._lock:
            if self.error is not None:
                return
            if not only_if_idle:
                self.error = error
            callbacks, self._on_abort = self._on_abort, []
        self._jobs.put(error)
        if not only_if_idle:
            for callback in callbacks:
                callback(error)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            self.send(heartbeat=pb.Heartbeat())
            if time.monotonic() - self._last_heard > SILENCE_S:
                self._abort(PartyError(self._config.peers.coordinator, f"stopped answering for {SILENCE_S:.0f} s"))
            for peer, waited_s in self._watched:
                if waited_s() > self._config.deadline_s:
                    self._abort_and_report(PartyError(peer, f"sent nothing for {self._config.deadline_s:.0f} s"))

    def _abort_and_report(self, error: PartyError) -> None:
        self.send(failure=pb.Failure(culprit=error.party, what=error.what.removeprefix(f"{error.party}: ")))
        self._abort(error)
