"""The data owner: holds the text and receives the logits. It sees no weight."""

import time
from dataclasses import replace

import numpy as np
import torch

from mpcformer.inference.engine import DATA_OWNER, BatchInputs, create_engine, load_public_model
from mpcformer.modeling import load_tokenizer
from mpcformer.tasks import encode, get_task, length_batches, load_examples, pad_batch
from parties.config import PartyConfig
from parties.membership import Membership
from parties.peer_channel import PeerChannel
from parties.session import OwnerSession
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import open_channel


def run(config: PartyConfig, membership: Membership) -> None:
    """Run one job's examples through the model owner's student."""
    assert config.public_model is not None
    public = load_public_model(config.public_model)
    tokenizer = load_tokenizer(config.public_model)
    job = membership.job()
    if job is None:
        return
    started = time.perf_counter()
    public = replace(public, embeddings=job.embeddings)
    examples = load_examples(get_task(job.task), job.split, data_dir=config.data_dir, limit=job.limit or None)
    encoded = encode(
        tokenizer, examples, positions=public.config.max_position_embeddings, max_length=job.max_length or None
    )
    batches = length_batches([len(row.input_ids) for row in encoded], job.batch_size)

    channel = PeerChannel(me=config.id, peer=config.peers.model_owner, session_id=job.session_id)
    link = open_channel(job.model_owner_address, config.peers.model_owner, config.tls)
    stream = rpc.PeerStub(link).Exchange(channel.outgoing(), wait_for_ready=True)
    channel.attach(stream, stream.cancel)
    membership.on_abort(channel.abort)
    membership.watch(config.peers.model_owner, channel.waited_s)
    session = OwnerSession(party=DATA_OWNER, config=config, job=job, channel=channel, membership=membership)
    engine = create_engine(job.engine, party=DATA_OWNER, public=public, channel=channel, weights=None)
    session.setup(engine, public, started)

    logits = np.zeros((len(examples), public.config.num_labels), dtype=np.float32)
    for index, batch in enumerate(batches):
        padded = pad_batch([encoded[i] for i in batch], tokenizer.pad_token_id)
        inputs = BatchInputs(padded["attention_mask"], padded["input_ids"], padded["token_type_ids"])
        channel.send([torch.tensor([len(batch), inputs.shape.seq_len, len(batches)])])
        channel.send([inputs.attention_mask])
        result = session.run_batch(engine, inputs, index, len(batches))
        assert result is not None
        logits[batch] = result.numpy()
    channel.send([torch.zeros(3, dtype=torch.int64)])
    session.close()
    membership.send(
        predictions=pb.Predictions(
            ids=examples.ids,
            labels=examples.labels,
            groups=examples.groups,
            n_outputs=logits.shape[1],
            logits=logits.ravel().tolist(),
        )
    )
    membership.job()
    channel.close()
    link.close()
