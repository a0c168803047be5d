"""An owner's correlations of one run of a program, dealt by the session's dealer in the order of the plan."""

import time
from collections.abc import Iterator

import grpc

from mpcformer.channel import Channel
from mpcformer.correlations import CorrelationStore, Dealt, Request, correction_specs, is_shared, kept_bytes
from mpcformer.engines.base import MODEL_OWNER
from mpcformer.errors import PartyError, ProtocolError
from parties.session.audit import Audit
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import causes
from parties.wire.correlation_requests import to_wire
from parties.wire.frame import Frame
from parties.wire.frames import StreamEndedError, from_frames


class ProgramStore:
    """The correlations of a plan.

    A plan that fits the pool is dealt whole before it is used, and may be audited. Of a larger one the first part waits
    in the pool, and the dealer sends the rest while the program runs.

    Args:
        rank: of the owner.
        seed: from the dealer.
        drawn_id: what both owners have drawn for this session, 16 bytes.
        plan: the requests.
        job: the session.
        dealer: where the corrections come from.
        channel: to the other owner, for those corrections that both need.
        pool_bytes: how many bytes of corrections may wait; the same at both owners.
        audit: the owner's side of audits.
    """

    def __init__(
        self,
        *,
        rank: int,
        seed: bytes,
        drawn_id: bytes,
        plan: list[Request],
        job: pb.Job,
        dealer: rpc.DealerStub,
        channel: Channel,
        pool_bytes: int,
        audit: Audit,
    ) -> None:
        self.bytes_from_dealer = self.n_audited = 0
        self._rank, self._drawn_id, self._plan, self._job = rank, drawn_id, plan, job
        self._dealer, self._channel, self._audit = dealer, channel, audit
        self._n_ahead = n_fitting(plan, pool_bytes)
        self._whole = CorrelationStore(rank=rank, seed=seed, session_id=drawn_id)
        self._part, self._first, self._n_here = self._whole, 0, 0
        self._frames: Iterator[Frame] = iter(())
        self._waiting_since: float | None = None

    def deal(self) -> None:
        """Let the plan be dealt, as far as the pool has room. Both owners call this at the same time.

        Raises:
            PartyError: the dealer failed, or an audit found that it dealt wrongly.
        """
        fits = self._n_ahead == len(self._plan)
        while self._plan:
            self._first, self._n_here = self._whole.next_operation, 0
            self._part = self._whole.reserve(len(self._plan))
            if self._rank == MODEL_OWNER:
                self._ask_dealer()
            while self._n_here < self._n_ahead:
                self._receive()
            if self._rank == MODEL_OWNER and fits and next(self._frames, None) is not None:
                raise PartyError(self._job.dealer, "it dealt more than the plan")
            if not fits or self._audit.passes(self._part, self._first, self._plan):
                return
            self.n_audited += 1

    @property
    def n_left(self) -> int:
        """How many correlations were planned and not used."""
        return len(self._plan) - (self._part.next_operation - self._first)

    def waited_s(self) -> float:
        """Return for how many seconds the dealer has been sending nothing; 0 if nothing is awaited."""
        since = self._waiting_since
        return 0.0 if since is None else time.monotonic() - since

    def take(self, request: Request) -> Dealt:
        """Return the next operation's correlation.

        Raises:
            ProtocolError: the program asks for another one than it planned.
        """
        operation = self._part.next_operation - self._first
        planned = self._plan[operation] if operation < len(self._plan) else None
        if planned != request:
            raise ProtocolError(
                f"program: operation {operation} was planned as {planned and planned.kind}, now {request.kind} is"
                " asked for",
                "let the program do the same whatever its values are",
            )
        if operation >= self._n_here:
            self._receive()
        return self._part.take(request)

    def _ask_dealer(self) -> None:
        wanted = [to_wire(request) for request in self._plan]
        request = pb.DealRequest(
            session_id=self._job.session_id,
            drawn_id=self._drawn_id,
            first_operation=self._first,
            batch_operation=self._first,
            plan=wanted,
        )
        self._frames = self._noting_when(self._dealer.Deal(iter([request])))

    def _noting_when(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        self._waiting_since = time.monotonic()
        try:
            for frame in frames:
                self._waiting_since = None
                yield frame
                self._waiting_since = time.monotonic()
        except grpc.RpcError as error:
            raise causes.of_call(self._job.dealer, error) from None
        finally:
            self._waiting_since = None

    def _receive(self) -> None:
        """Take what belongs to the next operation: from the dealer, or what the model owner passes on."""
        request, operation = self._plan[self._n_here], self._first + self._n_here
        if self._rank == MODEL_OWNER:
            self._receive_dealt(request, operation)
            if is_shared(request):
                self._channel.send(self._part.passed_on(operation))
        elif is_shared(request):
            self._part.put(operation, request, self._channel.receive(correction_specs(request)))
        self._n_here += 1

    def _receive_dealt(self, request: Request, operation: int) -> None:
        try:
            correction, n_bytes = from_frames(
                self._frames,
                correction_specs(request),
                session_id=self._job.session_id,
                sender=self._job.dealer,
                operation=operation,
            )
        except StreamEndedError:
            raise causes.connection_ended(self._job.dealer) from None
        except ProtocolError as error:
            raise PartyError(self._job.dealer, error.what, error.remedy) from None
        self._audit.note(operation, correction)
        self._part.put(operation, request, correction)
        self.bytes_from_dealer += n_bytes


def n_fitting(plan: list[Request], pool_bytes: int) -> int:
    """Return how many of a plan's first correlations wait in a pool of this size. Both owners count alike."""
    for n, request in enumerate(plan):
        pool_bytes -= kept_bytes(request)
        if pool_bytes < 0:
            return n
    return len(plan)
