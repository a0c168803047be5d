"""The transcript: everything that the two owners of a session must agree on, compared when the session opens.

Each owner lists what it knows from its own files and from the job that the coordinator sent. The owners exchange a
digest of each field: an error can then name the fields that differ without disclosing their content. The digest of all
fields is the transcript.
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
from parties.wire import causes

PER_SESSION = ("session", "job.first_batch", "job.examples_digest")
JOB_FIELDS = (
    *("dealer", "model_owner", "data_owner", "engine", "embeddings", "first_batch", "overlap", "on_refusal"),
    *("task", "split", "limit", "batch_size", "max_length"),
)


def fields(
    job: pb.Job,
    engine: Engine,
    public: PublicModel,
    student: str,
    insecure: Insecure | None = None,
) -> dict[str, str]:
    """Return name -> value of everything that must agree.

    Args:
        job: the job as this owner received it from the coordinator.
        engine, public: this owner's engine, and what it knows of the model.
        student: hex SHA-256 of the weights as the model owner claims it; the data owner reads it in the public files.
        insecure: the insecure settings in this owner's configuration.
    """
    listed = {
        "protocol version": str(PROTOCOL_VERSION),
        "release": __version__,
        "session": bytes(job.session_id).hex(),
        "student": student,
        "constants of the engine": engine.fingerprint(),
        "insecure": insecure_text(insecure),
    }
    listed["job.examples_digest"] = repr(job.batch_plan)
    listed |= {f"job.{name}": repr(getattr(job, name)) for name in JOB_FIELDS}
    return listed | {f"model.{name}": value for name, value in public.facts().items()}


def terms(agreed: dict[str, str]) -> bytes:
    """Return the digest of what stays the same when a run is resumed in another session, 32 bytes."""
    kept = {name: value for name, value in agreed.items() if name not in PER_SESSION}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).digest()


def compare(channel: Channel, mine: dict[str, str]) -> bytes:
    """Compare the digests of all fields with the other owner; return the digest of the transcript, 32 bytes.

    Raises:
        ProtocolError: some fields differ; the error names them.
    """
    digests = torch.stack([_digest(f"{name}\0{value}") for name, value in mine.items()])
    channel.send([digests])
    theirs = channel.receive([Spec.of(digests)])[0]
    different = [name for name, a, b in zip(mine, digests, theirs, strict=True) if not torch.equal(a, b)]
    if different:
        raise ProtocolError(
            causes.disagreement(*different),
            "give both the same release, and the data owner the public files of this very student (mpcformer export)",
        )
    return hashlib.sha256(digests.numpy().tobytes()).digest()


def facts_digest(public: PublicModel) -> bytes:
    """Return the digest of what both owners should know of a model, 32 bytes."""
    return hashlib.sha256(json.dumps(public.facts(), sort_keys=True).encode()).digest()


def _digest(value: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(hashlib.sha256(value.encode()).digest()), dtype=torch.uint8)
