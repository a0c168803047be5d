"""The connection of a party to the coordinator for one session: it sends events and receives commands.

A data owner calls the coordinator (`join`), and the coordinator calls a service (service.py); from then on both are
treated alike. Both ends send heartbeats. If the connection breaks, the session ends.
"""

import queue
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mpcformer import __version__
from mpcformer.errors import MPCFormerError, PartyError, UserInputError
from parties.settings.config import PROTOCOL_VERSION, DataOwnerConfig, ServiceConfig
from parties.settings.insecure import text as insecure_text
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import causes
from parties.wire.frames import open_channel, wait_until_ready

HEARTBEAT_S = 1.0
# A stopped process keeps its connections open: only missing heartbeats reveal it. Both sides use this limit.
SILENCE_S = 8.0
FLUSH_TIMEOUT_S = 3.0
# How long a party waits for the coordinator, which collects evidence for 1.5 s, to name the first cause.
VERDICT_TIMEOUT_S = 4.0


def peak_rss_bytes() -> int:
    """Return the largest resident memory that this process ever had, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # On Linux `ru_maxrss` is inherited from the process that started this one.
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Membership:
    """The part of one party in one session.

    Args:
        config: the configuration of this party.
        role: the role that this party states when it says hello.
        coordinator_id: the party id of the coordinator.
    """

    def __init__(self, config: ServiceConfig | DataOwnerConfig, *, role: str, coordinator_id: str) -> None:
        self.party_id, self._coordinator_id, self._deadline_s = config.id, coordinator_id, config.deadline_s
        self._max_session_s = config.max_session_s if isinstance(config, ServiceConfig) else 0.0
        self._outbox: queue.SimpleQueue[pb.PartyEvent | None] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[pb.Job | MPCFormerError | None] = queue.SimpleQueue()
        self._on_abort: list[Callable[[MPCFormerError], None]] = []
        self._watched: list[tuple[str, Callable[[], float], float]] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._aborted = threading.Event()
        self._done = threading.Event()
        self._has_job = False
        self._has_reported = False
        # Whether the session is finished or this party leaves.
        self._over = False
        self._began = time.monotonic()
        self._last_heard = time.monotonic()
        self._close: Callable[[], object] = lambda: None
        self.error: MPCFormerError | None = None
        said = insecure_text(config.insecure)
        self.send(hello=pb.Hello(protocol_version=PROTOCOL_VERSION, role=role, release=__version__, insecure=said))

    def listen(self, commands: Iterator[pb.Command], close: Callable[[], object] = lambda: None) -> None:
        """Start to take commands and to send heartbeats, in threads of their own.

        Args:
            commands: the stream of the coordinator's commands.
            close: ends the stream.
        """
        self._close = close
        threading.Thread(target=self._listen, args=(commands,), name="commands", daemon=True).start()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def events(self) -> Iterator[pb.PartyEvent]:
        """Yield the events to send, for gRPC to iterate over; end after `leave`."""
        while (event := self._outbox.get()) is not None:
            yield event

    def send(self, **event: object) -> None:
        """Queue one event, given by the name of its field in the message PartyEvent."""
        self._outbox.put(pb.PartyEvent(**event))  # type: ignore[arg-type]

    def on_abort(self, callback: Callable[[MPCFormerError], None]) -> None:
        """Call `callback` once when the session fails, or at once if it has failed already."""
        with self._lock:
            error = self.error
            if error is None:
                self._on_abort.append(callback)
                return
        callback(error)

    def check(self) -> None:
        """Raise the error of a session that was aborted. Every wait and every long loop of a session calls this."""
        if self.error is not None:
            raise self.error

    def watch(self, peer_id: str, waited_s: Callable[[], float], limit_s: float | None = None) -> None:
        """End the session when this party has waited for a peer for too long.

        Args:
            peer_id: the party id of the peer.
            waited_s: returns for how many seconds this party has been waiting.
            limit_s: how long is too long; None stands for the configured deadline.
        """
        self._watched.append((peer_id, waited_s, self._deadline_s if limit_s is None else limit_s))

    def job(self, timeout_s: float | None = None) -> pb.Job | None:
        """Wait for the job and return it, or None when the coordinator says that the session is finished.

        Raises:
            MPCFormerError: the session was aborted, or no command came in time.
        """
        try:
            item = self._jobs.get(timeout=timeout_s)
        except queue.Empty:
            raise causes.no_session(self._coordinator_id, timeout_s or 0.0) from None
        if isinstance(item, MPCFormerError):
            raise item
        # A job that names none was ordered by no release of this project, but by a test.
        if item is not None and item.release not in ("", __version__):
            raise PartyError(
                self._coordinator_id,
                f"it runs release {item.release[:20]}, this party {__version__}",
                "give all parties the same release",
            )
        return item

    def part_done(self) -> None:
        """Allow the coordinator to dismiss this party; to be called before the last report, then `dismissed`."""
        self._done.set()

    def dismissed(self) -> None:
        """Wait until the coordinator says that the session is finished.

        Raises:
            MPCFormerError: the session was aborted.
        """
        self.job()

    def fail(self, error: MPCFormerError) -> MPCFormerError:
        """Report a failure and leave; return the first cause, as far as it is known.

        The peer of a broken stream may itself have ended because of a third party. The coordinator hears from all
        parties, so this one waits a limited time for the coordinator to name the cause.
        """
        if self.error is None:
            self._report(error)
            if isinstance(error, PartyError) and error.party != self.party_id:
                self._aborted.wait(VERDICT_TIMEOUT_S)
        self.leave()
        return self.error or error

    def abort(self, error: MPCFormerError) -> None:
        """End the session from another thread, and tell the coordinator why."""
        self._report(error)
        self._abort(error)

    def tell(self, error: MPCFormerError) -> None:
        """Report a failure before anything is cancelled because of it: whoever notices that would blame this party."""
        if self.error is None:
            self._report(error)

    def _report(self, error: MPCFormerError) -> None:
        with self._lock:
            if self._has_reported:
                return
            self._has_reported = True
        culprit = error.party if isinstance(error, PartyError) else self.party_id
        what = error.told.removeprefix(f"{culprit}: ")
        self.send(failure=pb.Failure(culprit=culprit, what=what, remedy=error.remedy, exit_code=error.exit_code))

    def leave(self) -> None:
        """Send what is queued and end the connection."""
        self._over = True
        self._outbox.put(None)
        self._ended.wait(FLUSH_TIMEOUT_S)
        self._ended.set()
        self._close()

    def lost(self) -> None:
        """End the session because the stream is gone."""
        if not self._ended.is_set():
            self._abort(causes.connection_ended(self._coordinator_id))
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
                    self.abort(PartyError(self._coordinator_id, "it gave a second job"))
                elif kind == "finish" and self._done.is_set():
                    self._over = True
                    self._jobs.put(None)
                elif kind == "finish":
                    # No party may continue to compute in a session that its coordinator believes to be over.
                    self.abort(PartyError(self._coordinator_id, "it dismissed this party before its part was done"))
                elif kind == "abort":
                    self._abort(PartyError(command.abort.culprit, command.abort.reason))
            # The stream of a server ends like this also when its client died.
            self._abort(causes.connection_ended(self._coordinator_id))
        except Exception as error:  # The stream of a client raises RpcError, that of a server a bare Exception.
            self._abort(causes.of_call(self._coordinator_id, error))
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
                self._abort(causes.silent(self._coordinator_id, SILENCE_S))
            if self._max_session_s and time.monotonic() - self._began > self._max_session_s:
                self.abort(PartyError(self.party_id, f"the session took longer than {self._max_session_s:.0f} s"))
            for peer_id, waited_s, limit_s in self._watched:
                if waited_s() > limit_s:
                    self.abort(causes.kept_waiting(peer_id, limit_s))


def join(config: DataOwnerConfig) -> Membership:
    """Call the coordinator and join its session.

    Raises:
        PartyError: the coordinator cannot be reached.
    """
    coordinator = config.coordinator
    if coordinator is None:
        raise UserInputError(
            f"{config.id}'s file names no coordinator, so there is no job to join",
            "add coordinator; to ask in a session of its own: mpcformer ask --config FILE",
        )
    channel = open_channel(coordinator.address, coordinator.id, config.credentials)
    wait_until_ready(channel, coordinator.id, coordinator.address, config.join_timeout_s)
    membership = Membership(config, role=config.role, coordinator_id=coordinator.id)
    membership.listen(rpc.CoordinatorStub(channel).Join(membership.events()), channel.close)
    return membership
