"""The coordinator: starts the job, watches the parties, collects results. It sees no share and no weight.

Who is to blame when a session breaks: a party's own report of what it did wrong comes first, then the party that died
or fell silent, then the one that others accuse. All evidence that arrives within a short grace time is weighed.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import grpc

from mpcformer.errors import MPCFormerError, PartyError
from parties.config import PROTOCOL_VERSION, TlsFiles
from parties.membership import HEARTBEAT_S, SILENCE_S
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.tls import require_caller
from parties.wire import start_server

GRACE_S = 1.5
JOIN_TIMEOUT_S = 60.0
CONFESSED, VANISHED, ACCUSED = 0, 1, 2
CONFESSED_REASON = "it failed; its own log says why"


@dataclass
class Member:
    """One party as the coordinator knows it."""

    role: str
    commands: "queue.SimpleQueue[pb.Command | None]" = field(default_factory=queue.SimpleQueue)
    joined: bool = False
    address: str = ""
    last_seen: float = 0.0
    report: pb.Report | None = None
    left: bool = False


@dataclass(frozen=True)
class Results:
    """What a finished job gave."""

    predictions: pb.Predictions
    model_owner: pb.Report
    data_owner: pb.Report
    dealer: pb.Report


class Coordinator(rpc.CoordinatorServicer):
    """The service and its state. `run_job` is the whole of its life.

    Args:
        roles: party id -> role, for exactly the expected parties.
        listen: HOST:PORT.
        files: its certificate.
        on_progress: called with (batch, n_batches).
        join_timeout_s: how long it waits for all to join and get ready.
        route: the address under which the others reach a party's, if a relay stands before it.
    """

    def __init__(
        self,
        roles: dict[str, str],
        *,
        listen: str,
        files: TlsFiles,
        on_progress: Callable[[int, int], None],
        join_timeout_s: float = JOIN_TIMEOUT_S,
        route: Callable[[str], str] = lambda address: address,
    ) -> None:
        self._route, self._join_timeout_s = route, join_timeout_s
        self._members = {party: Member(role) for party, role in roles.items()}
        # Re-entrant: evidence is added inside handlers that hold it.
        self._changed = threading.Condition(threading.RLock())
        self._evidence: list[tuple[int, MPCFormerError]] = []
        self._predictions: pb.Predictions | None = None
        self._finishing = False
        self._on_progress = on_progress
        self._server, self.address = start_server(
            lambda server: rpc.add_CoordinatorServicer_to_server(self, server), listen, files
        )

    def Join(self, request_iterator: Iterator[pb.PartyEvent], context: grpc.ServicerContext) -> Iterator[pb.Command]:  # noqa: N802
        """A party's stream: events are read by a thread of its own, commands are sent from here."""
        party = require_caller(context, *self._members)
        member = self._members[party]
        with self._changed:
            if member.joined:
                context.abort(grpc.StatusCode.ALREADY_EXISTS, f"{party} has joined already")
            member.joined, member.last_seen = True, time.monotonic()
            self._changed.notify_all()
        context.add_callback(lambda: self._gone(party))
        threading.Thread(target=self._read, args=(party, request_iterator), daemon=True).start()
        while True:
            try:
                command = member.commands.get(timeout=HEARTBEAT_S)
            except queue.Empty:
                command = pb.Command(heartbeat=pb.Heartbeat())
            if command is None:
                return
            yield command

    def accuse(self, party: str, what: str) -> None:
        """Evidence from outside the streams: a process that ended."""
        if not self._finishing:
            self._blame(VANISHED, PartyError(party, what))

    def run_job(self, job: pb.Job) -> Results:
        """Wait for all to join, start the job, wait for its results, dismiss everybody.

        Raises:
            MPCFormerError: the first cause of a failure, naming the party.
        """
        try:
            self._wait(lambda: all(m.joined for m in self._members.values()), "did not join", lambda m: m.joined)
            self._wait(
                lambda: all(m.address for m in self._servers()),
                "did not get ready",
                lambda m: bool(m.address) or m.role == "data-owner",
            )
            by_role = {member.role: member for member in self._members.values()}
            job.dealer_address = self._route(by_role["dealer"].address)
            job.model_owner_address = self._route(by_role["model-owner"].address)
            for role in ("dealer", "model-owner", "data-owner"):
                by_role[role].commands.put(pb.Command(job=job))
            owners = [by_role["model-owner"], by_role["data-owner"]]
            self._wait(lambda: self._predictions is not None and all(m.report is not None for m in owners))
            with self._changed:
                self._finishing = True
            model_owner, data_owner = (m.report for m in owners)
            assert self._predictions is not None
            assert model_owner is not None
            assert data_owner is not None
            return Results(self._predictions, model_owner, data_owner, by_role["dealer"].report or pb.Report())
        finally:
            self._dismiss()

    def stop(self) -> None:
        """Close the server."""
        for member in self._members.values():
            member.commands.put(None)
        self._server.stop(grace=1.0).wait()

    def _servers(self) -> list[Member]:
        return [m for m in self._members.values() if m.role != "data-owner"]

    def _wait(self, done: Callable[[], bool], what: str = "", has: Callable[[Member], bool] | None = None) -> None:
        """Until `done`; evidence of a failure ends it, and so does silence."""
        deadline = time.monotonic() + self._join_timeout_s
        with self._changed:
            while not done() or self._evidence:
                if self._evidence:
                    self._changed.wait_for(lambda: False, timeout=GRACE_S)
                    raise min(self._evidence, key=lambda item: item[0])[1]
                self._changed.wait(0.25)
                now = time.monotonic()
                for party, member in self._members.items():
                    if member.joined and not member.left and now - member.last_seen > SILENCE_S:
                        self._evidence.append((VANISHED, PartyError(party, f"stopped answering for {SILENCE_S:.0f} s")))
                    if has is not None and not has(member) and now > deadline:
                        error = PartyError(party, f"{what} within {self._join_timeout_s:.0f} s")
                        self._evidence.append((VANISHED, error))

    def _dismiss(self) -> None:
        """Tell everybody to leave; after a failure, why."""
        with self._changed:
            self._finishing = True
            weight, worst = min(self._evidence, key=lambda item: item[0], default=(VANISHED, None))
        for member in self._members.values():
            if worst is None:
                member.commands.put(pb.Command(finish=pb.Finish()))
            else:
                culprit = worst.party if isinstance(worst, PartyError) else ""
                # What a party says of itself is for its own log and this one: it may concern its data.
                reason = worst.what.removeprefix(f"{culprit}: ") if weight != CONFESSED else CONFESSED_REASON
                member.commands.put(pb.Command(abort=pb.Abort(culprit=culprit, reason=reason)))
            member.commands.put(None)

    def _read(self, party: str, events: Iterator[pb.PartyEvent]) -> None:
        try:
            for event in events:
                self._handle(party, event)
        except Exception:  # the stream broke: gRPC raises several types; `_gone` says the same to the user
            self._gone(party)

    def _handle(self, party: str, event: pb.PartyEvent) -> None:
        member = self._members[party]
        kind = event.WhichOneof("event")
        with self._changed:
            member.last_seen = time.monotonic()
            if kind == "hello":
                hello = event.hello
                if hello.protocol_version != PROTOCOL_VERSION or hello.role != member.role:
                    said = f"it speaks version {hello.protocol_version} as {hello.role}"
                    self._blame(CONFESSED, PartyError(party, f"{said}, expected {PROTOCOL_VERSION} as {member.role}"))
            elif kind == "ready":
                member.address = event.ready.address
            elif kind == "progress" and member.role == "data-owner":
                self._on_progress(event.progress.batch, event.progress.n_batches)
            elif kind == "report":
                member.report = event.report
            elif kind == "predictions" and member.role == "data-owner":
                self._predictions = event.predictions
            elif kind == "failure":
                self._failure(party, event.failure)
            self._changed.notify_all()

    def _failure(self, party: str, failure: pb.Failure) -> None:
        self._members[party].left = True
        error = PartyError(failure.culprit, failure.what, failure.remedy)
        error.exit_code = failure.exit_code or error.exit_code
        self._blame(CONFESSED if failure.culprit == party else ACCUSED, error)

    def _gone(self, party: str) -> None:
        with self._changed:
            member = self._members[party]
            if not member.left and not self._finishing:
                self._blame(VANISHED, PartyError(party, "its connection ended: the process died or was cut off"))
            member.left = True

    def _blame(self, weight: int, error: MPCFormerError) -> None:
        with self._changed:
            self._evidence.append((weight, error))
            self._changed.notify_all()
