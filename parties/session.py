"""What both owners do in a session: handshake, then for each batch the offline part, a barrier, and the online part."""

import hashlib
import resource
import time
from dataclasses import dataclass, field

import grpc
import torch

from mpcformer.channel import Spec
from mpcformer.correlations import CorrelationStore, correction_specs, plan_digest
from mpcformer.crypten_compat import FRAC_BITS
from mpcformer.errors import PartyError, ProtocolError
from mpcformer.inference.engine import MODEL_OWNER, BatchInputs, Engine, PublicModel
from parties.config import PROTOCOL_VERSION, PartyConfig
from parties.dealer import to_wire
from parties.membership import Membership
from parties.peer_channel import PeerChannel
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import from_frames, open_channel


@dataclass
class Measures:
    """What this owner measured, for its report."""

    setup: pb.Phase = field(default_factory=pb.Phase)
    batches: list[pb.BatchReport] = field(default_factory=list)

    def report(self) -> pb.Report:
        """The message, peak memory included."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return pb.Report(setup=self.setup, batches=self.batches, peak_rss_bytes=peak)


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
        engine.setup()
        phase = self.measures.setup
        phase.seconds = time.perf_counter() - started
        phase.bytes_received = self.channel.counters.bytes_received

    def run_batch(self, engine: Engine, inputs: BatchInputs, index: int, n_batches: int) -> torch.Tensor | None:
        """One batch: plan, offline, barrier, online. Logits (B, C) at the data owner."""
        report = pb.BatchReport(batch_size=inputs.shape.batch_size, seq_len=inputs.shape.seq_len)
        self._offline(engine, inputs, report.offline)
        before, start = self.channel.counters.copy(), time.perf_counter()
        logits = engine.infer(inputs, self.store)
        done = self.channel.counters.minus(before)
        report.online.seconds = time.perf_counter() - start
        report.online.bytes_received, report.online.rounds = done.bytes_received, done.rounds
        self.measures.batches.append(report)
        self._membership.send(progress=pb.Progress(batch=index + 1, n_batches=n_batches))
        return logits

    def _offline(self, engine: Engine, inputs: BatchInputs, phase: pb.Phase) -> None:
        before, start = self.channel.counters.copy(), time.perf_counter()
        plan = engine.plan(inputs.shape)
        mine = torch.frombuffer(bytearray(plan_digest(plan)), dtype=torch.uint8)
        self.channel.send([mine])
        if not torch.equal(self.channel.receive([Spec.of(mine)])[0], mine):
            raise ProtocolError("the owners derive different plans of correlations", "give both the same release")
        barrier = torch.zeros(1, dtype=torch.uint8)
        if self.party == MODEL_OWNER:
            request = pb.DealRequest(
                session_id=self.job.session_id,
                first_operation=self.store.next_operation,
                plan=[to_wire(item) for item in plan],
            )
            try:
                frames = self._dealer.Deal(request)
                for operation, item in enumerate(plan, start=request.first_operation):
                    correction, n_bytes = from_frames(
                        frames,
                        correction_specs(item),
                        session_id=self.job.session_id,
                        sender=self._dealer_name,
                        operation=operation,
                    )
                    self.store.put(operation, correction)
                    phase.bytes_from_dealer += n_bytes
            except grpc.RpcError as error:
                raise PartyError(self._dealer_name, f"it stopped dealing: {error.details()}") from None
            self.channel.send([barrier])
        else:
            self.channel.receive([Spec.of(barrier)])
        phase.seconds = time.perf_counter() - start
        phase.bytes_received = self.channel.counters.minus(before).bytes_received

    def close(self) -> None:
        """Report, and leave the dealer."""
        self._membership.send(report=self.measures.report())
        self._dealer_channel.close()


def _digest(value: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(hashlib.sha256(value.encode()).digest()), dtype=torch.uint8)
