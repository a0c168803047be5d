"""The model owner: holds the weights and serves the streams between the owners. It sees no text and no logit."""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import grpc

from mpcformer.engines.base import MODEL_OWNER, PublicModel, load_public_model
from mpcformer.engines.registry import DEFAULT_ENGINE, create_engine, encode_weights
from mpcformer.errors import PartyError, RangeError, UserInputError
from mpcformer.files import sha256_file
from mpcformer.modeling.folder import WEIGHTS
from mpcformer.modeling.weights_file import load_weights
from parties.program_process.link import FrameLink
from parties.roles.hosted_program import run_hosted
from parties.session.budget import Budget
from parties.session.failure import as_known, attended
from parties.session.membership import Membership
from parties.session.model_side import ModelSide
from parties.session.owner_session import OwnerSession
from parties.session.transcript import facts_digest
from parties.settings.config import ModelOwnerConfig
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire.callers import SESSION_HEADER, STREAM_HEADER, at_end, refuse, refuse_unknown_session, require_caller
from parties.wire.guard import Rule
from parties.wire.peer_channel import ASKING, DEALING, PeerChannel

log = logging.getLogger(__name__)
LOCK_POLL_S = 0.5


class OwnersStream(Protocol):
    """What takes over a stream to the data owner, such as a `PeerChannel`."""

    def attach(self, incoming: Iterator[pb.Frame], cancel: Callable[[], object]) -> None:
        """Join the stream, whose `incoming` frames come from the data owner; `cancel` ends it at once."""

    def outgoing(self) -> Iterator[pb.Frame]:
        """Yield the frames to send."""

    def close(self) -> None:
        """Send nothing more."""


@dataclass
class Expected:
    """A session whose data owner may connect, once to each of its streams.

    Args:
        channels: by the name of the stream, the channel that takes it over.
        data_owner: the party id of the data owner.
    """

    channels: dict[str, OwnersStream]
    data_owner: str
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, stream: str) -> OwnersStream | None:
        """Return the channel of a stream, once."""
        with self.lock:
            return self.channels.pop(stream, None)


class PeerService(rpc.PeerServicer):
    """The Peer service: hands the streams of each session to the session's channels.

    Args:
        data_owners: the party ids that may call at all.
    """

    def __init__(self, data_owners: list[str]) -> None:
        self._data_owners = data_owners
        self._expected: dict[bytes, Expected] = {}

    @contextmanager
    def expect(self, session_id: bytes, data_owner: str, channels: Mapping[str, OwnersStream]) -> Iterator[None]:
        """Let the data owner of a session connect while the block runs."""
        self._expected[session_id] = Expected(dict(channels), data_owner)
        try:
            yield
        finally:
            del self._expected[session_id]

    def Exchange(self, request_iterator: Iterator[pb.Frame], context: grpc.ServicerContext) -> Iterator[pb.Frame]:  # noqa: N802
        """Serve a stream of a session to its data owner."""
        require_caller(context, *self._data_owners)
        headers = dict(context.invocation_metadata())
        expected = self._expected.get(headers.get(SESSION_HEADER, b""))
        if expected is None:
            refuse_unknown_session(context)
        require_caller(context, expected.data_owner)
        channel = expected.take(headers.get(STREAM_HEADER, ""))
        if channel is None:
            refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "the session has this stream already, or never will")
        channel.attach(request_iterator, context.cancel)
        at_end(context, channel.close)
        yield from channel.outgoing()


class SharedWeights:
    """The student's weights as an engine computes with them, which all sessions share.

    They are those of the engine that was asked for last. The weights as they lie in the folder are not kept.

    Raises:
        UserInputError: the folder contains no student.
    """

    def __init__(self, folder: Path, public: PublicModel) -> None:
        self._folder, self._public = folder, public
        self.sha256 = sha256_file(folder / WEIGHTS)
        self._lock = threading.Lock()
        self._engine, self._encoded = "", None
        try:
            self.encoded(DEFAULT_ENGINE)
        except RangeError:
            log.info("engine %s does not run this student: it is refused when it is asked for", DEFAULT_ENGINE)

    def encoded(self, engine: str, check: Callable[[], None] = lambda: None) -> Any:
        """Return the weights for an engine.

        Args:
            engine: its name.
            check: called while another session has its weights encoded; raises to end the wait.

        Raises:
            UserInputError: the weights have changed.
            RangeError: ranges or weights that this engine cannot carry.
        """
        while not self._lock.acquire(timeout=LOCK_POLL_S):
            check()
        try:
            if self._engine != engine:
                weights = load_weights(self._folder)
                if sha256_file(self._folder / WEIGHTS) != self.sha256:
                    raise UserInputError(
                        f"{self._folder / WEIGHTS} has changed since the model owner started",
                        "restart the model owner to serve the new weights",
                    )
                self._engine, self._encoded = "", None
                self._encoded = encode_weights(engine, self._public, weights)
                self._engine = engine
            return self._encoded
        finally:
            self._lock.release()

    def __repr__(self) -> str:
        return f"SharedWeights({self.sha256[:12]})"


