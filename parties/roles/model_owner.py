"""The model owner: holds the weights and serves the streams between the owners. It sees no text and no logit."""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import grpc

from mpcformer.engines.base import MODEL_OWNER
from mpcformer.engines.registry import create_engine
from mpcformer.errors import PartyError, UserInputError
from parties.program_process.link import FrameLink
from parties.roles.hosted_program import run_hosted
from parties.roles.shelf import Served, Shelf
from parties.session.budget import Account, Budget
from parties.session.failure import as_known, attended
from parties.session.membership import Membership
from parties.session.model_side import ModelSide
from parties.session.owner_session import OwnerSession
from parties.settings.config import ModelOwnerConfig
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire.callers import SESSION_HEADER, STREAM_HEADER, at_end, refuse, refuse_unknown_session, require_caller
from parties.wire.frame import Frame
from parties.wire.guard import Rule
from parties.wire.peer_channel import ASKING, DEALING, PeerChannel

log = logging.getLogger(__name__)
# The keys of a file that are taken up without a restart.
RELOADED = "student", "students", "public_embeddings", "max_sentences_per_day", "max_sentences"


class OwnersStream(Protocol):
    """What takes over a stream to the data owner, such as a `PeerChannel`."""

    def attach(self, incoming: Iterator[Frame], cancel: Callable[[], object]) -> None:
        """Join the stream, whose `incoming` frames come from the data owner; `cancel` ends it at once."""

    def outgoing(self) -> Iterator[Frame]:
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

    def Exchange(self, request_iterator: Iterator[Frame], context: grpc.ServicerContext) -> Iterator[Frame]:  # noqa: N802
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


class ModelOwner:
    """The model owner as a service.

    Raises:
        UserInputError: a configured folder contains no student.
        RangeError: no engine can carry a student.
    """

    def __init__(self, config: ModelOwnerConfig) -> None:
        self._config = config
        self._peers = PeerService(config.data_owners)
        self._budget = Budget(config.budget_file)
        # A model owner that runs programs alone has no student.
        self._shelf = Shelf(config)
        self._open_budget(config)

    def _open_budget(self, config: ModelOwnerConfig) -> None:
        limits = [config.limits, *(entry.limits for entry in config.shelf())]
        if any(limit is not None for pair in limits for limit in pair):
            self._budget.open([each.student.digest for each in self._shelf.all()])

    def reload(self, config: ModelOwnerConfig) -> None:
        """Serve the students of this configuration from now on, with its budgets and permissions.

        A session keeps the student that it began with. All other keys are those of the start.

        Raises:
            UserInputError, RangeError: a student cannot be served; everything stays as it was.
        """
        self._open_budget(config)
        self._shelf.replace(config)
        self._config = self._config.model_copy(update={name: getattr(config, name) for name in RELOADED})
        now, then = config.model_dump(), self._config.model_dump()
        if others := [name for name in now if now[name] != then[name]]:
            log.warning("%s: changed too, but only a restart takes that up", ", ".join(others))

    @property
    def id(self) -> str:
        """Its party id."""
        return self._config.id

    @property
    def rules(self) -> dict[str, Rule]:
        """What the method of the Peer service allows: two streams for each session, and as many that are refused."""
        n_streams = 4 * self._config.max_sessions_per_peer
        return {"/mpcformer.v1.Peer/Exchange": Rule(self._config.data_owners, n_streams)}

    def add_to(self, server: grpc.Server) -> None:
        """Register the Peer service."""
        rpc.add_PeerServicer_to_server(self._peers, server)

    def models(self, caller: str) -> list[pb.ModelClaim]:
        """Return the students that a caller may ask, with what is left of its budgets.

        A coordinator is told those that every data owner may ask.
        """
        if caller not in self._config.data_owners:
            return [each.student.claim(each.entry.name) for each in self._shelf.all() if each.entry.may_ask is None]
        found = []
        for each in self._shelf.for_data_owner(caller):
            claim = each.student.claim(each.entry.name)
            today, in_all = self._budget.left(self._shelf.account(caller, each))
            if today is not None:
                claim.left_today = today
            if in_all is not None:
                claim.left_in_all = in_all
            found.append(claim)
        return found

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

            account = Account(job.data_owner, config.limits)
            run_hosted(config, job, membership, expect, lambda n: self._budget.charge(account, n))
            return
        # The session keeps this student, whatever becomes of the shelf.
        self._run_student(job, membership, self._shelf.pick(job.model, job.data_owner))

    def _run_student(self, job: pb.Job, membership: Membership, served: Served) -> None:
        config, student, started = self._config, served.student, time.perf_counter()
        if job.embeddings == "public_table" and not served.entry.public_embeddings:
            raise UserInputError(
                "the job asks for public_table, which discloses the embedding tables to the data owner",
                "set public_embeddings = true in the model owner's configuration, or use private_table",
            )
        public = replace(student.public, embeddings=job.embeddings)
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
            left.callback(self._shelf.session_ended, served)
            membership.send(ready=pb.Ready(student=student.digest))
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
                    encoded=attended(lambda: student.weights.encoded(job.engine, membership.check), membership),
                    session_id=session.drawn_id,
                )
                session.setup(engine, public, student.digest, started)
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

    def _side(self, session: OwnerSession, job: pb.Job, membership: Membership, served: Served) -> ModelSide:
        config, numbers = self._config, itertools.count(job.first_batch)

        def done(report: pb.BatchReport) -> None:
            batch = pb.Batch(batch=next(numbers), report=report, student=served.student.digest, terms=session.terms)
            membership.send(batch=batch)

        return ModelSide(
            session,
            positions=served.student.public.config.max_position_embeddings,
            max_sentences=job.batch_size,
            max_tokens=config.max_batch_tokens,
            pool_bytes=config.pool_mib << 20,
            charge=lambda n_sentences: self._budget.charge(self._shelf.account(job.data_owner, served), n_sentences),
            done=done,
        )
