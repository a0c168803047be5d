"""A party that serves session after session: admission, quotas, one thread per session, health, graceful shutdown.

The keys, correlations, engine and stream of a session belong to its thread and are dropped with it. Sessions share
only the loaded model, which none of them changes.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from mpcformer.errors import UNEXPECTED, MPCFormerError, PartyError, ProtocolError
from mpcformer.ring.random import KEY_BYTES, scoped_keys
from parties.session.failure import attended, report_failure_of
from parties.session.membership import Membership
from parties.settings import metrics
from parties.settings.config import ServiceConfig
from parties.settings.logs import session_log
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import causes
from parties.wire.callers import at_end, caller_names, first_message, refuse, require_caller
from parties.wire.diagnose_reply import answer_diagnose, callers_of
from parties.wire.guard import Rule

FIRST_COMMAND_TIMEOUT_S = 10.0
# Orders that one caller may have open beyond its quota: they have not sent their job yet, or are about to be refused.
SPARE_ORDERS = 4
# No job has as many correlations before any of its parts.
MOST_OPERATIONS = 1 << 48
RunSession = Callable[[pb.Job, Membership], None]
log = logging.getLogger(__name__)


@dataclass
class Running:
    """A session that is running."""

    membership: Membership
    peers: tuple[str, ...]
    thread: threading.Thread


class SessionHost(rpc.PartyServicer):
    """The Party service.

    Args:
        config: states who may order sessions, and how many.
        role: the role that this party states when it says hello.
        run_session: does the work of a session, in a thread of its own; raises MPCFormerError.
        once: whether to take a single session only.
        models: gives the students of a model owner that a caller, named by its id, may ask.
    """

    def __init__(
        self,
        config: ServiceConfig,
        role: str,
        run_session: RunSession,
        *,
        once: bool = False,
        models: Callable[[str], list[pb.ModelClaim]] = lambda caller: [],
    ) -> None:
        self._config, self._role, self._run_session, self._once = config, role, run_session, once
        self._models = models
        self._running: dict[bytes, Running] = {}
        self._changed = threading.Condition()
        self._draining = False
        self.health = health.HealthServicer()
        # The number of sessions that have ended, and the exit status of the last one.
        self.n_done, self.last_status = 0, 0

    @property
    def rules(self) -> dict[str, Rule]:
        """What the methods of the Party and the health service allow."""
        config = self._config
        orderers = [*config.coordinators, *config.may_order]
        return {
            "/mpcformer.v1.Party/Serve": Rule(orderers, config.max_sessions_per_peer + SPARE_ORDERS),
            "/mpcformer.v1.Party/Diagnose": Rule(),
            "/grpc.health.v1.Health/Check": Rule(),
            # Its calls would stay open for as long as their callers like.
            "/grpc.health.v1.Health/Watch": Rule(()),
        }

    def add_to(self, server: grpc.Server) -> None:
        """Register the Party and the health service."""
        rpc.add_PartyServicer_to_server(self, server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        self.health.set("", health_pb2.HealthCheckResponse.SERVING)

    def Serve(self, request_iterator: Iterator[pb.Command], context: grpc.ServicerContext) -> Iterator[pb.PartyEvent]:  # noqa: N802
        """Run one session, from its job to its end."""
        config = self._config
        coordinator = require_caller(context, *config.coordinators, *config.may_order)
        membership = Membership(config, role=self._role, coordinator_id=coordinator)
        at_end(context, membership.lost)
        membership.listen(request_iterator)
        try:
            job = membership.job(FIRST_COMMAND_TIMEOUT_S)
        except MPCFormerError as error:
            log.error("no session begins: %s", error)
            self._done(error.exit_code)
            refuse(context, grpc.StatusCode.ABORTED, "no session begins")
        if job is None:
            return
        try:
            self._check(job, coordinator)
        except MPCFormerError as error:
            refuse(context, grpc.StatusCode.INVALID_ARGUMENT, error.what)
        refusal = self._admit(job, coordinator, membership)
        if refusal:
            metrics.refused.inc()
            refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, refusal)
        yield from membership.events()

    def _check(self, job: pb.Job, coordinator: str) -> None:
        if len(job.session_id) != KEY_BYTES:
            raise ProtocolError(f"session id of {len(job.session_id)} bytes, expected {KEY_BYTES}")
        if job.data_owner not in self._config.data_owners:
            raise ProtocolError(f"data owner {job.data_owner!r} is not in {self._config.id}'s configuration")
        if job.first_operation > MOST_OPERATIONS:
            raise ProtocolError(f"a job that begins with operation {job.first_operation}")
        if coordinator not in self._config.coordinators and job.data_owner != coordinator:
            raise ProtocolError(f"{coordinator} may order sessions for itself alone, not for {job.data_owner!r}")

    def _admit(self, job: pb.Job, coordinator: str, membership: Membership) -> str:
        """Start the session and return an empty string, or return why it is refused."""
        config, peers = self._config, tuple(dict.fromkeys((coordinator, job.data_owner)))
        with self._changed:
            busy = Counter(peer for running in self._running.values() for peer in running.peers)
            if self._draining or (self._once and self.n_done):
                return f"{config.id} is shutting down"
            if job.session_id in self._running:
                return "this session runs already: a session id is used once"
            if len(self._running) >= config.max_sessions or (self._once and self._running):
                return f"{config.id} serves {len(self._running)} sessions already; try again when one has ended"
            for peer in peers:
                if busy[peer] >= config.max_sessions_per_peer:
                    return f"{config.id} serves {busy[peer]} sessions of {peer} already; try again when one has ended"
            thread = threading.Thread(
                target=self._run, args=(job, membership), name=f"session-{job.session_id[:4].hex()}", daemon=True
            )
            self._running[job.session_id] = Running(membership, peers, thread)
            try:
                thread.start()
            except RuntimeError:
                del self._running[job.session_id]
                return f"{config.id} cannot start another thread: its machine is full; try again later"
        return ""

    def _run(self, job: pb.Job, membership: Membership) -> None:
        started = time.monotonic()
        metrics.sessions.inc()
        status, left = UNEXPECTED, list[threading.Thread]()

        def work() -> None:
            attended(lambda: self._run_session(job, membership), membership, left.append)

        try:
            with session_log(job.session_id), scoped_keys("session", job.session_id):
                log.info("session of %s begins", job.data_owner)
                status = report_failure_of(work, membership)
        finally:
            metrics.sessions.dec()
            metrics.ended.labels(metrics.WELL if status == 0 else metrics.FAILED).inc()
            metrics.session_seconds.observe(time.monotonic() - started)
            if left and not self._once:
                # All have heard of the end. What the session still computes counts in the quotas until it is done.
                left[0].join()
            self._done(status, job.session_id)

    def _done(self, status: int, session_id: bytes | None = None) -> None:
        with self._changed:
            if session_id is not None:
                del self._running[session_id]
            self.n_done += 1
            self.last_status = status
            self._changed.notify_all()

    def Diagnose(  # noqa: N802 (gRPC's name)
        self, request_iterator: Iterator[pb.DiagnoseRequest], context: grpc.ServicerContext
    ) -> pb.DiagnoseReply:
        """Say who this is; tell callers that are served also how many sessions are free, and what they may ask."""
        first_message(request_iterator, context)
        reply = answer_diagnose(context, self._config.id, self._role, callers_of(self._config))
        if reply.serves_as:
            with self._changed:
                free = 0 if self._draining else max(0, self._config.max_sessions - len(self._running))
            reply.free_sessions = free
            reply.models.extend(self._models(caller_names(context)[0]))
        return reply

    def wait_for_one(self, timeout_s: float, stop: threading.Event) -> int:
        """Wait until the only session has ended and return its exit status.

        Args:
            timeout_s: how long to wait for the session to begin.
            stop: ends the wait when it is set.

        Raises:
            PartyError: no session began in time.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self.n_done and not stop.is_set():
                if not self._running and time.monotonic() > deadline:
                    raise causes.no_session((self._config.coordinators + self._config.may_order)[0], timeout_s)
                self._changed.wait(0.2)
        return self.last_status

    def drain(self, grace_s: float) -> None:
        """Take no more sessions; wait up to `grace_s` seconds for those that run, then end them."""
        self.health.enter_graceful_shutdown()
        with self._changed:
            self._draining = True
            self._changed.wait_for(lambda: not self._running, timeout=grace_s)
            left = list(self._running.values())
        for running in left:
            running.membership.abort(PartyError(self._config.id, "it is shutting down"))
        for running in left:
            running.thread.join(timeout=5.0)
