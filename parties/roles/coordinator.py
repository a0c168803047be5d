"""The coordinator: starts the job, watches the parties and collects the results. It sees no share and no weight.

When a session breaks, the coordinator weighs all evidence that arrives within a short grace time (evidence.py).
"""

import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain

import grpc

from mpcformer.errors import UNEXPECTED, MPCFormerError, PartyError
from mpcformer.ring.random import fresh_key
from parties.roles.journal import Journal
from parties.roles.results import Results, digests_are_short, is_whole, merged
from parties.session.evidence import Evidence, Weight
from parties.session.membership import SILENCE_S
from parties.session.party_state import PartyState, greeting_error
from parties.settings.config import CoordinatorConfig, PeerAddress, Role
from parties.settings.insecure import text as insecure_text
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import causes
from parties.wire.callers import FirstMessage, at_end, refuse, require_caller
from parties.wire.diagnose_reply import answer_diagnose
from parties.wire.frames import open_channel, start_server

GRACE_S = 1.5
# Owners are at most one batch apart, and what a party reports of a failure is a sentence: more is not accepted.
WINDOW, MAX_TEXT = 4, 1000
EXIT_CODES = (*range(1, 7), UNEXPECTED)
LEAVE_TIMEOUT_S = 3.0
# Calls of Diagnose that one caller may have open at the same time.
MAX_CALLS = 4
OWNERS: tuple[Role, Role] = ("model-owner", "data-owner")


