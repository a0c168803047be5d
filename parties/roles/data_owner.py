"""The data owner: holds the text and receives the logits. It sees no weight."""

import hmac
import json
import time
from dataclasses import replace

import torch

from mpcformer.engines.base import DATA_OWNER, BatchInputs, load_public_model
from mpcformer.engines.registry import create_engine
from mpcformer.errors import UserInputError
from mpcformer.files import read_json
from mpcformer.modeling import load_tokenizer
from mpcformer.tasks import Examples, encode, length_batches, load_job, pad_batch
from parties.roles.membership import Membership
from parties.roles.owner_session import OwnerSession
from parties.settings.config import DataOwnerConfig
from parties.settings.job import JobDescription
from parties.settings.public_files import STUDENT_RECORD
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import causes
from parties.wire.callers import SESSION_HEADER
from parties.wire.frames import open_channel, wait_until_ready
from parties.wire.peer_channel import PeerChannel


def run(config: DataOwnerConfig, membership: Membership) -> None:
    """Run the examples of one job through the model owner's student."""
    public = load_public_model(config.public_model)
    student = read_json(config.public_model / STUDENT_RECORD)["sha256"]
    tokenizer = load_tokenizer(config.public_model)
    job = membership.job()
    if job is None:
        return
    started = time.perf_counter()
    for name, named, trusted in (
        ("dealer", job.dealer, config.dealers),
        ("model owner", job.model_owner, config.model_owners),
    ):
        if named not in trusted:
            raise UserInputError(
                f"the job names {name} {named!r}", f"add it to {config.id}'s configuration if it is trusted"
            )
    asked = JobDescription.from_message(job)
    public = replace(public, embeddings=asked.embeddings)
    data = load_job(
        asked.task,
        asked.split,
        public.config,
        str(config.public_model),
        data_dir=config.data_dir,
        own=config.data,
        limit=asked.limit,
    )
    examples = data.examples
    positions = public.config.max_position_embeddings
    encoded = encode(tokenizer, examples, positions=positions, max_length=asked.max_length)
    batches = length_batches([len(row.input_ids) for row in encoded], asked.batch_size)
    digest = examples_digest(config, examples, [row.input_ids for row in encoded], batches)
    if job.first_batch and job.batch_plan != digest:
        what = "the data, the job or digest_key (by default the certificate's key)"
        raise UserInputError(*causes.not_as_begun(what))
    todo = batches[job.first_batch :]
    padded = [pad_batch([encoded[i] for i in batch], tokenizer.pad_token_id) for batch in todo]
    inputs = [BatchInputs(p["attention_mask"], p["input_ids"], p["token_type_ids"]) for p in padded]
    shapes = [(item.shape.batch_size, item.shape.seq_len) for item in inputs]

    channel = PeerChannel(party_id=config.id, peer_id=job.model_owner, session_id=job.session_id)
    link = open_channel(job.model_owner_address, job.model_owner, config.credentials)
    wait_until_ready(link, job.model_owner, job.model_owner_address, config.join_timeout_s)
    metadata = [(SESSION_HEADER, job.session_id)]
    stream = rpc.PeerStub(link).Exchange(channel.outgoing(), metadata=metadata)
    channel.attach(stream, stream.cancel)
    membership.on_abort(channel.abort)
    membership.watch(job.model_owner, channel.waited_s)
    session = OwnerSession(rank=DATA_OWNER, config=config, job=job, channel=channel, membership=membership)
    engine = create_engine(
        job.engine, rank=DATA_OWNER, public=public, channel=channel, weights=None, session_id=job.session_id
    )
    channel.send([torch.tensor([len(shapes)])])
    channel.send([torch.tensor(shapes, dtype=torch.int64).view(-1, 2)])
    session.setup(engine, public, student, shapes, started)

    for index, (batch, item) in enumerate(zip(todo, inputs, strict=True)):
        channel.send([item.attention_mask])
        report, logits = session.run_batch(engine, item, index, len(todo))
        assert logits is not None
        membership.send(
            batch=pb.Batch(
                batch=job.first_batch + index,
                report=report,
                predictions=predictions(examples, batch, data.in_order(logits)),
                batch_plan=digest,
                n_batches=len(batches),
                terms=session.terms,
            )
        )
    session.report(digest)
    membership.dismissed()
    channel.finish()
    link.close()


def examples_digest(
    config: DataOwnerConfig, examples: Examples, token_ids: list[list[int]], batches: list[list[int]]
) -> bytes:
    """Return a digest of the examples, their tokens and labels, and the batch of each: 32 bytes.

    A run can be resumed only if this digest is unchanged. The coordinator keeps it. It is keyed with the data owner's
    own key, so that the coordinator cannot use it to check guesses of a text.
    """
    source = config.digest_key or (config.tls.key if config.tls is not None else None)
    key = source.read_bytes() if source is not None else b""
    content = [[int(i) for i in examples.ids], examples.labels, examples.groups, token_ids, batches]
    return hmac.digest(b"batch plan" + key, json.dumps(content).encode(), "sha256")


def predictions(examples: Examples, rows: list[int], logits: torch.Tensor) -> pb.Predictions:
    """Return the results of a batch as the coordinator receives them; logits (B, C)."""
    return pb.Predictions(
        rows=rows,
        ids=[examples.ids[row] for row in rows],
        labels=[examples.labels[row] for row in rows],
        groups=[examples.groups[row] for row in rows],
        n_outputs=logits.size(1),
        logits=logits.reshape(-1).tolist(),
    )
