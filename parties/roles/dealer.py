"""The dealer: makes correlated randomness from its own seeds and plans it is told. It sees no input and no weight."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from mpcformer.correlations import Request, deal, session_key, validate, weight_mask_key
from mpcformer.errors import ProtocolError, UserInputError
from mpcformer.ring.random import fresh_key, scoped_keys
from parties.roles.membership import Membership, peak_rss_bytes
from parties.settings import metrics
from parties.settings.config import DealerConfig
from parties.settings.logs import session_log
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire.frames import serve_guarded, to_frames
from parties.wire.tls import require_caller

log = logging.getLogger(__name__)
MAX_PLAN = 100_000
NO_SESSION = "no such session: the coordinator did not order it, or it has ended"


class Session:
    """One session's owners, their seeds, and which operations were dealt.

    Args:
        model_owner, data_owner: ids.
    """

    def __init__(self, model_owner: str, data_owner: str) -> None:
        self.model_owner, self.data_owner = model_owner, data_owner
        self.seeds = {model_owner: fresh_key(), data_owner: fresh_key()}
        self.opened: set[str] = set()
        self.next_operation = 0
        self.dealing: Callable[[], object] | None = None
        self.ended = False


class DealerService(rpc.DealerServicer):
    """The Dealer service: sessions are known by the coordinator's word, and end with it.

    Args:
        party_id: the dealer's.
        owners: ids that may call at all.
    """

    def __init__(self, party_id: str, owners: list[str]) -> None:
        self._id, self._owners = party_id, owners
        self._sessions: dict[bytes, Session] = {}
        self._lock = threading.Lock()

    @contextmanager
    def session(self, session_id: bytes, model_owner: str, data_owner: str) -> Iterator[None]:
        """Serve these two owners in this session; afterwards its seeds are forgotten."""
        session = Session(model_owner, data_owner)
        with self._lock:
            self._sessions[session_id] = session
        try:
            yield
        finally:
            with self._lock:
                session.ended = True
                del self._sessions[session_id]
            if session.dealing is not None:
                session.dealing()

    def _find(self, session_id: bytes, context: grpc.ServicerContext) -> tuple[Session, str]:
        """The session and which of its owners calls."""
        require_caller(context, *self._owners)
        session = self._sessions.get(session_id)
        if session is None:
            context.abort(grpc.StatusCode.NOT_FOUND, NO_SESSION)
            raise AssertionError("abort raises")
        return session, require_caller(context, session.model_owner, session.data_owner)

    def OpenSession(  # noqa: N802 (gRPC's name)
        self, request: pb.OpenSessionRequest, context: grpc.ServicerContext
    ) -> pb.OpenSessionReply:
        """Give the calling owner its own fresh seed, once a session."""
        session, caller = self._find(request.session_id, context)
        with self._lock:
            if caller in session.opened:
                context.abort(grpc.StatusCode.ALREADY_EXISTS, f"{caller} has the seed of this session already")
            session.opened.add(caller)
        return pb.OpenSessionReply(seed=session.seeds[caller])

    def Deal(self, request: pb.DealRequest, context: grpc.ServicerContext) -> Iterator[pb.Frame]:  # noqa: N802
        """Stream the corrections of a plan to the model owner, each operation once."""
        session, caller = self._find(request.session_id, context)
        if caller != session.model_owner:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f"corrections are for {session.model_owner}, not {caller}")
        if len(session.opened) < 2:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "both owners must open the session first")
        try:
            if not 1 <= len(request.plan) <= MAX_PLAN:
                raise ProtocolError(f"a plan of {len(request.plan)} operations, expected 1..{MAX_PLAN}")
            plan = [from_wire(item) for item in request.plan]
            for item in plan:
                validate(item)
        except ProtocolError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        with self._lock:
            if session.dealing is not None:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "a session is dealt one plan at a time")
            if request.first_operation != session.next_operation:
                context.abort(
                    grpc.StatusCode.ALREADY_EXISTS,
                    f"operation {request.first_operation} is not next ({session.next_operation}): each is dealt once",
                )
            session.next_operation += len(plan)
            cancel = session.dealing = context.cancel

        def ended() -> None:
            if session.dealing is cancel:
                session.dealing = None

        context.add_callback(ended)
        with session_log(request.session_id):
            log.info("dealing %d operations from %d", len(plan), request.first_operation)
        seeds = [session.seeds[session.model_owner], session.seeds[session.data_owner]]
        weight_key = weight_mask_key(seeds[0], request.session_id)
        for operation, item in enumerate(plan, start=request.first_operation):
            if session.ended:
                context.abort(grpc.StatusCode.ABORTED, "the session has ended")
            keys = [session_key(seed, request.session_id, operation, item) for seed in seeds]
            with scoped_keys("dealing", request.session_id, operation):
                correction = deal(item, keys[0], keys[1], weight_key)
            metrics.dealt_operations.inc()
            yield from to_frames(correction, session_id=request.session_id, sender=self._id, operation=operation)
        ended()  # before the owner hears of the end, and asks for the next plan


def from_wire(message: pb.CorrelationRequest) -> Request:
    """A request as it came; not yet validated."""
    shapes = tuple(tuple(shape.sizes) for shape in message.shapes)
    return Request(message.kind, shapes, op=message.op, bits=message.bits, params=tuple(message.params))


def to_wire(request: Request) -> pb.CorrelationRequest:
    """A request as it travels."""
    shapes = [pb.CorrelationShape(sizes=shape) for shape in request.shapes]
    return pb.CorrelationRequest(
        kind=request.kind, shapes=shapes, op=request.op, bits=request.bits, params=request.params
    )


class Dealer:
    """The dealer as a service."""

    def __init__(self, config: DealerConfig) -> None:
        self._config = config
        self._service = DealerService(config.id, [*config.model_owners, *config.data_owners])

    def add_to(self, server: grpc.Server) -> None:
        """Register the Dealer service."""
        calls = 2 * self._config.max_sessions
        serve_guarded(server, rpc.add_DealerServicer_to_server, self._service, calls)

    def run_session(self, job: pb.Job, membership: Membership) -> None:
        """Deal until the coordinator says that all is done."""
        if job.model_owner not in self._config.model_owners:
            raise UserInputError(
                f"the job names model owner {job.model_owner!r}",
                f"{self._config.id}'s model_owners lack it",
            )
        with self._service.session(job.session_id, job.model_owner, job.data_owner):
            membership.part_done()  # it has no last word of its own: the owners' end is its end
            membership.send(ready=pb.Ready())
            membership.dismissed()
        membership.send(report=pb.Report(peak_rss_bytes=peak_rss_bytes()))
