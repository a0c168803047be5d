"""What both owners do in a session: agree on everything public, deal batches ahead, and compute them."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from mpcformer.channel import Spec
from mpcformer.correlations import (
    CorrelationStore,
    Request,
    correction_specs,
    correlation_plan_digest,
    is_shared,
    kept_bytes,
)
from mpcformer.engines.base import MODEL_OWNER, Batch, BatchInputs, BatchShape, Engine, Outcome, PublicModel
from mpcformer.errors import MPCFormerError, ProtocolError
from mpcformer.machine import give_freed_memory_back
from mpcformer.ring.random import scoped_keys
from parties.session import attestation, transcript
from parties.session.audit import Audit
from parties.session.membership import Membership, peak_rss_bytes
from parties.settings import metrics
from parties.settings.config import DataOwnerConfig, ModelOwnerConfig
from parties.stubs import parties_pb2 as pb
from parties.wire import causes
from parties.wire.arrivals import Arrivals
from parties.wire.dealer_link import DealerLink
from parties.wire.frame import Frame
from parties.wire.peer_channel import PeerChannel

log = logging.getLogger(__name__)
# A batch that is dealt in parts has room for so many of its largest segment, of which one is computed. With more room
# the dealer would be done long before the owners, who then leave a part of the machine idle.
SEGMENTS_HELD = 2
# How often a wait asks whether the session still stands.
POLL_S = 0.5


@dataclass
class Dealt:
    """A batch that was dealt, or is being dealt: its segments can be computed as soon as they are dealt themselves.

    Args:
        shape: the batch.
        batch: the engine's side of it.
        n_segments: how many parts its computation has.
        n_bytes: the size of its corrections.
        first_operation: the index of its first operation in the session.
        offline: what the offline part took; complete when the batch is.
    """

    shape: BatchShape
    batch: Batch
    n_segments: int
    n_bytes: int
    first_operation: int = 0
    offline: pb.Phase = field(default_factory=pb.Phase)
    _changed: threading.Condition = field(default_factory=threading.Condition, init=False, repr=False)
    _n_ready: int = field(default=0, init=False)
    _is_whole: bool = field(default=False, init=False)
    _error: BaseException | None = field(default=None, init=False, repr=False)

    @property
    def is_whole(self) -> bool:
        """Whether all of the batch is dealt."""
        return self._is_whole

    def note(self, n_ready: int, *, is_whole: bool = False) -> None:
        """Say that so many segments are dealt, and whether all is done that belongs to the batch's offline part."""
        with self._changed:
            self._n_ready, self._is_whole = n_ready, is_whole
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Say that dealing has failed; whoever waits for a segment gets the error."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def wait(self, segment: int, check: Callable[[], None]) -> float:
        """Wait until a segment is dealt, or all of the batch if there is no such segment; return the seconds waited.

        Args:
            segment: its number.
            check: called while this waits; it raises if there is nothing to wait for any more.

        Raises:
            MPCFormerError: dealing failed, or `check` found a reason.
        """
        start = time.perf_counter()
        with self._changed:
            while not self._is_whole and self._n_ready <= segment:
                if self._error is not None:
                    raise self._error
                check()
                self._changed.wait(POLL_S)
        return time.perf_counter() - start


