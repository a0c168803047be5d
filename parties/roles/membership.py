"""A party's tie to the coordinator for one session: events go out, commands come in, heartbeats both ways.

A data owner dials the coordinator (`join`), a service is dialled by it (service.py); from there on both are the same.
If the tie breaks, the session ends.
"""

import queue
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc

from mpcformer import __version__
from mpcformer.errors import MPCFormerError, PartyError
from parties.settings.config import PROTOCOL_VERSION, DataOwnerConfig, ServiceConfig
from parties.settings.insecure import text as insecure_text
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire.frames import open_channel, wait_until_ready

HEARTBEAT_S = 1.0
# A stopped process keeps its connections open: only missing heartbeats tell. Both sides use this.
SILENCE_S = 8.0
FLUSH_TIMEOUT_S = 3.0
# The coordinator weighs evidence for 1.5 s.
VERDICT_TIMEOUT_S = 4.0


def peak_rss_bytes() -> int:
    """The largest resident memory this process ever had."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: there `ru_maxrss` is inherited from the process that spawned this one
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Membership:
    """One party in one session.

    Args:
        config: this party's.
        role: as it says hello.
        coordinator: the other end's id.
    """

    def __init__(self, config: ServiceConfig | DataOwnerConfig, *, role: str, coordinator: str) -> None:
        self.me, self._coordinator, self._deadline_s = config.id, coordinator, config.deadline_s
        self._max_session_s = config.max_session_s if isinstance(config, ServiceConfig) else 0.0
        self._outbox: queue.SimpleQueue[pb.PartyEvent | None] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[pb.Job | MPCFormerError | None] = queue.SimpleQueue()
        self._on_abort: list[Callable[[MPCFormerError], None]] = []
        self._watched: list[tuple[str, Callable[[], float]]] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._aborted = threading.Event()
        self._done = threading.Event()
        self._has_job = False
        self._over = False  # the session is finished, or this party leaves
        self._began = time.monotonic()
        self._last_heard = time.monotonic()
        self._close: Callable[[], object] = lambda: None
        self.error: MPCFormerError | None = None
        said = insecure_text(config.insecure)
        self.send(hello=pb.Hello(protocol_version=PROTOCOL_VERSION, role=role, release=__version__, insecure=said))

    def listen(self, commands: Iterator[pb.Command], close: Callable[[], object] = lambda: None) -> None:
        """Take commands from a stream, in a thread of its own, and begin to send heartbeats; `close` ends it."""
        self._close = close
        threading.Thread(target=self._listen, args=(commands,), name="commands", daemon=True).start()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def events(self) -> Iterator[pb.PartyEvent]:
        """What gRPC sends: the events, until `leave`."""
        while (event := self._outbox.get()) is not None:
            yield event

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

    def job(self, timeout_s: float | None = None) -> pb.Job | None:
        """Wait for the job; None when the coordinator says that all is done.

        Raises:
            MPCFormerError: the session was aborted, or no command came in time.
        """
        try:
            item = self._jobs.get(timeout=timeout_s)
        except queue.Empty:
            raise PartyError(self._coordinator, f"gave no job for {timeout_s:.0f} s") from None
        if isinstance(item, MPCFormerError):
            raise item
        return item

    def part_done(self) -> None:
        """From now on the coordinator may dismiss this party: call it before the last word, then `dismissed`."""
        self._done.set()

    def dismissed(self) -> None:
        """Wait until the coordinator says that all is done.

        Raises:
            MPCFormerError: the session was aborted.
        """
        self.job()

    def fail(self, error: MPCFormerError) -> MPCFormerError:
        """Report a failure and leave; the first cause, as far as it is known.

        A broken stream may be the end of another party because of a third: the coordinator sees all, and weighs.
        """
        if self.error is None:
            self._report(error)
            if isinstance(error, PartyError) and error.party != self.me:
                self._aborted.wait(VERDICT_TIMEOUT_S)
        self.leave()
        return self.error or error

    def abort(self, error: MPCFormerError) -> None:
        """End the session from another thread, and tell the coordinator why."""
        self._report(error)
        self._abort(error)

    def _report(self, error: MPCFormerError) -> None:
        culprit = error.party if isinstance(error, PartyError) else self.me
        what = error.told.removeprefix(f"{culprit}: ")
        self.send(failure=pb.Failure(culprit=culprit, what=what, remedy=error.remedy, exit_code=error.exit_code))

    def leave(self) -> None:
        """Send what is queued and end the tie."""
        self._over = True
        self._outbox.put(None)
        self._ended.wait(FLUSH_TIMEOUT_S)
        self._ended.set()
        self._close()

    def lost(self) -> None:
        """The stream is gone."""
        if not self._ended.is_set():
            self._abort(PartyError(self._coordinator, "the connection to it broke: connection lost"))
            self._outbox.put(None)
            self._ended.set()

    def _listen(self, commands: Iterator[pb.Command]) -> None:
        try:
            for command in commands:
                self._last_heard = time.monotonic()
                kind = command.WhichOneof("command")
                if kind == "job" and not self._has_job:
                    self._has_job = True
                    self._jobs.put(command.job)
                elif kind == "job":
                    self.abort(PartyError(self._coordinator, "it gave a second job"))
                elif kind == "finish" and self._done.is_set():
                    self._over = True
                    self._jobs.put(None)
                elif kind == "finish":
                    # Nobody may be left computing in a session that its coordinator believes to be over.
                    self.abort(PartyError(self._coordinator, "it dismissed this party before its part was done"))
                elif kind == "abort":
                    self._abort(PartyError(command.abort.culprit, command.abort.reason))
            # A server's stream ends like this also when its client died.
            self._abort(PartyError(self._coordinator, "the connection to it ended"))
        except Exception as error:  # a client's stream raises RpcError, a server's a bare Exception
            detail = error.details() if isinstance(error, grpc.Call) else ""
            self._abort(PartyError(self._coordinator, f"the connection to it broke: {detail or 'connection lost'}"))
        finally:
            self._ended.set()

    def _abort(self, error: MPCFormerError) -> None:
        with self._lock:
            if self.error is not None or self._over:
                return
            self.error = error
            callbacks, self._on_abort = self._on_abort, []
        self._aborted.set()
        self._jobs.put(error)
        for callback in callbacks:
            callback(error)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            self.send(heartbeat=pb.Heartbeat())
            if time.monotonic() - self._last_heard > SILENCE_S:
                self._abort(PartyError(self._coordinator, f"stopped answering for {SILENCE_S:.0f} s"))
            if self._max_session_s and time.monotonic() - self._began > self._max_session_s:
                self.abort(PartyError(self.me, f"the session took longer than {self._max_session_s:.0f} s"))
            for peer, waited_s in self._watched:
                if waited_s() > self._deadline_s:
                    self.abort(PartyError(peer, f"sent nothing for {self._deadline_s:.0f} s"))


def join(config: DataOwnerConfig) -> Membership:
    """Dial the coordinator.

    Raises:
        PartyError: it cannot be reached.
    """
    coordinator = config.coordinator
    channel = open_channel(coordinator.address, coordinator.id, config.credentials)
    wait_until_ready(channel, coordinator.id, coordinator.address, config.join_timeout_s)
    membership = Membership(config, role=config.role, coordinator=coordinator.id)
    membership.listen(rpc.CoordinatorStub(channel).Join(membership.events()), channel.close)
    return membership
