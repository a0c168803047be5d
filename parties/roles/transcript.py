"""Everything that the owners of a session must agree on, by name; a session opens with its comparison.

Each owner lists what it believes: from its own files, and from the job as the coordinator told it. They exchange a
digest of each field, so that a difference is named and no content told; the digest of all fields is the transcript.
"""

import hashlib
import json

import torch

from mpcformer import __version__
from mpcformer.channel import Channel, Spec
from mpcformer.engines.base import Engine, PublicModel
from mpcformer.errors import ProtocolError
from parties.settings.config import PROTOCOL_VERSION, Insecure
from parties.settings.insecure import text as insecure_text
from parties.stubs import parties_pb2 as pb

PER_SESSION = ("session", "batch plan", "job.first_batch", "job.batch_plan")
JOB_FIELDS = (
    *("dealer", "model_owner", "data_owner", "engine", "embeddings", "first_batch", "batch_plan"),
    *("task", "split", "limit", "batch_size", "max_length"),
)


def fields(
    job: pb.Job,
    engine: Engine,
    public: PublicModel,
    student: str,
    batches: list[tuple[int, int]],
    insecure: Insecure | None = None,
) -> dict[str, str]:
    """Name -> value of all that is agreed.

    Args:
        job: as the coordinator told it.
        engine, public: this owner's.
        student: hex SHA-256 of the weights, as their owner claims it; the data owner has it from the public files.
        batches: (sentences, padded length) of every batch of this session.
        insecure: as this owner's file says.
    """
    listed = {
        "protocol version": str(PROTOCOL_VERSION),
        "release": __version__,
        "session": bytes(job.session_id).hex(),
        "student": student,
        "constants of the engine": engine.fingerprint(),
        "batch plan": json.dumps(batches),
        "insecure": insecure_text(insecure),
    }
    listed |= {f"job.{name}": repr(getattr(job, name)) for name in JOB_FIELDS}
    return listed | {f"model.{name}": value for name, value in public.facts().items()}


def terms(agreed: dict[str, str]) -> bytes:
    """Digest of what does not change when a run goes on in another session, 32 bytes."""
    kept = {name: value for name, value in agreed.items() if name not in PER_SESSION}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).digest()


def compare(channel: Channel, mine: dict[str, str]) -> bytes:
    """Exchange digests with the other owner; the transcript's own digest, 32 bytes.

    Raises:
        ProtocolError: naming the fields that differ.
    """
    digests = torch.stack([_digest(f"{name}\0{value}") for name, value in mine.items()])
    channel.send([digests])
    theirs = channel.receive([Spec.of(digests)])[0]
    different = [name for name, a, b in zip(mine, digests, theirs, strict=True) if not torch.equal(a, b)]
    if different:
        raise ProtocolError(
            f"the owners disagree on: {', '.join(different)}",
            "give both the same release, and the data owner the public files of this very student (mpcformer export)",
        )
    return hashlib.sha256(digests.numpy().tobytes()).digest()


def facts_digest(public: PublicModel) -> bytes:
    """What is public of a model, as both owners should know it, in 32 bytes."""
    return hashlib.sha256(json.dumps(public.facts(), sort_keys=True).encode()).digest()


def _digest(value: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(hashlib.sha256(value.encode()).digest()), dtype=torch.uint8)
