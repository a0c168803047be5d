"""The dealer: makes correlated randomness from its own seeds and the plans it receives.

The dealer sees no input and no weight. The coordinator tells it which sessions exist and when they end.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import torch

from mpcformer.correlations import Request, deal, mask_keys, session_key, validate
from mpcformer.errors import ProtocolError, UserInputError
from mpcformer.ring.random import KEY_BYTES, fresh_key, scoped_keys
from parties.session import attestation
from parties.session.failure import as_known
from parties.session.membership import Membership, peak_rss_bytes
from parties.settings import metrics
from parties.settings.config import DealerConfig
from parties.settings.logs import session_log
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire.callers import at_end, first_message, refuse, refuse_unknown_session, require_caller
from parties.wire.correlation_requests import from_wire
from parties.wire.frame import Frame
from parties.wire.frames import to_frames
from parties.wire.guard import Rule

log = logging.getLogger(__name__)
MAX_PLAN = 100_000


class RefusedError(Exception):
    """A call that the rules of a session do not allow.

    Args:
        code: the status with which the call ends.
        why: a sentence for the caller.
    """

    def __init__(self, code: grpc.StatusCode, why: str) -> None:
        super().__init__(why)
        self.code, self.why = code, why


@dataclass(eq=False)
class Dealing:
    """A plan while it is dealt.

    Args:
        plan: the requests, validated.
        first_operation: the operation index of the first request.
        batch_operation: that of the first request of the batch, of which the plan may be a later part.
        cancel: ends the call to which the corrections are streamed.
    """

    plan: list[Request]
    first_operation: int
    batch_operation: int
    cancel: Callable[[], object]


class Session:
    """One session: its two owners, their seeds, and which operations were dealt.

    Args:
        session_id: 16 bytes, the name of the session.
        model_owner, data_owner: party ids.
        evidence: what the owners are shown of the dealer's environment.
        first_operation: the index of the first operation that is dealt, see the message `Job`.
    """

    def __init__(
        self, session_id: bytes, model_owner: str, data_owner: str, evidence: bytes = b"", first_operation: int = 0
    ) -> None:
        self.model_owner, self.data_owner, self.evidence = model_owner, data_owner, evidence
        self._name = session_id
        # What the owners have drawn, as the model owner says with its first plan.
        self._id = b""
        self._seeds = {model_owner: fresh_key(), data_owner: fresh_key()}
        self._opened: set[str] = set()
        self._next_operation = first_operation
        self._dealing: Dealing | None = None
        # Called with an error that nobody foresaw.
        self.on_bug: Callable[[Exception], None] = lambda error: None
        self._ended = False
        self._lock = threading.Lock()

    def seed_of(self, owner: str) -> bytes:
        """Return the secret seed of an owner, 16 bytes; each owner gets it once.

        Raises:
            RefusedError: this owner has its seed already.
        """
        with self._lock:
            if owner in self._opened:
                what = f"{owner} has the seed of this session already"
                raise RefusedError(grpc.StatusCode.ALREADY_EXISTS, what)
            self._opened.add(owner)
        return self._seeds[owner]

    def begin(
        self,
        caller: str,
        first_operation: int,
        plan: Sequence[pb.CorrelationRequest],
        cancel: Callable[[], object],
        drawn_id: bytes,
        batch_operation: int,
    ) -> Dealing:
        """Check a plan and reserve its operations, so that each is dealt once.

        Args:
            caller: the party id of the caller.
            first_operation: the operation index of the plan's first request.
            plan: the requests as they arrived.
            cancel: ends the call.
            drawn_id: the id that the owners have drawn for this session, 16 bytes; the same in all calls.
            batch_operation: the operation index of the first request of the batch that the plan is a part of.

        Raises:
            RefusedError: the caller may not ask for this plan, or not now, or the plan is invalid.
        """
        codes = grpc.StatusCode
        if caller != self.model_owner:
            raise RefusedError(codes.PERMISSION_DENIED, f"corrections are for {self.model_owner}, not {caller}")
        if len(self._opened) < 2:
            raise RefusedError(codes.FAILED_PRECONDITION, "both owners must open the session first")
        try:
            if not 1 <= len(plan) <= MAX_PLAN:
                raise ProtocolError(f"a plan of {len(plan)} operations, expected 1..{MAX_PLAN}")
            requests = [from_wire(item) for item in plan]
            for request in requests:
                validate(request)
        except ProtocolError as error:
            raise RefusedError(codes.INVALID_ARGUMENT, str(error)) from None
        if len(drawn_id) != KEY_BYTES:
            raise RefusedError(codes.INVALID_ARGUMENT, f"a drawn id of {len(drawn_id)} bytes, expected {KEY_BYTES}")
        if batch_operation > first_operation:
            what = f"a batch that begins with operation {batch_operation}, after its part from {first_operation} on"
            raise RefusedError(codes.INVALID_ARGUMENT, what)
        with self._lock:
            self._id = self._id or drawn_id
            if drawn_id != self._id:
                raise RefusedError(codes.INVALID_ARGUMENT, "the owners draw one id for a session, and keep it")
            if self._dealing is not None:
                raise RefusedError(codes.RESOURCE_EXHAUSTED, "a session is dealt one plan at a time")
            if first_operation != self._next_operation:
                what = f"operation {first_operation} is not next ({self._next_operation}): each is dealt once"
                raise RefusedError(codes.ALREADY_EXISTS, what)
            self._next_operation += len(requests)
            self._dealing = dealing = Dealing(requests, first_operation, batch_operation, cancel)
        return dealing

    def corrections(self, dealing: Dealing) -> Iterator[tuple[int, list[torch.Tensor]]]:
        """Yield (operation index, correction) for each request of a plan.

        Raises:
            RefusedError: the session has ended meanwhile.
        """
        seeds = [self._seeds[self.model_owner], self._seeds[self.data_owner]]
        masks = mask_keys(seeds[0], self._id, dealing.batch_operation)
        for operation, request in enumerate(dealing.plan, start=dealing.first_operation):
            if self._ended:
                raise RefusedError(grpc.StatusCode.ABORTED, "the session has ended")
            keys = [session_key(seed, self._id, operation, request) for seed in seeds]
            with scoped_keys("dealing", self._name, operation):
                correction = deal(request, keys[0], keys[1], masks)
            metrics.dealt_operations.inc()
            yield operation, correction

    def finish(self, dealing: Dealing) -> None:
        """Allow the next plan; calling this twice does no harm."""
        with self._lock:
            if self._dealing is dealing:
                self._dealing = None

    def end(self) -> None:
        """Deal nothing more, and cancel the call that is served now."""
        self._ended = True
        if (dealing := self._dealing) is not None:
            dealing.cancel()


class DealerService(rpc.DealerServicer):
    """The Dealer service: finds the session of a call and lets `Session` decide.

    Args:
        party_id: the dealer's party id.
        owners: the party ids that may call at all.
    """

    def __init__(self, party_id: str, owners: list[str]) -> None:
        self._party_id, self._owners = party_id, owners
        self._sessions: dict[bytes, Session] = {}

    @contextmanager
    def session(
        self,
        session_id: bytes,
        model_owner: str,
        data_owner: str,
        on_bug: Callable[[Exception], None] = lambda error: None,
        evidence: bytes = b"",
        first_operation: int = 0,
    ) -> Iterator[None]:
        """Serve these two owners in this session; its seeds are forgotten afterwards.

        Args:
            session_id: 16 bytes.
            model_owner, data_owner: party ids.
            on_bug: called with an error in a call of the session that nobody foresaw.
            evidence: what the owners are shown of the dealer's environment.
            first_operation: the index of the first operation that is dealt.
        """
        session = Session(session_id, model_owner, data_owner, evidence, first_operation)
        self._sessions[session_id] = session
        session.on_bug = on_bug
        try:
            yield
        finally:
            del self._sessions[session_id]
            session.end()

    def _find(self, session_id: bytes, context: grpc.ServicerContext) -> tuple[Session, str]:
        """Return the session and the party id of the owner that calls."""
        session = self._sessions.get(session_id)
        if session is None:
            refuse_unknown_session(context)
        return session, require_caller(context, session.model_owner, session.data_owner)

    def OpenSession(  # noqa: N802 (gRPC's name)
        self, request_iterator: Iterator[pb.OpenSessionRequest], context: grpc.ServicerContext
    ) -> pb.OpenSessionReply:
        """Give the calling owner its own fresh seed, once a session."""
        require_caller(context, *self._owners)
        request = first_message(request_iterator, context)
        session, caller = self._find(request.session_id, context)
        try:
            return pb.OpenSessionReply(seed=session.seed_of(caller), evidence=session.evidence)
        except RefusedError as error:
            refuse(context, error.code, error.why)

    def Deal(self, request_iterator: Iterator[pb.DealRequest], context: grpc.ServicerContext) -> Iterator[Frame]:  # noqa: N802
        """Stream the corrections of a plan to the model owner."""
        require_caller(context, *self._owners)
        request = first_message(request_iterator, context)
        session, caller = self._find(request.session_id, context)
        try:
            dealing = session.begin(
                caller,
                request.first_operation,
                request.plan,
                context.cancel,
                request.drawn_id,
                request.batch_operation,
            )
            at_end(context, lambda: session.finish(dealing))
            with session_log(request.session_id):
                log.info("dealing %d operations from %d", len(dealing.plan), dealing.first_operation)
            for operation, correction in session.corrections(dealing):
                yield from to_frames(
                    correction, session_id=request.session_id, sender=self._party_id, operation=operation
                )
            # The owner asks for its next plan as soon as it hears of the end of this one.
            session.finish(dealing)
        except RefusedError as error:
            refuse(context, error.code, error.why)
        except Exception as error:
            if type(error) is not Exception:  # gRPC raises one where a call has ended.
                session.on_bug(error)
            raise


class Dealer:
    """The dealer as a service, from its configuration."""

    def __init__(self, config: DealerConfig) -> None:
        self._config = config
        attestation.read(config.evidence)  # a wrong file is told at the start, and not to the first session
        self._owners = [*config.model_owners, *config.data_owners]
        self._service = DealerService(config.id, self._owners)

    @property
    def rules(self) -> dict[str, Rule]:
        """What the methods of the Dealer service allow: an owner has a call for each of its sessions, and a spare."""
        methods = "/mpcformer.v1.Dealer/OpenSession", "/mpcformer.v1.Dealer/Deal"
        return dict.fromkeys(methods, Rule(self._owners, 2 * self._config.max_sessions))

    def add_to(self, server: grpc.Server) -> None:
        """Register the Dealer service."""
        rpc.add_DealerServicer_to_server(self._service, server)

    def run_session(self, job: pb.Job, membership: Membership) -> None:
        """Deal until the coordinator says that the session is finished."""
        if job.model_owner not in self._config.model_owners:
            raise UserInputError(
                f"the job names model owner {job.model_owner!r}",
                f"add it to model_owners in {self._config.id}'s configuration, or correct the job",
            )

        def failed(error: Exception) -> None:
            membership.abort(as_known(error, self._config.id))

        evidence = attestation.read(self._config.evidence)
        with self._service.session(
            job.session_id, job.model_owner, job.data_owner, failed, evidence, job.first_operation
        ):
            # The dealer has no result of its own to report: its part is done when the owners' is.
            membership.part_done()
            membership.send(ready=pb.Ready())
            membership.dismissed()
        membership.send(report=pb.Report(peak_rss_bytes=peak_rss_bytes()))