class Served:
    """The student that a model owner serves.

    Raises:
        UserInputError: the folder contains no student.
    """

    def __init__(self, folder: Path) -> None:
        self.public = load_public_model(folder)
        self.weights = SharedWeights(folder, self.public)
        self.digest = self.weights.sha256


class ModelOwner:
    """The model owner as a service.

    Raises:
        UserInputError: the configured folder contains no student.
    """

    def __init__(self, config: ModelOwnerConfig) -> None:
        self._config = config
        self._peers = PeerService(config.data_owners)
        self._budget = Budget(config.budget_file, *config.limits)
        # A model owner that runs programs alone has no student.
        self._served = None if config.student is None else Served(config.student)

    @property
    def rules(self) -> dict[str, Rule]:
        """What the method of the Peer service allows: two streams for each session, and as many that are refused."""
        n_streams = 4 * self._config.max_sessions_per_peer
        return {"/mpcformer.v1.Peer/Exchange": Rule(self._config.data_owners, n_streams)}

    def add_to(self, server: grpc.Server) -> None:
        """Register the Peer service."""
        rpc.add_PeerServicer_to_server(self._peers, server)

    def claim(self) -> pb.ModelClaim | None:
        """Return which student this model owner serves, if it serves one."""
        served = self._served
        return None if served is None else pb.ModelClaim(student=served.digest, facts=facts_digest(served.public))

    def run_session(self, job: pb.Job, membership: Membership) -> None:
        """Run one session: a program, or a student from the data owner's announcement of its batches to the last."""
        config = self._config
        if job.dealer not in config.dealers:
            raise UserInputError(
                f"the job names dealer {job.dealer!r}",
                f"add it to dealers in {config.id}'s configuration if its randomness is trusted",
            )
        if job.program:

            def expect(streams: dict[str, FrameLink]) -> AbstractContextManager[None]:
                return self._peers.expect(job.session_id, job.data_owner, streams)

            run_hosted(config, job, membership, expect, lambda n: self._budget.charge(job.data_owner, n))
            return
        if self._served is None:
            raise UserInputError(
                f"{config.id} serves no student, but programs",
                "name one of its programs: mpcformer run NAME --config FILE",
            )
        self._run_student(job, membership, self._served)

    def _run_student(self, job: pb.Job, membership: Membership, served: "Served") -> None:
        config, started = self._config, time.perf_counter()
        if job.embeddings == "public_table" and not config.public_embeddings:
            raise UserInputError(
                "the job asks for public_table, which discloses the embedding tables to the data owner",
                "set public_embeddings = true in the model owner's configuration, or use private_table",
            )
        public = replace(served.public, embeddings=job.embeddings)
        channels = {
            name: PeerChannel(party_id=config.id, peer_id=job.data_owner, session_id=job.session_id, stream=name)
            for name in (ASKING, DEALING)
        }
        for channel in channels.values():
            membership.on_abort(channel.abort)
            membership.watch(job.data_owner, channel.waited_s)
        membership.watch(
            job.data_owner, lambda: min(channel.idle_s() for channel in channels.values()), config.max_idle_s
        )
        with ExitStack() as left, self._peers.expect(job.session_id, job.data_owner, channels):
            membership.send(ready=pb.Ready(student=served.digest))
            try:
                session = OwnerSession(
                    rank=MODEL_OWNER,
                    config=config,
                    job=job,
                    asking=channels[ASKING],
                    dealing=channels[DEALING],
                    membership=membership,
                )
                left.callback(session.close)
                engine = create_engine(
                    job.engine,
                    rank=MODEL_OWNER,
                    public=public,
                    channel=channels[ASKING],
                    encoded=attended(lambda: served.weights.encoded(job.engine, membership.check), membership),
                    session_id=session.drawn_id,
                )
                session.setup(engine, public, served.digest, started)
                self._side(session, job, membership, served).serve()
                session.report()
                membership.dismissed()
            except Exception as error:
                membership.tell(as_known(error, config.id))
                # Do not wait for a peer that has stopped reading: drop what is queued for it.
                for channel in channels.values():
                    channel.abort(PartyError(config.id, "it left the session"))
                raise
            for channel in channels.values():
                channel.finish()

    def _side(self, session: OwnerSession, job: pb.Job, membership: Membership, served: "Served") -> ModelSide:
        config, numbers = self._config, itertools.count(job.first_batch)

        def done(report: pb.BatchReport) -> None:
            batch = pb.Batch(batch=next(numbers), report=report, student=served.digest, terms=session.terms)
            membership.send(batch=batch)

        return ModelSide(
            session,
            positions=served.public.config.max_position_embeddings,
            max_sentences=job.batch_size,
            max_tokens=config.max_batch_tokens,
            pool_bytes=config.pool_mib << 20,
            charge=lambda n_sentences: self._budget.charge(job.data_owner, n_sentences),
            done=done,
        )
