"""A field that differs stops the owners; the error names that field and no other."""

import threading
from pathlib import Path

import pytest

from mpcformer.channel import memory_pair
from mpcformer.engines.base import DATA_OWNER, MODEL_OWNER, load_public_model
from mpcformer.engines.registry import create_engine
from mpcformer.errors import ProtocolError
from parties.session import transcript
from parties.stubs import parties_pb2 as pb


def job() -> pb.Job:
    return pb.Job(
        session_id=b"s" * 16,
        dealer="d",
        model_owner="m",
        data_owner="o",
        engine="lift",
        embeddings="private_table",
        task="sst2",
        split="eval",
        batch_size=2,
    )


def both(mine: dict[str, str], theirs: dict[str, str]) -> list[bytes | ProtocolError]:
    """Return the result of each owner."""
    results: list[bytes | ProtocolError] = [b"", b""]

    def run(rank: int, channel: object, listed: dict[str, str]) -> None:
        try:
            results[rank] = transcript.compare(channel, listed)  # type: ignore[arg-type]
        except ProtocolError as error:
            results[rank] = error

    threads = [
        threading.Thread(target=run, args=item) for item in zip((0, 1), memory_pair(), (mine, theirs), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results


@pytest.fixture(scope="module")
def fields(student: Path) -> dict[str, str]:
    public = load_public_model(student)
    engine = create_engine("lift", rank=DATA_OWNER, public=public, channel=None, weights=None)
    return transcript.fields(job(), engine, public, "ab" * 32)


def test_agreement(fields: dict[str, str]) -> None:
    first, second = both(fields, dict(fields))
    assert isinstance(first, bytes)
    assert first == second
    other = fields | {"session": "another"}
    assert both(other, other)[0] != first, "the transcript is the session's own"


def test_every_field_counts_and_is_named(fields: dict[str, str]) -> None:
    promised = {"protocol version", "release", "session", "student", "constants of the engine"}
    promised |= {
        "job.task",
        "job.engine",
        "job.dealer",
        "job.first_batch",
        "job.examples_digest",
        "model.ranges",
        "model.hidden_size",
    }
    assert promised <= set(fields)
    for name in fields:
        for result in both(fields, fields | {name: f"{fields[name]}x"}):
            assert isinstance(result, ProtocolError)
            assert result.what == f"the owners disagree on: {name}"


def test_owners_derive_the_same(student: Path, fields: dict[str, str]) -> None:
    from mpcformer.modeling import load_student

    public = load_public_model(student)
    weights = load_student(student).state_dict()
    engine = create_engine("lift", rank=MODEL_OWNER, public=public, channel=None, weights=weights)
    assert transcript.fields(job(), engine, public, "ab" * 32) == fields
    changed = job()
    changed.limit = 3
    differing = transcript.fields(changed, engine, public, "ab" * 32)
    assert {name for name in fields if fields[name] != differing[name]} == {"job.limit"}
