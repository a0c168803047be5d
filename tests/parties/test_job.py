"""One description of a job: from a file, in a message and back, and in what the owners compare."""

from dataclasses import fields
from pathlib import Path

import pytest

from mpcformer.engines.registry import DEFAULT_ENGINE
from mpcformer.errors import UserInputError
from parties.runs.network import PROFILES
from parties.runs.simulation import LocalRunOptions
from parties.session.transcript import JOB_FIELDS
from parties.settings.config import Insecure
from parties.settings.config_file import load_coordinator
from parties.settings.job import JobDescription
from parties.stubs import parties_pb2 as pb
from tests.parties.test_config import COORDINATOR

FULL = JobDescription("stsb", "train", 7, 3, 64, "crypten", "public_table")


@pytest.mark.parametrize("job", [JobDescription("sst2"), FULL])
def test_a_message_carries_it(job: JobDescription) -> None:
    message = pb.Job(session_id=b"s" * 16, **job.message_fields())
    assert JobDescription.from_message(pb.Job.FromString(message.SerializeToString())) == job


def test_the_owners_compare_every_field() -> None:
    assert {field.name for field in fields(JobDescription)} <= set(JOB_FIELDS)


def test_a_file_gives_it_with_defaults(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.toml"
    path.write_text(COORDINATOR)
    assert load_coordinator(path).job == JobDescription("sst2", batch_size=4, engine=DEFAULT_ENGINE)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('engine = "spdz"', r"job\.engine: engine 'spdz' is unknown; choose one of: .*crypten"),
        ('embeddings = "none"', r"job\.embeddings: 'none' is unknown"),
        ("limit = 0", r"job\.limit: .*greater than or equal to 1"),
        ("max_length = 7", r"job\.max_length: .*greater than or equal to 8"),
        ('colour = "red"', r"job\.colour: "),
        ('data_dir = "data"', r"job\.data_dir: "),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "coordinator.toml"
    path.write_text(f"{COORDINATOR}{line}\n")
    with pytest.raises(UserInputError, match=message):
        load_coordinator(path)


def test_a_manifest_lists_a_local_runs_options_side_by_side(tmp_path: Path) -> None:
    options = LocalRunOptions(tmp_path, None, FULL, network=PROFILES["lan"], insecure=Insecure(fixed_seed=1))
    assert options.to_json() == FULL.to_json() | {
        "student": str(tmp_path),
        "teacher": None,
        "data_dir": None,
        "data": None,
        "metrics": [],
        "network": {"name": "lan", "rtt_s": 0.5e-3, "bytes_s": 1e9 / 8},
        "port": 0,
        "threads": 1,
        "device": "cpu",
        "deadline_s": 300.0,
        "insecure": {"plaintext": False, "fixed_seed": 1},
    }
