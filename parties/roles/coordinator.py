"""The coordinator: orders an evaluation, collects its batches in a journal, and makes the results of them."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc

from mpcformer.errors import PartyError, RangeError
from parties.roles.journal import Journal
from parties.roles.results import LEFT_RANGE, Results, is_whole, merged
from parties.session.evidence import Weight
from parties.session.orderer import LEAVE_TIMEOUT_S, Order, Orderer
from parties.session.party_state import PartyState
from parties.settings.config import CoordinatorConfig, Role
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import causes
from parties.wire.callers import at_end, first_message, refuse, require_caller
from parties.wire.diagnose_reply import answer_diagnose
from parties.wire.frames import start_server
from parties.wire.guard import Rule

# Owners are at most one batch apart.
WINDOW = 4
POLL_S, WRITE_TIMEOUT_S = 0.5, 1.0
OWNERS: tuple[Role, Role] = ("model-owner", "data-owner")


@dataclass(frozen=True)
class JobPart:
    """Some of a job's batches, one after the other, which are computed in a session of their own.

    Args:
        begin, end: the first batch, and the one after the last.
        first_operation: the number of operations of all batches before it. Under fixed keys the part then has the
            results that it would have in the whole job.
    """

    begin: int
    end: int
    first_operation: int


def left_range(data_owner: str) -> PartyError:
    """Return the error of a job that a refused sentence ends."""
    error = PartyError(data_owner, LEFT_RANGE, "leave them out, or give --on-refusal skip")
    error.exit_code = RangeError.exit_code
    return error


class Coordinator(Orderer, rpc.CoordinatorServicer):
    """Serves the data owner, calls the two other parties, and runs one job (`run_job`).

    Args:
        config: states who the parties are, where they listen, and what they shall compute.
        journal: the journal of finished batches.
        on_progress: called with the data owner's progress, whose `batch` includes the batches of an earlier run.
        route: as for `Orderer`.
        part: the part of the job to run, whose first batch is the journal's next; None stands for all that is left.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        *,
        journal: Journal,
        on_progress: Callable[[pb.Progress], None] = lambda progress: None,
        route: Callable[[str], str] = lambda address: address,
        part: JobPart | None = None,
    ) -> None:
        order = Order.of(config, config.dealer, config.model_owner, data_owner=config.data_owner, job=config.job)
        super().__init__(order, route=route)
        self._config, self._journal, self._on_progress, self._part = config, journal, on_progress, part
        self._batches: dict[tuple[Role, int], pb.Batch] = {}
        self._writing = False
        self._unwritten: Exception | None = None
        self._server, self.address = start_server(
            lambda server: rpc.add_CoordinatorServicer_to_server(self, server),
            config.listen,
            config.credentials,
            rules={"/mpcformer.v1.Coordinator/Join": Rule([config.data_owner])},
        )

    def Join(self, request_iterator: Iterator[pb.PartyEvent], context: grpc.ServicerContext) -> Iterator[pb.Command]:  # noqa: N802
        """Serve the stream of the data owner: a thread reads its events, and this call sends commands."""
        party_id = require_caller(context, self._config.data_owner)
        with self.changed:
            if self.has_joined(party_id):
                refuse(context, grpc.StatusCode.ALREADY_EXISTS, f"{party_id} has joined already")
            self.attach(party_id, request_iterator)
        at_end(context, lambda: self.gone(party_id))
        yield from self.members[party_id].outgoing()

    def Diagnose(  # noqa: N802 (gRPC's name)
        self, request_iterator: Iterator[pb.DiagnoseRequest], context: grpc.ServicerContext
    ) -> pb.DiagnoseReply:
        """Say who this is; tell the data owner also where the job will send it."""
        config = self._config
        first_message(request_iterator, context)
        reply = answer_diagnose(context, config.id, "coordinator", {"data-owner": [config.data_owner]})
        if reply.serves_as:
            for role, peer in (("dealer", config.dealer), ("model-owner", config.model_owner)):
                reply.peers.add(role=role, id=peer.id, address=self._route(peer.address))
        return reply

    def run_job(self) -> Results:
        """Wait for all parties, run the job, write its batches to the journal, and dismiss all parties.

        Raises:
            MPCFormerError: the first cause of a failure; the error names the party.
            OSError: the journal could not be written.
        """
        job = self.new_job(
            first_batch=self._journal.next_batch,
            batch_plan=self._journal.batch_plan,
            end_batch=self._part.end if self._part else 0,
            first_operation=self._part.first_operation if self._part else 0,
        )
        writer = threading.Thread(target=self._write, name="journal", daemon=True)
        writer.start()
        try:
            self.run(job, self._owners_done, ready=self._same_student)
        finally:
            # A disk that hangs keeps the thread, and nobody else.
            writer.join(WRITE_TIMEOUT_S)
        return self._stopped_at_a_refusal(self._results(job))

    def _stopped_at_a_refusal(self, results: Results) -> Results:
        """Return the results, unless the job says that a refusal ends it: then it ends so after all is computed.

        If the session ended before, the model owner and the dealer would know that a sentence was refused.

        Raises:
            PartyError: a sentence was refused, and the job says to stop then.
        """
        refused = results.scores.refused if results.scores is not None else sum(results.predictions.refused)
        if refused and self._config.job.on_refusal == "stop":
            raise left_range(self._config.data_owner)
        return results

    def stop(self) -> None:
        """End all streams and close the server, after the parties had time to read the last command."""
        super().stop()
        self._server.stop(grace=1.0).wait(LEAVE_TIMEOUT_S)

    def _same_student(self) -> None:
        ready, before = self.by_role["model-owner"].ready, self._journal.student
        if before and ready is not None and ready.student != before:
            what = f"its student {ready.student[:12]}... (before: {before[:12]}...)"
            raise PartyError(self._config.model_owner.id, *causes.not_as_begun(what))

    def _write(self) -> None:
        """Move finished batches to the journal until the session is over. The disk may be slow: others are heard."""
        while True:
            with self.changed:
                while not self._has_pair():
                    if self.finishing:
                        return
                    self.changed.wait(POLL_S)
                index, self._writing = self._journal.next_batch, True
                pair = [self._batches.pop((role, index)) for role in OWNERS]
            try:
                self._journal.add(*pair)
            except Exception as error:
                self._unwritten = error
            with self.changed:
                self._writing = False
                self.changed.notify_all()
            if self._unwritten is not None:
                return

    def _has_pair(self) -> bool:
        """Return whether both owners have sent the next batch of the journal."""
        return all((role, self._journal.next_batch) in self._batches for role in OWNERS)

    def _owners_done(self) -> bool:
        """Return whether both owners have reported, and all their batches are in the journal.

        Raises:
            OSError: the journal could not be written.
        """
        if self._unwritten is not None:
            raise self._unwritten
        return all(self.by_role[role].report is not None for role in OWNERS) and not (self._writing or self._has_pair())

    def take(self, party_id: str, member: PartyState, event: pb.PartyEvent) -> None:
        """Take progress, and the batches of the owners."""
        kind = event.WhichOneof("event")
        if kind == "progress" and member.role == "data-owner":
            event.progress.batch += self._journal.n_resumed
            event.progress.n_batches += self._journal.n_resumed
            self._on_progress(event.progress)
        elif kind == "batch" and member.role != "dealer":
            self._take_batch(party_id, member.role, event.batch)

    def _take_batch(self, party_id: str, role: Role, batch: pb.Batch) -> None:
        """Keep a batch until it is written to the journal, or blame the party for a batch that must not come now."""
        index, first = batch.batch, self._journal.batches[0] if self._journal.batches else None
        known = {"model-owner": first[0].terms, "data-owner": first[1].terms}[role] if first else batch.terms
        if not self._journal.next_batch <= index < self._journal.next_batch + WINDOW or (role, index) in self._batches:
            self.blame(Weight.CONFESSED, PartyError(party_id, f"it reported batch {index} out of turn"))
        elif role == "data-owner" and batch.HasField("predictions") and not is_whole(batch):
            self.blame(Weight.CONFESSED, PartyError(party_id, f"its predictions for batch {index} do not fit together"))
        elif batch.terms != known:
            what = "its release, model, ranges or job"
            self.blame(Weight.CONFESSED, PartyError(party_id, *causes.not_as_begun(what)))
        else:
            self._batches[role, index] = batch

    def check_end(self) -> None:
        """Check that both owners computed the same thing, and every example once."""
        model_owner, data_owner = (self.by_role[role].report or pb.Report() for role in OWNERS)
        batches = self._journal.batches
        if model_owner.transcript != data_owner.transcript:
            raise PartyError(self._config.model_owner.id, causes.disagreement("the transcript"), "run again")
        rows = [row for _, told in batches for row in told.predictions.rows]
        if data_owner.HasField("scores") and rows:
            raise PartyError(self._config.data_owner, "it withheld some answers and told others")
        if data_owner.HasField("scores"):
            return
        if self._part is not None:
            if self._journal.next_batch != self._part.end or len(set(rows)) != len(rows):
                raise PartyError(self._config.data_owner, "its batches are not those of the part that was asked for")
            return
        if sorted(rows) != list(range(len(rows))):
            raise PartyError(self._config.data_owner, "its batches do not contain every example once")
        if batches and len(batches) != batches[0][1].n_batches:
            raise PartyError(
                self._config.data_owner, f"{batches[0][1].n_batches} batches were announced, {len(batches)} reported"
            )

    def _results(self, job: pb.Job) -> Results:
        reports = {member.role: member.report or pb.Report() for member in self.members.values()}
        batches = self._journal.batches
        measures: dict[Role, list[pb.BatchReport]] = {
            role: [pair[i].report for pair in batches] for i, role in enumerate(OWNERS)
        }
        predictions = merged([data_owner.predictions for _, data_owner in batches])
        seconds = reports["data-owner"].seconds
        scores = reports["data-owner"].scores if reports["data-owner"].HasField("scores") else None
        return Results(measures, self._journal.n_resumed, predictions, reports, job.session_id, seconds, scores)
