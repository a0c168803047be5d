"""What the owners agree on when a session opens: an id that both have drawn, and everything public (the transcript).

Whoever orders a session names it. No protocol uses that name: what must not be anybody's choice, such as the places of
words, follows from the id that the owners draw together (`draw_together`).

Each owner lists what it knows from its own files and from the job that the coordinator sent. The owners exchange a
digest of each field: an error can then name the fields that differ without disclosing their content. The digest of all
fields is the transcript.
"""

import hashlib
import json

import torch

from mpcformer import __version__
from mpcformer.channel import Channel, Spec
from mpcformer.engines.base import MODEL_OWNER, Engine, PublicModel
from mpcformer.errors import ProtocolError
from mpcformer.ring.random import fresh_key
from parties.settings.config import PROTOCOL_VERSION, Insecure
from parties.settings.insecure import text as insecure_text
from parties.stubs import parties_pb2 as pb
from parties.wire import causes

PER_SESSION = ("session", "drawn id", "job.first_batch", "job.end_batch", "job.first_operation", "job.examples_digest")
# A nonce has as many bits as its commitment.
NONCE_BYTES, ID_BYTES = 32, 16
JOB_FIELDS = (
    *("dealer", "model_owner", "data_owner", "engine", "embeddings", "first_batch", "overlap", "on_refusal"),
    *("task", "split", "limit", "batch_size", "max_length", "model", "end_batch", "first_operation"),
)


def draw_together(channel: Channel, rank: int, session_id: bytes) -> bytes:
    """Draw 16 bytes with the other owner, such as a session's id: neither owner, nor anybody else, can choose them.

    Each owner commits to a nonce before it sees the other's. It can still leave after it has seen the other's nonce,
    which ends the session.

    Args:
        channel: to the other owner.
        rank: of this owner.
        session_id: the name of the session, or what else the bytes are drawn for.

    Raises:
        ProtocolError: the other owner's nonce is not the one that it committed to.
    """
    nonce = fresh_key() + fresh_key()
    channel.send([_as_tensor(_commitment(rank, session_id, nonce))])
    committed = channel.receive([Spec(torch.uint8, (hashlib.sha256().digest_size,))])[0]
    channel.send([_as_tensor(nonce)])
    theirs = channel.receive([Spec(torch.uint8, (NONCE_BYTES,))])[0].numpy().tobytes()
    if _commitment(1 - rank, session_id, theirs) != committed.numpy().tobytes():
        raise ProtocolError(
            "the other owner's nonce is not the one that it committed to", "give both owners the same release"
        )
    both = nonce + theirs if rank == MODEL_OWNER else theirs + nonce
    return hashlib.sha256(b"drawn id" + session_id + both).digest()[:ID_BYTES]


def _commitment(rank: int, session_id: bytes, nonce: bytes) -> bytes:
    return hashlib.sha256(b"nonce of owner" + bytes([rank]) + session_id + nonce).digest()


def fields(
    job: pb.Job,
    engine: Engine,
    public: PublicModel,
    student: str,
    insecure: Insecure | None = None,
    drawn_id: bytes = b"",
    audit_rate: float = 0.0,
) -> dict[str, str]:
    """Return name -> value of everything that must agree.

    Args:
        job: the job as this owner received it from the coordinator.
        engine, public: this owner's engine, and what it knows of the model.
        student: hex SHA-256 of the weights as the model owner claims it; the data owner reads it in the public files.
        insecure: the insecure settings in this owner's configuration.
        drawn_id: from `draw_together`.
        audit_rate: how many of the batches that are dealt ahead are audited, see `audit`.
    """
    listed = {
        "protocol version": str(PROTOCOL_VERSION),
        "release": __version__,
        "session": bytes(job.session_id).hex(),
        "drawn id": drawn_id.hex(),
        "student": student,
        "constants of the engine": engine.fingerprint(),
        "insecure": insecure_text(insecure),
        "audit_rate": str(float(audit_rate)),
    }
    listed["job.examples_digest"] = repr(job.batch_plan)
    listed |= {f"job.{name}": repr(getattr(job, name)) for name in JOB_FIELDS}
    return listed | {f"model.{name}": value for name, value in public.facts().items()}


def terms(agreed: dict[str, str]) -> bytes:
    """Return the digest of what stays the same when a run is resumed in another session, 32 bytes."""
    kept = {name: value for name, value in agreed.items() if name not in PER_SESSION}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).digest()


REMEDY = "give both the same release, and the data owner the public files of this very student (mpcformer export)"


def compare(channel: Channel, mine: dict[str, str], remedy: str = REMEDY) -> bytes:
    """Compare the digests of all fields with the other owner; return the digest of the transcript, 32 bytes.

    Args:
        channel: the channel to the other owner.
        mine: the fields, as this owner knows them.
        remedy: what to do if they differ.

    Raises:
        ProtocolError: some fields differ; the error names them.
    """
    digests = torch.stack([_digest(f"{name}\0{value}") for name, value in mine.items()])
    channel.send([digests])
    theirs = channel.receive([Spec.of(digests)])[0]
    different = [name for name, a, b in zip(mine, digests, theirs, strict=True) if not torch.equal(a, b)]
    if different:
        raise ProtocolError(causes.disagreement(*different), remedy)
    return hashlib.sha256(digests.numpy().tobytes()).digest()


def facts_digest(public: PublicModel) -> bytes:
    """Return the digest of what both owners should know of a model, 32 bytes."""
    return hashlib.sha256(json.dumps(public.facts(), sort_keys=True).encode()).digest()


def _digest(value: str) -> torch.Tensor:
    return _as_tensor(hashlib.sha256(value.encode()).digest())


def _as_tensor(value: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(value), dtype=torch.uint8)
