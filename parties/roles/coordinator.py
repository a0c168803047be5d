"""The coordinator: starts the job, watches the parties, collects results. It sees no share and no weight.

When a session breaks, all evidence that arrives within a short grace time is weighed (evidence.py).
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import grpc

from mpcformer.errors import UNEXPECTED, MPCFormerError, PartyError
from mpcformer.ring.random import fresh_key
from parties.roles.evidence import Evidence, Weight
from parties.roles.journal import Journal
from parties.roles.membership import HEARTBEAT_S, SILENCE_S
from parties.roles.results import Results, digests_are_short, is_whole, merged
from parties.settings.config import PROTOCOL_VERSION, CoordinatorConfig, PeerAddress, Role
from parties.settings.insecure import text as insecure_text
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire.diagnose_reply import introduce
from parties.wire.frames import open_channel, serve_guarded, start_server
from parties.wire.tls import require_caller

GRACE_S = 1.5
# Owners are at most a batch apart; what a party says of a failure is a sentence.
WINDOW, MAX_TEXT = 4, 1000
EXIT_CODES = (*range(1, 7), UNEXPECTED)
LEAVE_TIMEOUT_S = 3.0
OWNERS: tuple[Role, Role] = ("model-owner", "data-owner")
REFUSALS = (
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
)


@dataclass
class Member:
    """One party as the coordinator knows it."""

    role: Role
    commands: "queue.SimpleQueue[pb.Command | None]" = field(default_factory=queue.SimpleQueue)
    joined: bool = False
    ready: pb.Ready | None = None
    last_seen: float = 0.0
    report: pb.Report | None = None
    left: bool = False


class Coordinator(rpc.CoordinatorServicer):
    """Serves the data owner, calls the two others, and keeps their state. `run_job` is the whole of its life.

    Args:
        config: who the parties are, where, and what they shall do.
        journal: of finished batches.
        on_progress: called with the data owner's progress; its `batch` counts the journal's too.
        route: the address under which the others reach a party's, if a relay stands before it.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        *,
        journal: Journal,
        on_progress: Callable[[pb.Progress], None] = lambda progress: None,
        route: Callable[[str], str] = lambda address: address,
    ) -> None:
        self._config, self._journal, self._route, self._on_progress = config, journal, route, on_progress
        self._members = {
            config.dealer.id: Member("dealer"),
            config.model_owner.id: Member("model-owner"),
            config.data_owner: Member("data-owner"),
        }
        self._by_role = {member.role: member for member in self._members.values()}
        # Re-entrant: evidence is added inside handlers that hold it.
        self._changed = threading.Condition(threading.RLock())
        self._evidence = Evidence()
        self._batches: dict[tuple[Role, int], pb.Batch] = {}
        self._channels: list[grpc.Channel] = []
        self._readers: list[threading.Thread] = []
        self._finishing = False
        self._server, self.address = start_server(
            lambda server: serve_guarded(server, rpc.add_CoordinatorServicer_to_server, self, 4),
            config.listen,
            config.credentials,
        )

    def Join(self, request_iterator: Iterator[pb.PartyEvent], context: grpc.ServicerContext) -> Iterator[pb.Command]:  # noqa: N802
        """The data owner's stream: events are read by a thread of its own, commands are sent from here."""
        party = require_caller(context, self._config.data_owner)
        with self._changed:
            if self._members[party].joined:
                context.abort(grpc.StatusCode.ALREADY_EXISTS, f"{party} has joined already")
            self._joined(party)
        context.add_callback(lambda: self._gone(party))
        self._start_reader(self._read, party, request_iterator)
        yield from self._commands(party)

    def Diagnose(self, request: pb.DiagnoseRequest, context: grpc.ServicerContext) -> pb.DiagnoseReply:  # noqa: N802
        """Who this is; to its data owner, where the job will send it."""
        config = self._config
        reply = introduce(context, config.id, "coordinator", {"data-owner": [config.data_owner]})
        if reply.serves_as:
            for role, peer in (("dealer", config.dealer), ("model-owner", config.model_owner)):
                reply.peers.add(role=role, id=peer.id, address=self._route(peer.address))
        return reply

    def accuse(self, party: str, what: str) -> None:
        """Evidence from outside the streams: a process that ended."""
        if not self._finishing:
            self._blame(Weight.VANISHED, PartyError(party, what))

    def run_job(self) -> Results:
        """Wait for all parties, run the job, journal its batches, dismiss everybody.

        Raises:
            MPCFormerError: the first cause of a failure, naming the party.
            OSError: the journal could not be written.
        """
        config, fault = self._config, ""
        job = self._job()
        try:
            for peer in (config.dealer, config.model_owner):
                self._connect(peer)
            self._wait(lambda: all(m.joined for m in self._members.values()), "did not join", lambda m: m.joined)
            dealer, model_owner = self._by_role["dealer"], self._by_role["model-owner"]
            # The dealer knows the session before an owner wants a seed, the model owner before the data owner calls.
            for member in (dealer, model_owner):
                self._order(member, job)
            self._same_student()
            self._by_role["data-owner"].commands.put(pb.Command(job=job))
            self._wait(self._owners_done)
            return self._results(job)
        except MPCFormerError as error:
            self._blame(Weight.ACCUSED, error)
            raise
        except OSError as error:
            fault = f"cannot write the journal: {error.strerror}"
            raise
        except KeyboardInterrupt:
            fault = "it was interrupted"
            raise
        except Exception:
            fault = "it failed"
            raise
        finally:
            self._dismiss(fault)

    def _order(self, member: Member, job: pb.Job) -> None:
        member.commands.put(pb.Command(job=job))
        self._wait(
            lambda: member.ready is not None,
            "did not get ready",
            lambda other: other is not member or member.ready is not None,
        )

    def stop(self) -> None:
        """End all streams and close the server; parties that answer are given time to hear why."""
        for member in self._members.values():
            member.commands.put(None)
        deadline = time.monotonic() + LEAVE_TIMEOUT_S
        for thread in self._readers:
            thread.join(max(0.0, deadline - time.monotonic()))
        for channel in self._channels:
            channel.close()
        self._server.stop(grace=1.0).wait(LEAVE_TIMEOUT_S)

    def _job(self) -> pb.Job:
        config = self._config
        return pb.Job(
            session_id=fresh_key(),
            dealer=config.dealer.id,
            model_owner=config.model_owner.id,
            data_owner=config.data_owner,
            dealer_address=self._route(config.dealer.address),
            model_owner_address=self._route(config.model_owner.address),
            **config.job.message_fields(),
            first_batch=len(self._journal.batches),
            batch_plan=self._journal.batch_plan,
        )

    def _connect(self, peer: PeerAddress) -> None:
        channel = open_channel(peer.address, peer.id, self._config.credentials)
        self._channels.append(channel)
        self._start_reader(self._serve, peer.id, channel)

    def _start_reader(self, read: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=read, args=arguments, name="events", daemon=True)
        self._readers.append(thread)
        thread.start()

    def _serve(self, party: str, channel: grpc.Channel) -> None:
        """A service's stream, as its client."""
        try:
            grpc.channel_ready_future(channel).result(timeout=self._config.join_timeout_s)
        except (grpc.FutureTimeoutError, ValueError):  # no answer (which `_wait` says), or the channel was closed
            return
        with self._changed:
            self._joined(party)
        first = self._members[party].commands.get()
        if first is not None:  # its job; or, if another party never came, that there is none
            self._read(party, rpc.PartyStub(channel).Serve(chain([first], self._commands(party))))

    def _joined(self, party: str) -> None:
        self._members[party].joined, self._members[party].last_seen = True, time.monotonic()
        self._changed.notify_all()

    def _commands(self, party: str) -> Iterator[pb.Command]:
        """What is sent to a party; a heartbeat whenever there is nothing else."""
        while True:
            try:
                command = self._members[party].commands.get(timeout=HEARTBEAT_S)
            except queue.Empty:
                command = pb.Command(heartbeat=pb.Heartbeat())
            if command is None:
                return
            yield command

    def _same_student(self) -> None:
        ready, before = self._by_role["model-owner"].ready, self._journal.student
        if before and ready is not None and ready.student != before:
            raise PartyError(
                self._config.model_owner.id,
                f"its student is {ready.student[:12]}..., the run to be resumed began with {before[:12]}...",
                "serve the same student, or start anew without --resume",
            )

    def _owners_done(self) -> bool:
        """Whether all has arrived and is in the journal, which is written without the lock."""
        while True:
            index = len(self._journal.batches)
            if any((role, index) not in self._batches for role in OWNERS):
                break
            model_owner, data_owner = (self._batches.pop((role, index)) for role in OWNERS)
            self._changed.release()
            try:
                self._journal.add(model_owner, data_owner)
            finally:
                self._changed.acquire()
        return all(self._by_role[role].report is not None for role in OWNERS)

    def _take_batch(self, party: str, role: Role, batch: pb.Batch) -> None:
        """Keep a batch until it is journaled, if it is one that may come now."""
        index, first = batch.batch, self._journal.batches[0] if self._journal.batches else None
        known = {"model-owner": first[0].terms, "data-owner": first[1].terms}[role] if first else batch.terms
        if (
            not len(self._journal.batches) <= index < len(self._journal.batches) + WINDOW
            or (role, index) in self._batches
        ):
            self._blame(Weight.CONFESSED, PartyError(party, f"it reported batch {index} out of turn"))
        elif role == "data-owner" and not is_whole(batch):
            self._blame(Weight.CONFESSED, PartyError(party, f"its predictions for batch {index} do not fit together"))
        elif batch.terms != known:
            what = "release, model, ranges or job differ from what the run to be resumed began with"
            self._blame(
                Weight.CONFESSED, PartyError(party, what, "go on with the same, or start anew without --resume")
            )
        else:
            self._batches[role, index] = batch

    def _results(self, job: pb.Job) -> Results:
        reports = {member.role: member.report or pb.Report() for member in self._members.values()}
        batches = self._journal.batches
        if reports["model-owner"].transcript != reports["data-owner"].transcript:
            raise PartyError(self._config.model_owner.id, "the owners report different transcripts", "run again")
        rows = [row for _, data_owner in batches for row in data_owner.predictions.rows]
        if sorted(rows) != list(range(len(rows))):
            raise PartyError(self._config.data_owner, "its batches do not hold every example once")
        if batches and len(batches) != batches[0][1].n_batches:
            raise PartyError(
                self._config.data_owner, f"{batches[0][1].n_batches} batches were announced, {len(batches)} reported"
            )
        with self._changed:
            self._finishing = True
        self._by_role["dealer"].commands.put(pb.Command(finish=pb.Finish()))
        with self._changed:
            self._changed.wait_for(lambda: self._by_role["dealer"].report is not None, timeout=LEAVE_TIMEOUT_S)
        reports["dealer"] = self._by_role["dealer"].report or pb.Report()
        measures: dict[Role, list[pb.BatchReport]] = {
            role: [pair[i].report for pair in batches] for i, role in enumerate(OWNERS)
        }
        predictions = merged([data_owner.predictions for _, data_owner in batches])
        return Results(measures, self._journal.n_resumed, predictions, reports, job.session_id)

    def _wait(self, done: Callable[[], bool], what: str = "", has: Callable[[Member], bool] | None = None) -> None:
        """Until `done`; evidence of a failure ends it, and so does silence."""
        deadline = time.monotonic() + self._config.join_timeout_s
        with self._changed:
            while not done() or self._evidence:
                if self._evidence:
                    self._changed.wait_for(lambda: False, timeout=GRACE_S)
                    raise self._evidence.verdict()
                self._changed.wait(0.25)
                now = time.monotonic()
                for party, member in self._members.items():
                    silent = member.ready is not None or member.role == "data-owner"
                    if member.joined and silent and not member.left and now - member.last_seen > SILENCE_S:
                        self._blame(Weight.VANISHED, PartyError(party, f"stopped answering for {SILENCE_S:.0f} s"))
                    if has is not None and not has(member) and now > deadline:
                        self._blame(Weight.VANISHED, self._late(party, what))

    def _late(self, party: str, what: str) -> PartyError:
        """A party that did not come, or not in time."""
        config = self._config
        addresses = {config.dealer.id: config.dealer.address, config.model_owner.id: config.model_owner.address}
        where = f" (no answer at {addresses[party]})" if party in addresses and not self._members[party].joined else ""
        return PartyError(
            party,
            f"{what} within {config.join_timeout_s:.0f} s{where}",
            "start it; if it runs, mpcformer doctor --config on both machines tells what is between them",
        )

    def _dismiss(self, fault: str) -> None:
        """Tell everybody to leave; after a failure, why."""
        with self._changed:
            self._finishing = True
            if not self._evidence and fault:
                self._blame(Weight.VANISHED, PartyError(self._config.id, fault))
            ending = pb.Command(abort=self._evidence.told()) if self._evidence else pb.Command(finish=pb.Finish())
        for member in self._members.values():
            member.commands.put(ending)
            member.commands.put(None)

    def _read(self, party: str, events: Iterator[pb.PartyEvent]) -> None:
        try:
            for event in events:
                self._handle(party, event)
            self._gone(party)
        except Exception as error:  # a client's stream raises RpcError, a server's a bare Exception
            if isinstance(error, grpc.Call) and error.code() in REFUSALS:
                with self._changed:
                    self._members[party].left = True
                    if not self._finishing:
                        self._blame(Weight.CONFESSED, PartyError(party, f"it refused the session: {error.details()}"))
            self._gone(party)

    def _handle(self, party: str, event: pb.PartyEvent) -> None:
        member = self._members[party]
        kind = event.WhichOneof("event")
        with self._changed:
            member.last_seen = time.monotonic()
            if kind == "hello":
                self._greet(party, member.role, event.hello)
            elif kind == "ready":
                member.ready = event.ready
            elif kind == "progress" and member.role == "data-owner":
                event.progress.batch += self._journal.n_resumed
                event.progress.n_batches += self._journal.n_resumed
                self._on_progress(event.progress)
            elif not digests_are_short(event):
                self._blame(Weight.CONFESSED, PartyError(party, "it sent more than a digest where a digest belongs"))
            elif kind == "batch" and member.role != "dealer":
                self._take_batch(party, member.role, event.batch)
            elif kind == "report":
                member.report = event.report
            elif kind == "failure":
                self._failure(party, event.failure)
            self._changed.notify_all()

    def _greet(self, party: str, role: Role, hello: pb.Hello) -> None:
        if hello.protocol_version != PROTOCOL_VERSION or hello.role != role:
            said = f"it speaks version {hello.protocol_version} as {hello.role} (release {hello.release})"
            self._blame(Weight.CONFESSED, PartyError(party, f"{said}, expected {PROTOCOL_VERSION} as {role}"))
        elif hello.insecure != insecure_text(self._config.insecure):
            # Or results of keys that somebody knows would look like any others.
            said, own = hello.insecure or "nothing insecure", insecure_text(self._config.insecure) or "nothing insecure"
            remedy = "leave [insecure] out of all files, or, for a test, give all the same"
            self._blame(Weight.CONFESSED, PartyError(party, f"its file says: {said}; the coordinator's: {own}", remedy))

    def _failure(self, party: str, failure: pb.Failure) -> None:
        self._members[party].left = True
        error = PartyError(*(text[:MAX_TEXT] for text in (failure.culprit, failure.what, failure.remedy)))
        if failure.exit_code in EXIT_CODES:
            error.exit_code = failure.exit_code
        self._blame(Weight.CONFESSED if failure.culprit == party else Weight.ACCUSED, error)

    def _gone(self, party: str) -> None:
        with self._changed:
            member = self._members[party]
            if not member.left and not self._finishing:
                self._blame(Weight.VANISHED, PartyError(party, "its connection ended: the process died or was cut off"))
            member.left = True

    def _blame(self, weight: Weight, error: MPCFormerError) -> None:
        with self._changed:
            self._evidence.add(weight, error)
            self._changed.notify_all()
