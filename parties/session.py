"""What both owners do in a session: handshake, then for each batch the offline part, a barrier, and the online part."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import torch

from mpcformer.channel import Spec
from mpcformer.correlations import CorrelationStore, Request, correction_specs, plan_digest
from mpcformer.crypten_compat import FRAC_BITS
from mpcformer.errors import PartyError, ProtocolError
from mpcformer.inference.engine import MODEL_OWNER, BatchInputs, Engine, PublicModel
from parties.config import PROTOCOL_VERSION, PartyConfig
from parties.dealer import to_wire
from parties.membership import Membership, peak_rss_bytes
from parties.peer_channel import PeerChannel
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import from_frames, open_channel

# Corrections that wait at the model owner at one time; a bert-base batch of one sentence of 128 tokens fits.
POOL_BYTES = 768 << 20


@dataclass
class Measures:
    """What this owner measured, for its report."""

    setup: pb.Phase = field(default_factory=pb.Phase)
    batches: list[pb.BatchReport] = field(default_factory=list)

    def report(self) -> pb.Report:
        """The message, peak memory included."""
        return pb.Report(setup=self.setup, batches=self.batches, peak_rss_bytes=peak_rss_bytes())


class OwnerSession:
    """One owner's side of a session.

    Args:
        party: 0 model owner, 1 data owner.
        config, job: from file and coordinator.
        channel: to the other owner.
        membership: for progress.
    """

    def __init__(
        self, *, party: int, config: PartyConfig, job: pb.Job, channel: PeerChannel, membership: Membership
    ) -> None:
        self.party, self.config, self.job, self.channel = party, config, job, channel
        self.measures = Measures()
        self._membership = membership
        self._dealer_name = config.peers.dealer
        self._dealer_channel = open_channel(job.dealer_address, self._dealer_name, config.tls)
        membership.on_abort(lambda error: self._dealer_channel.close())
        self._dealer = rpc.DealerStub(self._dealer_channel)
        self.store = CorrelationStore(party=party, seed=self._open_dealer(), session_id=job.session_id)

    def _open_dealer(self) -> bytes:
        try:
            reply = self._dealer.OpenSession(
                pb.OpenSessionRequest(session_id=self.job.session_id),
                timeout=self.config.deadline_s,
                wait_for_ready=True,
            )
        except grpc.RpcError as error:
            raise PartyError(self._dealer_name, f"it gave no seed: {error.details()}") from None
        return bytes(reply.seed)

    def handshake(self, engine: Engine, public: PublicModel) -> None:
        """Compare everything public with the other owner.

        Raises:
            ProtocolError: naming the fields that differ.
        """
        fields = {
            "protocol version": str(PROTOCOL_VERSION),
            "engine": engine.name,
            "architecture, forms and ranges of the model": public.digest(),
            "constants of the engine": engine.fingerprint(),
            "fraction bits": str(FRAC_BITS),
        }
        mine = torch.stack([_digest(value) for value in fields.values()])
        self.channel.send([mine])
        theirs = self.channel.receive([Spec.of(mine)])[0]
        different = [name for name, a, b in zip(fields, mine, theirs, strict=True) if not torch.equal(a, b)]
        if different:
            raise ProtocolError(
                f"the owners disagree on: {', '.join(different)}",
                "give both the same release and the data owner the public files of this very student",
            )

    def setup(self, engine: Engine, public: PublicModel, started: float) -> None:
        """Handshake and the engine's own set-up, timed from `started`."""
        self.handshake(engine, public)
        engine.setup(self.store)
        phase = self.measures.setup
        phase.seconds = time.perf_counter() - started
        phase.bytes_received = self.channel.counters.bytes_received

    def run_batch(self, engine: Engine, inputs: BatchInputs, index: int, n_batches: int) -> torch.Tensor | None:
        """One batch: the plan, then its segments, offline before online. Logits (B, C) at the data owner.

        As many segments go through their offline part together as their correlations fit into the pool.
        """
        report = pb.BatchReport(batch_size=inputs.shape.batch_size, seq_len=inputs.shape.seq_len)
        start = time.perf_counter()
        segments = engine.plan(inputs.shape)
        self._compare_plans([request for segment in segments for request in segment])
        engine.start(inputs, self.store)
        report.offline.seconds = time.perf_counter() - start
        logits = None
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
                    logits = engine.online(segment)
        report.breakdown.update(engine.breakdown())
        self.measures.batches.append(report)
        self._membership.send(progress=pb.Progress(batch=index + 1, n_batches=n_batches))
        return logits

    @contextmanager
    def _timed(self, phase: pb.Phase) -> Iterator[None]:
        before, start = self.channel.counters.copy(), time.perf_counter()
        yield
        done = self.channel.counters.minus(before)
        phase.seconds += time.perf_counter() - start
        phase.bytes_received += done.bytes_received
        phase.rounds += done.rounds

    def _compare_plans(self, plan: list[Request]) -> None:
        mine = torch.frombuffer(bytearray(plan_digest(plan)), dtype=torch.uint8)
        self.channel.send([mine])
        if not torch.equal(self.channel.receive([Spec.of(mine)])[0], mine):
            raise ProtocolError("the owners derive different plans of correlations", "give both the same release")

    def _barrier(self) -> None:
        barrier = torch.zeros(1, dtype=torch.uint8)
        self.channel.send([barrier])
        self.channel.receive([Spec.of(barrier)])

    def _fetch(self, plan: list[Request], first: int, phase: pb.Phase) -> None:
        """The dealer's corrections for operations from `first` on, into the model owner's store."""
        if self.party != MODEL_OWNER:
            return
        request = pb.DealRequest(
            session_id=self.job.session_id, first_operation=first, plan=[to_wire(item) for item in plan]
        )
        try:
            frames = self._dealer.Deal(request)
            for operation, item in enumerate(plan, start=first):
                correction, n_bytes = from_frames(
                    frames,
                    correction_specs(item),
                    session_id=self.job.session_id,
                    sender=self._dealer_name,
                    operation=operation,
                )
                self.store.put(operation, item, correction)
                phase.bytes_from_dealer += n_bytes
        except grpc.RpcError as error:
            raise PartyError(self._dealer_name, f"it stopped dealing: {error.details()}") from None

    def close(self) -> None:
        """Report, and leave the dealer."""
        self._membership.send(report=self.measures.report())
        self._dealer_channel.close()


def pools(segments: list[list[Request]]) -> list[list[int]]:
    """Consecutive segments whose corrections fit into the pool together; a larger segment goes alone."""
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


def _digest(value: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(hashlib.sha256(value.encode()).digest()), dtype=torch.uint8)
