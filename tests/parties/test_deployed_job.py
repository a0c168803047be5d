"""A coordinator's job is compared with the student, as `infer` compares its own: the check is that of `load_job`."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpcformer.engines.base import load_public_model
from mpcformer.errors import UserInputError
from mpcformer.tasks import load_job
from parties.roles import data_owner
from parties.runs import local_run
from parties.runs.simulation import LocalRunOptions
from parties.session.membership import Membership
from parties.settings.config import DataOwnerConfig, Insecure, PeerAddress
from parties.settings.job import JobDescription
from parties.settings.public_files import export_public
from parties.stubs import parties_pb2 as pb
from tests.tiny import save_parquet, save_student


def deployed(student: Path, data_dir: Path, folder: Path, job: JobDescription) -> None:
    """Give the data owner a job, as a coordinator does."""
    config = DataOwnerConfig(
        role="data-owner",
        id="data-owner",
        coordinator=PeerAddress(id="coordinator", address="127.0.0.1:1"),
        dealers=["dealer"],
        model_owners=["model-owner"],
        public_model=export_public(student, folder / "public"),
        data_dir=data_dir,
        insecure=Insecure(plaintext=True),
    )
    membership = Membership(config, role="data-owner", coordinator_id="coordinator")
    named = {"dealer": "dealer", "model_owner": "model-owner", "data_owner": "data-owner"}
    message = pb.Job(session_id=bytes(16), **named, **job.message_fields())
    membership._jobs.put(message)
    data_owner.run(config, membership)


@pytest.mark.parametrize(
    ("task", "asked", "message"),
    [
        ("stsb", "sst2", "the model has 1 outputs, task sst2 needs 2"),
        ("mrpc", "sst2", "the model's classes are not_equivalent, equivalent; those of sst2 are negative, positive"),
        ("mnli", "sst2", "the model has 3 outputs, task sst2 needs 2"),
    ],
)
def test_a_student_of_another_task_is_refused_on_both_ways(
    tmp_path: Path, data_dir: Path, task: str, asked: str, message: str
) -> None:
    made_on = data_dir if task == "sst2" else save_pairs(tmp_path, task)
    student = save_student(tmp_path / "student", made_on, task=task)
    job = JobDescription(asked, batch_size=1)
    with pytest.raises(UserInputError, match=message):
        local_run.check(LocalRunOptions(student=student, teacher=None, job=job, data_dir=data_dir), tmp_path / "run")
    with pytest.raises(UserInputError, match=message):
        deployed(student, data_dir, tmp_path, job)


def save_pairs(folder: Path, task: str) -> Path:
    """Save made-up data for a task of pairs."""
    made = save_parquet(folder / task, task=task)
    names = {"sentence1": "premise", "sentence2": "hypothesis"} if task == "mnli" else {}
    for path in made.glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(pa.table({names.get(name, name): table[name] for name in table.column_names}), path)
    return made


def test_a_student_of_a_like_task_is_accepted(student: Path, tmp_path: Path) -> None:
    """The classes of imdb are those of sst2, under shorter names."""
    imdb = {"text": ["a dull day", "a fine day"], "label": [0, 1]}
    (tmp_path / "imdb").mkdir()
    pq.write_table(pa.table(imdb), tmp_path / "imdb" / "test-00000-of-00001.parquet")
    config = load_public_model(student).config
    assert config.task == "sst2"
    assert load_job("imdb", "test", config, "here", data_dir=tmp_path).order is None