class Coordinator(rpc.CoordinatorServicer):
    """Serves the data owner, calls the two other parties, and runs one job (`run_job`).

    Args:
        config: states who the parties are, where they listen, and what they shall compute.
        journal: the journal of finished batches.
        on_progress: called with the data owner's progress, whose `batch` includes the batches of an earlier run.
        route: maps the address of a party to the address under which the owners reach it, such as a relay's.
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
            config.dealer.id: PartyState("dealer"),
            config.model_owner.id: PartyState("model-owner"),
            config.data_owner: PartyState("data-owner"),
        }
        self._by_role = {member.role: member for member in self._members.values()}
        # The lock is re-entrant, because handlers that hold it add evidence.
        self._changed = threading.Condition(threading.RLock())
        self._evidence = Evidence()
        self._batches: dict[tuple[Role, int], pb.Batch] = {}
        self._channels: list[grpc.Channel] = []
        self._readers: list[threading.Thread] = []
        self._finishing = False
        self._first = FirstMessage(MAX_CALLS)
        self._server, self.address = start_server(
            lambda server: rpc.add_CoordinatorServicer_to_server(self, server),
            config.listen,
            config.credentials,
        )

    def Join(self, request_iterator: Iterator[pb.PartyEvent], context: grpc.ServicerContext) -> Iterator[pb.Command]:  # noqa: N802
        """Serve the stream of the data owner: a thread reads its events, and this call sends commands."""
        party_id = require_caller(context, self._config.data_owner)
        with self._changed:
            if self._members[party_id].joined:
                refuse(context, grpc.StatusCode.ALREADY_EXISTS, f"{party_id} has joined already")
            self._joined(party_id)
        at_end(context, lambda: self._gone(party_id))
        self._start_reader(self._read, party_id, request_iterator)
        yield from self._members[party_id].outgoing()

    def Diagnose(  # noqa: N802 (gRPC's name)
        self, request_iterator: Iterator[pb.DiagnoseRequest], context: grpc.ServicerContext
    ) -> pb.DiagnoseReply:
        """Say who this is; tell the data owner also where the job will send it."""
        config = self._config
        self._first.take(request_iterator, context)
        reply = answer_diagnose(context, config.id, "coordinator", {"data-owner": [config.data_owner]})
        if reply.serves_as:
            for role, peer in (("dealer", config.dealer), ("model-owner", config.model_owner)):
                reply.peers.add(role=role, id=peer.id, address=self._route(peer.address))
        return reply

    def accuse(self, party_id: str, what: str) -> None:
        """Take evidence from outside the streams: the process of a party ended with a failure.

        The end of a party that has reported a failure before is a consequence and explains nothing.
        """
        with self._changed:
            reported = party_id in self._members and self._members[party_id].reported_failure
            if not self._finishing and not reported:
                self._blame(Weight.EXITED, PartyError(party_id, what))

    def run_job(self) -> Results:
        """Wait for all parties, run the job, write its batches to the journal, and dismiss all parties.

        Raises:
            MPCFormerError: the first cause of a failure; the error names the party.
            OSError: the journal could not be written.
        """
        config, fault = self._config, ""
        job = self._job()
        try:
            for peer in (config.dealer, config.model_owner):
                self._connect(peer)
            self._wait(lambda: all(m.joined for m in self._members.values()), "did not join", lambda m: m.joined)
            dealer, model_owner = self._by_role["dealer"], self._by_role["model-owner"]
            # The dealer must know the session before an owner asks for a seed, and the model owner before the data
            # owner calls it.
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

    def _order(self, member: PartyState, job: pb.Job) -> None:
        member.commands.put(pb.Command(job=job))
        self._wait(
            lambda: member.ready is not None,
            "did not get ready",
            lambda other: other is not member or member.ready is not None,
        )

    def stop(self) -> None:
        """End all streams and close the server, after the parties had time to read the last command."""
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

    def _serve(self, party_id: str, channel: grpc.Channel) -> None:
        """Run the stream to a service, as its client."""
        try:
            grpc.channel_ready_future(channel).result(timeout=self._config.join_timeout_s)
        except (grpc.FutureTimeoutError, ValueError):
            return  # There was no answer, which `_wait` reports, or the channel was closed meanwhile.
        with self._changed:
            self._joined(party_id)
        # The first command is the job, or None if another party never came.
        first = self._members[party_id].commands.get()
        if first is not None:
            self._read(party_id, rpc.PartyStub(channel).Serve(chain([first], self._members[party_id].outgoing())))

    def _joined(self, party_id: str) -> None:
        self._members[party_id].joined, self._members[party_id].last_seen = True, time.monotonic()
        self._changed.notify_all()

    def _same_student(self) -> None:
        ready, before = self._by_role["model-owner"].ready, self._journal.student
        if before and ready is not None and ready.student != before:
            what = f"its student {ready.student[:12]}... (before: {before[:12]}...)"
            raise PartyError(self._config.model_owner.id, *causes.not_as_begun(what))

    def _owners_done(self) -> bool:
        """Move finished batches to the journal, without holding the lock; return whether both owners have reported."""
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

    def _take_batch(self, party_id: str, role: Role, batch: pb.Batch) -> None:
        """Keep a batch until it is written to the journal, or blame the party for a batch that must not come now."""
        index, first = batch.batch, self._journal.batches[0] if self._journal.batches else None
        known = {"model-owner": first[0].terms, "data-owner": first[1].terms}[role] if first else batch.terms
        if (
            not len(self._journal.batches) <= index < len(self._journal.batches) + WINDOW
            or (role, index) in self._batches
        ):
            self._blame(Weight.CONFESSED, PartyError(party_id, f"it reported batch {index} out of turn"))
        elif role == "data-owner" and not is_whole(batch):
            self._blame(
                Weight.CONFESSED, PartyError(party_id, f"its predictions for batch {index} do not fit together")
            )
        elif batch.terms != known:
            what = "its release, model, ranges or job"
            self._blame(Weight.CONFESSED, PartyError(party_id, *causes.not_as_begun(what)))
        else:
            self._batches[role, index] = batch

    def _results(self, job: pb.Job) -> Results:
        reports = {member.role: member.report or pb.Report() for member in self._members.values()}
        batches = self._journal.batches
        if reports["model-owner"].transcript != reports["data-owner"].transcript:
            raise PartyError(self._config.model_owner.id, causes.disagreement("the transcript"), "run again")
        rows = [row for _, data_owner in batches for row in data_owner.predictions.rows]
        if sorted(rows) != list(range(len(rows))):
            raise PartyError(self._config.data_owner, "its batches do not contain every example once")
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

    def _wait(self, done: Callable[[], bool], what: str = "", has: Callable[[PartyState], bool] | None = None) -> None:
        """Wait for `done`; raise on evidence of a failure, and if a party is silent or late.

        Args:
            done: returns whether the wait is over.
            what: what a late party did not do.
            has: returns whether a party has done that; without it no party can be late.
        """
        deadline = time.monotonic() + self._config.join_timeout_s
        with self._changed:
            while not done() or self._evidence:
                if self._evidence:
                    self._changed.wait_for(lambda: False, timeout=GRACE_S)
                    raise self._evidence.verdict()
                self._changed.wait(0.25)
                now = time.monotonic()
                for party_id, member in self._members.items():
                    silent = member.ready is not None or member.role == "data-owner"
                    if member.joined and silent and not member.left and now - member.last_seen > SILENCE_S:
                        self._blame(Weight.VANISHED, causes.silent(party_id, SILENCE_S))
                    if has is not None and not has(member) and now > deadline:
                        self._blame(Weight.VANISHED, self._late(party_id, what))

    def _late(self, party_id: str, what: str) -> PartyError:
        """Return the error for a party that did not do its part in time."""
        config = self._config
        addresses = {config.dealer.id: config.dealer.address, config.model_owner.id: config.model_owner.address}
        if party_id in addresses and not self._members[party_id].joined:
            return causes.unreachable(party_id, addresses[party_id], config.join_timeout_s)
        return PartyError(
            party_id,
            f"{what} within {config.join_timeout_s:.0f} s",
            "start it; if it runs, mpcformer doctor --config on both machines tells what is between them",
        )

    def _dismiss(self, fault: str) -> None:
        """Tell all parties to leave, and after a failure also why."""
        with self._changed:
            self._finishing = True
            if not self._evidence and fault:
                self._blame(Weight.VANISHED, PartyError(self._config.id, fault))
            ending = pb.Command(abort=self._evidence.told()) if self._evidence else pb.Command(finish=pb.Finish())
        for member in self._members.values():
            member.commands.put(ending)
            member.commands.put(None)

    def _read(self, party_id: str, events: Iterator[pb.PartyEvent]) -> None:
        try:
            for event in events:
                self._handle(party_id, event)
            self._gone(party_id)
        except Exception as error:  # The stream of a client raises RpcError, that of a server a bare Exception.
            if causes.is_refusal(error):
                with self._changed:
                    self._members[party_id].left = True
                    if not self._finishing:
                        self._blame(Weight.CONFESSED, causes.of_call(party_id, error))
            self._gone(party_id)

    def _handle(self, party_id: str, event: pb.PartyEvent) -> None:
        member = self._members[party_id]
        kind = event.WhichOneof("event")
        with self._changed:
            member.last_seen = time.monotonic()
            if kind == "hello":
                error = greeting_error(party_id, member.role, event.hello, insecure_text(self._config.insecure))
                if error is not None:
                    self._blame(Weight.CONFESSED, error)
            elif kind == "ready":
                member.ready = event.ready
            elif kind == "progress" and member.role == "data-owner":
                event.progress.batch += self._journal.n_resumed
                event.progress.n_batches += self._journal.n_resumed
                self._on_progress(event.progress)
            elif not digests_are_short(event):
                self._blame(Weight.CONFESSED, PartyError(party_id, "it sent more than a digest where a digest belongs"))
            elif kind == "batch" and member.role != "dealer":
                self._take_batch(party_id, member.role, event.batch)
            elif kind == "report":
                member.report = event.report
            elif kind == "failure":
                self._failure(party_id, event.failure)
            self._changed.notify_all()

    def _failure(self, party_id: str, failure: pb.Failure) -> None:
        self._members[party_id].left = self._members[party_id].reported_failure = True
        error = PartyError(*(text[:MAX_TEXT] for text in (failure.culprit, failure.what, failure.remedy)))
        if failure.exit_code in EXIT_CODES:
            error.exit_code = failure.exit_code
        self._blame(Weight.CONFESSED if failure.culprit == party_id else Weight.ACCUSED, error)

    def _gone(self, party_id: str) -> None:
        with self._changed:
            member = self._members[party_id]
            if not member.left and not self._finishing:
                self._blame(Weight.VANISHED, causes.connection_ended(party_id))
            member.left = True

    def _blame(self, weight: Weight, error: MPCFormerError) -> None:
        with self._changed:
            self._evidence.add(weight, error)
            self._changed.notify_all()
