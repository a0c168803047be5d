"""What both owners do in a session: agree on everything public, then run each batch, offline before online."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import torch

from mpcformer.channel import Spec
from mpcformer.correlations import CorrelationStore, Request, correction_specs, correlation_plan_digest
from mpcformer.engines.base import MODEL_OWNER, BatchInputs, Engine, Outcome, PublicModel
from mpcformer.errors import PartyError, ProtocolError
from parties.roles import transcript
from parties.roles.membership import Membership, peak_rss_bytes
from parties.settings import metrics
from parties.settings.config import DataOwnerConfig, ModelOwnerConfig
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import causes
from parties.wire.correlation_requests import to_wire
from parties.wire.frames import StreamEndedError, from_frames, open_channel
from parties.wire.peer_channel import PeerChannel

# The size of the corrections that wait at the model owner at one time. The corrections for one sentence of 128 tokens
# fit, for a student of the size of bert-base.
POOL_BYTES = 768 << 20
log = logging.getLogger(__name__)


class OwnerSession:
    """The part of one owner in a session, from the dealer's seed to the last report.

    Args:
        rank: 0 for the model owner, 1 for the data owner.
        config: the owner's configuration.
        job: the job, as the coordinator stated it.
        channel: the channel to the other owner.
        membership: the connection to the coordinator.
    """

    def __init__(
        self,
        *,
        rank: int,
        config: ModelOwnerConfig | DataOwnerConfig,
        job: pb.Job,
        channel: PeerChannel,
        membership: Membership,
    ) -> None:
        self.rank, self.config, self.job, self.channel = rank, config, job, channel
        self._setup = pb.Phase()
        self._transcript = self.terms = b""
        self._membership = membership
        self._asked_dealer_at: float | None = None
        self._dealer_channel = open_channel(job.dealer_address, job.dealer, config.credentials)
        membership.on_abort(lambda error: self._dealer_channel.close())
        membership.watch(job.dealer, self._dealer_waited_s)
        self._dealer = rpc.DealerStub(self._dealer_channel)
        try:
            self.store = CorrelationStore(rank=rank, seed=self._open_dealer(), session_id=job.session_id)
        except BaseException:
            self._dealer_channel.close()
            raise

    def _open_dealer(self) -> bytes:
        try:
            reply = self._dealer.OpenSession(
                iter([pb.OpenSessionRequest(session_id=self.job.session_id)]),
                timeout=self.config.join_timeout_s,
                wait_for_ready=True,
            )
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                timeout_s = self.config.join_timeout_s
                raise causes.unreachable(self.job.dealer, self.job.dealer_address, timeout_s) from None
            raise causes.of_call(self.job.dealer, error) from None
        return bytes(reply.seed)

    def setup(
        self, engine: Engine, public: PublicModel, student: str, batches: list[tuple[int, int]], started: float
    ) -> None:
        """Agree with the other owner on everything public, then set up the engine.

        Args:
            engine, public: the engine and what is public of the model.
            student: hex SHA-256 of the student's weights.
            batches: (sentences, padded length) of every batch of this session.
            started: the time from which the set-up is timed, in seconds of `time.perf_counter`.

        Raises:
            ProtocolError: the owners disagree; the error names the fields.
        """
        agreed = transcript.fields(self.job, engine, public, student, batches, self.config.insecure)
        self._transcript = transcript.compare(self.channel, agreed)
        self.terms = transcript.terms(agreed)
        log.info("agreed on everything, transcript %s", self._transcript.hex()[:16])
        engine.setup(self.store)
        self._setup.seconds = time.perf_counter() - started
        self._setup.bytes_received = self.channel.counters.bytes_received

    def run_batch(
        self, engine: Engine, inputs: BatchInputs, index: int, n_batches: int
    ) -> tuple[pb.BatchReport, Outcome]:
        """Run one batch of B sentences; return its measurements, and what this owner learns of it.

        The segments of the plan run in groups whose correlations fit into the pool together. For each group the
        offline part runs first, then a barrier, then the online part.
        """
        report = pb.BatchReport(batch_size=inputs.shape.batch_size, seq_len=inputs.shape.seq_len)
        start = time.perf_counter()
        segments = engine.plan(inputs.shape)
        self._compare_plans([request for segment in segments for request in segment])
        engine.start(inputs, self.store)
        report.offline.seconds = time.perf_counter() - start
        outcome = None
        first = self.store.next_operation
        for group in pools(segments):
            with self._timed(report.offline):
                for segment in group:
                    self._fetch(segments[segment], first, report.offline)
                    first += len(segments[segment])
                    engine.offline(segment)
                self._barrier()
            with self._timed(report.online):
                for segment in group:
                    outcome = engine.online(segment)
                    self._tell(index, n_batches, segment + 1, len(segments))
        report.breakdown.update(engine.breakdown())
        report.waited.update(engine.waited())
        self._count(report)
        if outcome is None:
            raise ProtocolError("the engine's last segment has no outcome")
        return report, outcome

    def _tell(self, index: int, n_batches: int, segment: int, n_segments: int) -> None:
        counted = self.channel.counters
        self._membership.send(
            progress=pb.Progress(
                batch=index,
                n_batches=n_batches,
                segment=segment,
                n_segments=n_segments,
                rounds=counted.rounds,
                bytes=counted.bytes_received,
            )
        )

    def _count(self, report: pb.BatchReport) -> None:
        metrics.batches.inc()
        metrics.sentences.inc(report.batch_size)
        for name, phase in (("offline", report.offline), ("online", report.online)):
            metrics.rounds.inc(phase.rounds)
            metrics.phase_seconds.labels(name).inc(phase.seconds)
            metrics.received_bytes.labels("owner").inc(phase.bytes_received)
            metrics.received_bytes.labels("dealer").inc(phase.bytes_from_dealer)

    @contextmanager
    def _timed(self, phase: pb.Phase) -> Iterator[None]:
        before, start = self.channel.counters.copy(), time.perf_counter()
        yield
        done = self.channel.counters.minus(before)
        phase.seconds += time.perf_counter() - start
        phase.bytes_received += done.bytes_received
        phase.rounds += done.rounds

    def _compare_plans(self, plan: list[Request]) -> None:
        mine = torch.frombuffer(bytearray(correlation_plan_digest(plan)), dtype=torch.uint8)
        self.channel.send([mine])
        if not torch.equal(self.channel.receive([Spec.of(mine)])[0], mine):
            raise ProtocolError(causes.disagreement("the plan of correlations"), "give both the same release")

    def _barrier(self) -> None:
        barrier = torch.zeros(1, dtype=torch.uint8)
        self.channel.send([barrier])
        self.channel.receive([Spec.of(barrier)])

    def _fetch(self, plan: list[Request], first: int, phase: pb.Phase) -> None:
        """Fetch the dealer's corrections for a plan into the model owner's store; its first operation is `first`."""
        if self.rank != MODEL_OWNER:
            return
        request = pb.DealRequest(
            session_id=self.job.session_id, first_operation=first, plan=[to_wire(item) for item in plan]
        )
        try:
            frames = self._noting_when(self._dealer.Deal(iter([request])))
            for operation, item in enumerate(plan, start=first):
                correction, n_bytes = from_frames(
                    frames,
                    correction_specs(item),
                    session_id=self.job.session_id,
                    sender=self.job.dealer,
                    operation=operation,
                )
                self.store.put(operation, item, correction)
                phase.bytes_from_dealer += n_bytes
            if next(frames, None) is not None:
                raise PartyError(self.job.dealer, "it dealt more than the plan")
        except grpc.RpcError as error:
            raise causes.of_call(self.job.dealer, error) from None
        except StreamEndedError:
            raise PartyError(self.job.dealer, "it dealt less than the plan") from None
        except ProtocolError as error:
            raise PartyError(self.job.dealer, error.what, error.remedy) from None
        finally:
            self._asked_dealer_at = None

    def _noting_when(self, frames: Iterator[pb.Frame]) -> Iterator[pb.Frame]:
        self._asked_dealer_at = time.monotonic()
        for frame in frames:
            self._asked_dealer_at = None
            yield frame
            self._asked_dealer_at = time.monotonic()

    def _dealer_waited_s(self) -> float:
        since = self._asked_dealer_at
        return 0.0 if since is None else time.monotonic() - since

    def report(self, examples_digest: bytes = b"") -> None:
        """Send the last report to the coordinator, and close the channel to the dealer."""
        self._dealer_channel.close()
        self._membership.part_done()
        self._membership.send(
            report=pb.Report(
                setup=self._setup,
                peak_rss_bytes=peak_rss_bytes(),
                transcript=self._transcript,
                batch_plan=examples_digest,
            )
        )


def pools(segments: list[list[Request]]) -> list[list[int]]:
    """Return groups of consecutive segments whose corrections fit into the pool together.

    A segment that exceeds the pool is a group of its own.
    """
    groups: list[list[int]] = []
    room = 0
    for index, segment in enumerate(segments):
        size = sum(spec.n_bytes for request in segment for spec in correction_specs(request))
        if size > room or not groups:
            groups.append([])
            room = POOL_BYTES
        groups[-1].append(index)
        room -= size
    return groups
