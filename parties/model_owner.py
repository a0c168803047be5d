"""The model owner: holds the weights, serves the stream between the owners. It sees no text and no logit."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import grpc
import torch

from mpcformer.channel import Spec
from mpcformer.errors import ProtocolError, UserInputError
from mpcformer.inference.engine import MODEL_OWNER, BatchInputs, create_engine, load_public_model
from mpcformer.modeling import load_student
from parties.config import PartyConfig
from parties.membership import Membership
from parties.peer_channel import PeerChannel
from parties.session import OwnerSession
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.tls import require_caller
from parties.wire import start_server

MAX_BATCH_TOKENS = 1 << 20


class PeerService(rpc.PeerServicer):
    """Hands the one stream of the job's data owner to the channel."""

    def __init__(self, config: PartyConfig) -> None:
        self._data_owner = config.peers.data_owner
        self._channel: PeerChannel | None = None
        self._expecting = threading.Event()
        self._taken = threading.Lock()

    def expect(self, channel: PeerChannel) -> None:
        """From now on the data owner may connect."""
        self._channel = channel
        self._expecting.set()

    def Exchange(self, request_iterator: Iterator[pb.Frame], context: grpc.ServicerContext) -> Iterator[pb.Frame]:  # noqa: N802
        """One stream at a time, from the data owner alone."""
        require_caller(context, self._data_owner)
        if not self._expecting.wait(15) or self._channel is None:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no session is expected")
            raise AssertionError("abort raises")
        if not self._taken.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the session has its stream already")
        self._channel.attach(request_iterator, context.cancel)
        yield from self._channel.outgoing()


def run(config: PartyConfig, membership: Membership) -> None:
    """Serve one job."""
    assert config.student is not None
    service = PeerService(config)
    server, address = start_server(lambda s: rpc.add_PeerServicer_to_server(service, s), config.listen, config.tls)
    try:
        student = load_student(config.student)
        public = load_public_model(config.student)
        membership.send(ready=pb.Ready(address=config.advertise or address))
        job = membership.job()
        if job is None:
            return
        started = time.perf_counter()
        if job.embeddings == "public_table" and not config.public_embeddings:
            raise UserInputError(
                "the job asks for public_table, which tells the embedding tables to the data owner",
                "set public_embeddings = true in the model owner's configuration, or use private_table",
            )
        public = replace(public, embeddings=job.embeddings)
        channel = PeerChannel(me=config.id, peer=config.peers.data_owner, session_id=job.session_id)
        membership.on_abort(channel.abort)
        membership.watch(config.peers.data_owner, channel.waited_s)
        service.expect(channel)
        session = OwnerSession(party=MODEL_OWNER, config=config, job=job, channel=channel, membership=membership)
        engine = create_engine(
            job.engine, party=MODEL_OWNER, public=public, channel=channel, weights=student.state_dict()
        )
        del student
        session.setup(engine, public, started)
        index = 0
        while (announced := _announced(channel, public.config.max_position_embeddings)) is not None:
            inputs, n_batches = announced
            session.run_batch(engine, inputs, index, n_batches)
            index += 1
        session.close()
        channel.close()
        membership.job()
    finally:
        server.stop(grace=1.0).wait()


def _announced(channel: PeerChannel, positions: int) -> tuple[BatchInputs, int] | None:
    """The next batch's public part: its mask and the number of batches; None after the last."""
    batch_size, seq_len, n_batches = channel.receive([Spec(torch.int64, (3,))])[0].tolist()
    if batch_size == 0:
        return None
    if batch_size < 1 or not 1 <= seq_len <= positions or batch_size * seq_len > MAX_BATCH_TOKENS:
        raise ProtocolError(
            f"the data owner announced a batch of {batch_size} x {seq_len} tokens, the model has {positions} positions"
        )
    mask = channel.receive([Spec(torch.int64, (batch_size, seq_len))])[0]
    lengths = mask.sum(1)
    if not torch.equal(mask, (torch.arange(seq_len) < lengths[:, None]).long()) or int(lengths.min()) < 1:
        raise ProtocolError("the data owner's mask is not ones followed by zeros")
    return BatchInputs(mask), n_batches
