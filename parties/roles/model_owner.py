"""The model owner: holds the weights and serves the stream between the owners. It sees no text and no logit."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import grpc
import torch

from mpcformer.channel import Spec
from mpcformer.engines.base import MODEL_OWNER, BatchInputs, load_public_model
from mpcformer.engines.registry import create_engine
from mpcformer.errors import PartyError, ProtocolError, UserInputError
from mpcformer.files import sha256_file
from mpcformer.modeling import load_student
from mpcformer.modeling.load import WEIGHTS
from parties.session.membership import Membership
from parties.session.owner_session import OwnerSession
from parties.session.transcript import facts_digest
from parties.settings.config import ModelOwnerConfig
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire.callers import SESSION_HEADER, at_end, refuse, refuse_unknown_session, require_caller
from parties.wire.peer_channel import PeerChannel

MAX_BATCHES = 1 << 20


@dataclass
class Expected:
    """A session whose data owner may connect, once.

    Args:
        channel: the channel that takes over the stream.
        data_owner: the party id of the data owner.
        taken: locked as soon as the data owner has connected.
    """

    channel: PeerChannel
    data_owner: str
    taken: threading.Lock = field(default_factory=threading.Lock)


class PeerService(rpc.PeerServicer):
    """The Peer service: hands the one stream of each session to the session's channel.

    Args:
        data_owners: the party ids that may call at all.
    """

    def __init__(self, data_owners: list[str]) -> None:
        self._data_owners = data_owners
        self._expected: dict[bytes, Expected] = {}

    @contextmanager
    def expect(self, session_id: bytes, data_owner: str, channel: PeerChannel) -> Iterator[None]:
        """Let the data owner of a session connect while the block runs."""
        self._expected[session_id] = Expected(channel, data_owner)
        try:
            yield
        finally:
            del self._expected[session_id]

    def Exchange(self, request_iterator: Iterator[pb.Frame], context: grpc.ServicerContext) -> Iterator[pb.Frame]:  # noqa: N802
        """Serve the stream of a session to its data owner."""
        require_caller(context, *self._data_owners)
        named = [value for key, value in context.invocation_metadata() if key == SESSION_HEADER]
        expected = self._expected.get(named[0]) if named else None
        if expected is None:
            refuse_unknown_session(context)
        require_caller(context, expected.data_owner)
        if not expected.taken.acquire(blocking=False):
            refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "the session has its stream already")
        expected.channel.attach(request_iterator, context.cancel)
        at_end(context, expected.channel.close)
        yield from expected.channel.outgoing()


class ModelOwner:
    """The model owner as a service. All sessions share the student, which is loaded once.

    Raises:
        UserInputError: the configured folder contains no student.
    """

    def __init__(self, config: ModelOwnerConfig) -> None:
        self._config = config
        self._peers = PeerService(config.data_owners)
        self._weights = load_student(config.student).state_dict()
        self._public = load_public_model(config.student)
        self._digest = sha256_file(config.student / WEIGHTS)

    def add_to(self, server: grpc.Server) -> None:
        """Register the Peer service."""
        rpc.add_PeerServicer_to_server(self._peers, server)

    def claim(self) -> pb.ModelClaim:
        """Return which student this model owner serves."""
        return pb.ModelClaim(student=self._digest, facts=facts_digest(self._public))

    def run_session(self, job: pb.Job, membership: Membership) -> None:
        """Run one session, from the data owner's announcement of its batches to the last batch."""
        config, started = self._config, time.perf_counter()
        if job.dealer not in config.dealers:
            raise UserInputError(
                f"the job names dealer {job.dealer!r}",
                f"add it to dealers in {config.id}'s configuration if its randomness is trusted",
            )
        if job.embeddings == "public_table" and not config.public_embeddings:
            raise UserInputError(
                "the job asks for public_table, which discloses the embedding tables to the data owner",
                "set public_embeddings = true in the model owner's configuration, or use private_table",
            )
        public = replace(self._public, embeddings=job.embeddings)
        channel = PeerChannel(party_id=config.id, peer_id=job.data_owner, session_id=job.session_id)
        membership.on_abort(channel.abort)
        membership.watch(job.data_owner, channel.waited_s)
        with self._peers.expect(job.session_id, job.data_owner, channel):
            membership.send(ready=pb.Ready(student=self._digest))
            try:
                session = OwnerSession(rank=MODEL_OWNER, config=config, job=job, channel=channel, membership=membership)
                engine = create_engine(
                    job.engine,
                    rank=MODEL_OWNER,
                    public=public,
                    channel=channel,
                    weights=self._weights,
                    session_id=job.session_id,
                )
                positions = public.config.max_position_embeddings
                batches = announced(channel, positions, job.batch_size, config.max_batch_tokens)
                session.setup(engine, public, self._digest, batches, started)
                for index, (batch_size, seq_len) in enumerate(batches):
                    inputs = BatchInputs(_mask(channel, batch_size, seq_len))
                    report, _ = session.run_batch(engine, inputs, index, len(batches))
                    done = pb.Batch(
                        batch=job.first_batch + index, report=report, student=self._digest, terms=session.terms
                    )
                    membership.send(batch=done)
                session.report()
                membership.dismissed()
            except Exception:
                # Do not wait for a peer that has stopped reading: drop what is queued for it.
                channel.abort(PartyError(config.id, "it left the session"))
                raise
            channel.finish()


def announced(channel: PeerChannel, positions: int, max_sentences: int, max_tokens: int) -> list[tuple[int, int]]:
    """Receive the data owner's announcement: (sentences, padded length) of each batch of the session.

    Args:
        channel: the channel to the data owner.
        positions: the number of positions of the model.
        max_sentences: the largest number of sentences in a batch, from the job.
        max_tokens: the largest number of tokens in a batch with padding, from the configuration.

    Raises:
        ProtocolError: there are too many batches, or a batch is larger than these limits.
    """
    (n_batches,) = channel.receive([Spec(torch.int64, (1,))])[0].tolist()
    if not 0 <= n_batches <= MAX_BATCHES:
        raise ProtocolError(f"the data owner announced {n_batches} batches, at most {MAX_BATCHES} go into a session")
    shapes = channel.receive([Spec(torch.int64, (n_batches, 2))])[0].tolist()
    for batch_size, seq_len in shapes:
        fits = 1 <= batch_size <= max_sentences and 1 <= seq_len <= positions
        if not fits or batch_size * seq_len > max_tokens:
            raise ProtocolError(
                f"the data owner announced a batch of {batch_size} x {seq_len} tokens; the model has {positions}"
                f" positions, the job's batches have {max_sentences} sentences, max_batch_tokens is {max_tokens}"
            )
    return [(batch_size, seq_len) for batch_size, seq_len in shapes]


def _mask(channel: PeerChannel, batch_size: int, seq_len: int) -> torch.Tensor:
    """Receive the attention mask of a batch: (batch_size, seq_len), ones followed by zeros in each row."""
    mask = channel.receive([Spec(torch.int64, (batch_size, seq_len))])[0]
    lengths = mask.sum(1)
    if not torch.equal(mask, (torch.arange(seq_len) < lengths[:, None]).long()) or int(lengths.min()) < 1:
        raise ProtocolError("the data owner's mask is not ones followed by zeros")
    return mask
