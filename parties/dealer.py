"""The dealer: makes correlated randomness from its own seeds and plans it is told. It sees no input and no weight."""

import logging
import threading
from collections.abc import Callable, Iterator

import grpc

from mpcformer.correlations import Request, deal, session_key, validate, weight_mask_key
from mpcformer.errors import ProtocolError
from mpcformer.ring.random import KEY_BYTES, fresh_key
from parties.config import PartyConfig
from parties.membership import Membership, peak_rss_bytes
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.tls import require_caller
from parties.wire import start_server, to_frames

log = logging.getLogger(__name__)
MAX_PLAN = 100_000


class Session:
    """One session's seeds, and which operations were dealt."""

    def __init__(self) -> None:
        self.seeds: dict[str, bytes] = {}
        self.next_operation = 0


class DealerService(rpc.DealerServicer):
    """The Dealer service for the owners named in the configuration."""

    def __init__(self, config: PartyConfig, on_dealt: Callable[[], None] = lambda: None) -> None:
        self._on_dealt = on_dealt
        self._id = config.id
        self._model_owner, self._data_owner = config.peers.model_owner, config.peers.data_owner
        self._sessions: dict[bytes, Session] = {}
        self._lock = threading.Lock()

    def OpenSession(  # noqa: N802 (gRPC's name)
        self, request: pb.OpenSessionRequest, context: grpc.ServicerContext
    ) -> pb.OpenSessionReply:
        """Give the calling owner its own fresh seed, once a session."""
        caller = require_caller(context, self._model_owner, self._data_owner)
        if len(request.session_id) != KEY_BYTES:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"session id of {len(request.session_id)} bytes, expected 16"
            )
        with self._lock:
            session = self._sessions.setdefault(request.session_id, Session())
            if caller in session.seeds:
                context.abort(grpc.StatusCode.ALREADY_EXISTS, f"{caller} has the seed of this session already")
            session.seeds[caller] = fresh_key()
        log.info("session opened by %s", caller)
        return pb.OpenSessionReply(seed=session.seeds[caller])

    def Deal(self, request: pb.DealRequest, context: grpc.ServicerContext) -> Iterator[pb.Frame]:  # noqa: N802
        """Stream the corrections of a plan to the model owner, each operation once."""
        require_caller(context, self._model_owner)
        session = self._sessions.get(request.session_id)
        if session is None or len(session.seeds) < 2:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "both owners must open the session first")
            raise AssertionError("abort raises")
        plan = [from_wire(item) for item in request.plan]
        try:
            if not 1 <= len(plan) <= MAX_PLAN:
                raise ProtocolError(f"a plan of {len(plan)} operations, expected 1..{MAX_PLAN}")
            for item in plan:
                validate(item)
        except ProtocolError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        with self._lock:
            if request.first_operation != session.next_operation:
                context.abort(
                    grpc.StatusCode.ALREADY_EXISTS,
                    f"operation {request.first_operation} is not next ({session.next_operation}): each is dealt once",
                )
            session.next_operation += len(plan)
        log.info("dealing %d operations from %d", len(plan), request.first_operation)
        seeds = [session.seeds[self._model_owner], session.seeds[self._data_owner]]
        weight_key = weight_mask_key(seeds[0], request.session_id)
        for operation, item in enumerate(plan, start=request.first_operation):
            keys = [session_key(seed, request.session_id, operation, item) for seed in seeds]
            correction = deal(item, keys[0], keys[1], weight_key)
            if operation == request.first_operation + len(plan) - 1:
                self._on_dealt()  # before the owner has it all, lest the session ends first
            yield from to_frames(correction, session_id=request.session_id, sender=self._id, operation=operation)


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


def run(config: PartyConfig, membership: Membership) -> None:
    """Serve until the coordinator says that all is done."""
    service = DealerService(config, lambda: membership.send(report=pb.Report(peak_rss_bytes=peak_rss_bytes())))
    server, address = start_server(lambda s: rpc.add_DealerServicer_to_server(service, s), config.listen, config.tls)
    membership.on_abort(lambda error: server.stop(grace=None))
    membership.send(ready=pb.Ready(address=config.advertise or address))
    try:
        while membership.job() is not None:
            pass
    finally:
        server.stop(grace=1.0).wait()