class OwnerSession:
    """The part of one owner in a session, from the dealer's seed to the last report.

    Args:
        rank: 0 for the model owner, 1 for the data owner.
        config: the owner's configuration.
        job: the job, as it was ordered.
        asking, dealing: the two streams to the other owner.
        membership: the connection to whoever ordered the session.

    Attributes:
        drawn_id: what both owners have drawn for this session, 16 bytes; all protocols use it as the session's id.
        store: this owner's correlations.
    """

    def __init__(
        self,
        *,
        rank: int,
        config: ModelOwnerConfig | DataOwnerConfig,
        job: pb.Job,
        asking: PeerChannel,
        dealing: PeerChannel,
        membership: Membership,
    ) -> None:
        self.rank, self.config, self.job, self.asking, self.dealing = rank, config, job, asking, dealing
        self.terms = b""
        self._setup = pb.Phase()
        self._transcript = b""
        self._membership = membership
        self._engine: Engine | None = None
        self._ready_at: float | None = None
        self._sizes: dict[BatchShape, int] = {}
        self._dealer = DealerLink(job.dealer, job.dealer_address, config.credentials, job.session_id)
        membership.watch(job.dealer, self._dealer.waited_s)
        try:
            membership.on_abort(lambda error: self._dealer.close())
            reply = self._dealer.open(config.join_timeout_s)
            attestation.check(config.check_dealer, job.dealer, bytes(reply.evidence))
            # What a coordinator chose enters no protocol.
            self.drawn_id = transcript.draw_together(asking, rank, job.session_id)
            self.store = CorrelationStore(rank=rank, seed=bytes(reply.seed), session_id=self.drawn_id)
            self.store.next_operation = job.first_operation
            self._audit = Audit(
                rank=rank, rate=config.audit_rate, channel=dealing, session_id=self.drawn_id, dealer=job.dealer
            )
        except BaseException:
            self._dealer.close()
            raise

    def setup(self, engine: Engine, public: PublicModel, student: str, started: float) -> None:
        """Agree with the other owner on everything public, then set up the engine.

        Args:
            engine, public: the engine, whose channel is the one for asking, and what is public of the model.
            student: hex SHA-256 of the student's weights.
            started: the time from which the set-up is timed, in seconds of `time.perf_counter`.

        Raises:
            ProtocolError: the owners disagree; the error names the fields.
        """
        agreed = transcript.fields(
            self.job, engine, public, student, self.config.insecure, self.drawn_id, self.config.audit_rate
        )
        self._transcript = transcript.compare(self.asking, agreed)
        self.terms = transcript.terms(agreed)
        log.info("agreed on everything, transcript %s", self._transcript.hex()[:16])
        engine.setup(self.store)
        # What the weights took before they were encoded or unpacked is not needed again.
        give_freed_memory_back()
        self._engine = engine
        self._setup.seconds = time.perf_counter() - started
        self._setup.bytes_received = self.asking.counters.bytes_received
        self._ready_at = time.perf_counter()

    def tell(self, error: MPCFormerError) -> None:
        """Tell whoever ordered the session of an error, before a stream is cancelled because of it."""
        self._membership.tell(error)

    def check(self) -> None:
        """Raise the error of a session that was aborted; waits and long loops call this."""
        self._membership.check()

    @property
    def engine(self) -> Engine:
        """The engine, after `setup`."""
        if self._engine is None:
            raise ProtocolError("a batch is dealt after the set-up")
        return self._engine

    def size_of(self, shape: BatchShape) -> int:
        """Return the bytes that a batch keeps at an owner between dealing and use; the first time, plan it."""
        if shape not in self._sizes:
            self._sizes[shape] = bytes_of([request for segment in self.engine.plan(shape) for request in segment])
        return self._sizes[shape]

    def is_planned(self, shape: BatchShape) -> bool:
        """Return whether the size of this shape is known, which a plan tells."""
        return shape in self._sizes

    def deal(
        self,
        shape: BatchShape,
        pause: Callable[[], None] = lambda: None,
        begun: Callable[[Dealt], None] = lambda dealt: None,
    ) -> Dealt:
        """Do the offline part of a batch. Both owners call this at the same time, for one batch after the other.

        A batch that the owners choose to audit is dropped, and another one takes its place.

        Args:
            shape: the batch.
            pause: called before each segment, to let more urgent work pass.
            begun: called with the batch as soon as it may be computed, segment by segment: when it is planned, or once
                it is clear that it is not audited.

        Raises:
            PartyError: an audit found that the dealer dealt wrongly.
        """
        while True:
            dealt, segments, first = self._begin(shape)
            if not self.config.audit_rate:
                begun(dealt)
            try:
                requests = self._deal_segments(dealt, segments, first, pause)
            except BaseException as error:
                dealt.fail(error)
                raise
            if self._audit.passes(self._part, first, requests):
                dealt.note(dealt.n_segments, is_whole=True)
                if self.config.audit_rate:
                    begun(dealt)
                return dealt

    def _deal_segments(
        self, dealt: Dealt, segments: list[list[Request]], first: int, pause: Callable[[], None]
    ) -> list[Request]:
        """Deal the segments of a batch whose first operation is `first`; return its whole plan."""
        requests, at = [request for segment in segments for request in segment], first
        with self._dealt(requests, first) as frames:
            for index, segment in enumerate(segments):
                self.check()
                pause()
                with self._timed(self.dealing, dealt.offline):
                    self._receive(frames, segment, at, dealt.offline)
                    self._exchange(dealt.batch, index, segment, at)
                at += len(segment)
                # The data owner may be done with a segment without tables before the model owner has it. The last
                # segment, which may be the only one, waits for both, or the data owner would count that as computing.
                if index + 1 < len(segments):
                    dealt.note(index + 1)
        # The data owner waits for the keys of tables alone, and would be done before the model owner has the rest.
        with self._timed(self.dealing, dealt.offline):
            self._barrier()
        return requests

    def _exchange(self, batch: Batch, index: int, segment: list[Request], first: int) -> None:
        """Do the owners' own offline part of a segment whose first operation is `first`.

        The data owner sends its halves of openings while the dealer works for the model owner, and takes what the
        dealer made afterwards.
        """
        if self.rank == MODEL_OWNER:
            self._pass_on(segment, first)
            batch.offline(index)
        else:
            batch.offline(index)
            self._pass_on(segment, first)

    def _begin(self, shape: BatchShape) -> tuple[Dealt, list[list[Request]], int]:
        """Plan a batch; return it, its plan by segments, and the index of its first operation."""
        start = time.perf_counter()
        n_bytes = self.size_of(shape)
        segments = self.engine.plan(shape)
        requests = [request for segment in segments for request in segment]
        self._compare_plans(requests)
        first = self.store.next_operation
        self._part = self.store.reserve(len(requests), requests)
        batch = self.engine.batch(shape, self._part, self.dealing)
        dealt = Dealt(shape, batch, len(segments), n_bytes, first)
        dealt.offline.seconds = time.perf_counter() - start
        return dealt, segments, first

    def compute(
        self, dealt: Dealt, inputs: BatchInputs, tell: Callable[[int, int], None] = lambda done, of: None
    ) -> tuple[pb.BatchReport, Outcome]:
        """Do the online part of a batch; return its measurements and its outcome.

        If the batch is still being dealt, each segment waits until it is. Offline seconds are then those of segments
        that were dealt before this began, and those that it waited; dealing beside the computation is not counted.

        Args:
            dealt: the batch.
            inputs: the mask, and at the data owner the tokens; of the shape that was dealt.
            tell: called after each segment, with how many are done and how many there are.
        """
        report, outcome, offline_s = self._report(dealt), None, dealt.offline.seconds
        waited_s = 0.0
        with self._timed(self.asking, report.online), scoped_keys("batch", dealt.first_operation):
            dealt.batch.start(inputs, self.asking)
            for segment in range(dealt.n_segments):
                waited_s += dealt.wait(segment, self.check)
                outcome = dealt.batch.online(segment)
                tell(segment + 1, dealt.n_segments)
            waited_s += dealt.wait(dealt.n_segments, self.check)
        report.offline.CopyFrom(dealt.offline)
        report.offline.seconds = offline_s + waited_s
        report.online.seconds -= waited_s
        return self._measured(report, dealt), _whole(outcome)

    def deal_and_compute(
        self,
        inputs: BatchInputs,
        pool_bytes: int,
        tell: Callable[[int, int], None] = lambda done, of: None,
        online: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> tuple[pb.BatchReport, Outcome]:
        """Deal and compute a batch segment by segment, on the stream for dealing.

        The dealer's corrections of a segment arrive at the model owner while the one before is computed, if the pool
        has room for both. For each segment its offline part is finished first, then there is a barrier, then
        the online part.

        Args:
            inputs: as in `compute`.
            pool_bytes: how large the corrections may be that have arrived and are not used yet.
            tell: as in `compute`.
            online: entered for each online part.
        """
        dealt, segments, first = self._begin(inputs.shape)
        report, outcome = self._report(dealt), None
        dealt.batch.start(inputs, self.dealing)
        firsts = [first + sum(map(len, segments[:index])) for index in range(len(segments))]
        with self._dealt([request for segment in segments for request in segment], first) as frames:

            def receive(index: int) -> None:
                self._receive(frames, segments[index], firsts[index], report.offline)

            sizes = [bytes_of(segment) for segment in segments]
            room = min(pool_bytes, SEGMENTS_HELD * max(sizes))
            with Arrivals(receive, sizes, room, self.check) as arrivals:
                for index, segment in enumerate(segments):
                    with self._timed(self.dealing, report.offline):
                        arrivals.wait(index)
                        self._exchange(dealt.batch, index, segment, firsts[index])
                        self._barrier()
                    with self._timed(self.dealing, report.online), online(), scoped_keys("batch", firsts[index]):
                        outcome = dealt.batch.online(index)
                    arrivals.use(index)
                    tell(index + 1, len(segments))
        return self._measured(report, dealt), _whole(outcome)

    def _report(self, dealt: Dealt) -> pb.BatchReport:
        shape = dealt.shape
        return pb.BatchReport(batch_size=shape.batch_size, seq_len=shape.seq_len, offline=dealt.offline)

    def _measured(self, report: pb.BatchReport, dealt: Dealt) -> pb.BatchReport:
        report.breakdown.update(dealt.batch.breakdown())
        report.waited.update(dealt.batch.waited())
        metrics.batches.inc()
        metrics.sentences.inc(report.batch_size)
        for name, phase in (("offline", report.offline), ("online", report.online)):
            metrics.rounds.inc(phase.rounds)
            metrics.phase_seconds.labels(name).inc(phase.seconds)
            metrics.received_bytes.labels("owner").inc(phase.bytes_received)
            metrics.received_bytes.labels("dealer").inc(phase.bytes_from_dealer)
        return report

    @contextmanager
    def _timed(self, channel: PeerChannel, phase: pb.Phase) -> Iterator[None]:
        before, start = channel.counters.copy(), time.perf_counter()
        yield
        done = channel.counters.minus(before)
        phase.seconds += time.perf_counter() - start
        phase.bytes_received += done.bytes_received
        phase.rounds += done.rounds

    def _compare_plans(self, plan: list[Request]) -> None:
        mine = torch.frombuffer(bytearray(correlation_plan_digest(plan)), dtype=torch.uint8)
        self.dealing.send([mine])
        if not torch.equal(self.dealing.receive([Spec.of(mine)])[0], mine):
            raise ProtocolError(causes.disagreement("the plan of correlations"), "give both the same release")

    def _barrier(self) -> None:
        barrier = torch.zeros(1, dtype=torch.uint8)
        self.dealing.send([barrier])
        self.dealing.receive([Spec.of(barrier)])

    @contextmanager
    def _dealt(self, plan: list[Request], first: int) -> Iterator[Iterator[Frame]]:
        """Ask the dealer for a plan whose first operation is `first`, and give the frames in which it comes."""
        if self.rank != MODEL_OWNER or not plan:
            yield iter(())
            return
        batch = self._part.first_operation
        with self._dealer.dealing(plan, drawn_id=self.drawn_id, batch_operation=batch, first=first) as frames:
            yield frames

    def _receive(self, frames: Iterator[Frame], plan: list[Request], first: int, phase: pb.Phase) -> None:
        """Put the dealer's corrections for a part of a plan into the model owner's store."""

        def keep(operation: int, request: Request, correction: list[torch.Tensor]) -> None:
            self._audit.note(operation, correction)
            self._part.put(operation, request, correction)

        if self.rank == MODEL_OWNER:
            phase.bytes_from_dealer += self._dealer.receive(frames, plan, first, keep)

    def _pass_on(self, plan: list[Request], first: int) -> None:
        """Pass those corrections on that the data owner needs too, and expand them; the first operation is `first`."""
        shared = [(operation, request) for operation, request in enumerate(plan, start=first) if is_shared(request)]
        if not shared:
            return
        if self.rank == MODEL_OWNER:
            self.dealing.send([tensor for operation, _ in shared for tensor in self._part.passed_on(operation)])
        else:
            specs = [spec for _, request in shared for spec in correction_specs(request)]
            arrived = iter(self.dealing.receive(specs))
            for operation, request in shared:
                correction = [next(arrived) for _ in correction_specs(request)]
                self._part.put(operation, request, correction)
        for operation, _ in shared:
            self._part.prepare(operation)

    def report(self, examples_digest: bytes = b"", scores: pb.Scores | None = None) -> None:
        """Send the last report to whoever ordered the session, and close the channel to the dealer.

        Args:
            examples_digest: from the data owner, see `Report`.
            scores: from a data owner that withholds its answers.
        """
        began = self._ready_at or time.perf_counter()
        self.close()
        self._membership.part_done()
        self._membership.send(
            report=pb.Report(
                setup=self._setup,
                peak_rss_bytes=peak_rss_bytes(),
                transcript=self._transcript,
                batch_plan=examples_digest,
                seconds=time.perf_counter() - began,
                scores=scores,
            )
        )

    def close(self) -> None:
        """Close the channel to the dealer; nothing happens the second time."""
        self._dealer.close()


def bytes_of(requests: list[Request]) -> int:
    """Return the bytes that wait at an owner between dealing and use of these correlations."""
    return sum(map(kept_bytes, requests))


def _whole(outcome: Outcome | None) -> Outcome:
    if outcome is None:
        raise ProtocolError("the engine's last segment gave no outcome")
    return outcome
