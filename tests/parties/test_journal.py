"""Finished batches are on disk, and a run continues from the last one if job, data and student are the same."""

import errno
import json
import stat
from pathlib import Path

import pytest

from mpcformer.errors import MPCFormerError, PartyError, UserInputError
from parties.roles.journal import FILE_NAME, Journal
from parties.runs import local_run, simulation
from parties.stubs import parties_pb2 as pb
from tests.parties.test_end_to_end import job_for
from tests.tiny import save_parquet, save_student

JOB = {"task": "sst2", "limit": None}


def batch(number: int) -> tuple[pb.Batch, pb.Batch]:
    report = pb.BatchReport(batch_size=1, seq_len=7, online=pb.Phase(seconds=0.1 + number, rounds=3))
    told = pb.Predictions(
        rows=[number], ids=[-number], labels=[0.1], groups=["dev"], n_outputs=2, logits=[0.1, -1e-7], refused=[False]
    )
    return (
        pb.Batch(batch=number, report=report, student="ab"),
        pb.Batch(batch=number, report=report, predictions=told, batch_plan=b"\0\xff", n_batches=3),
    )


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    written = Journal(path, JOB)
    assert (written.student, written.batch_plan) == ("", b"")
    for number in range(3):
        written.add(*batch(number))
    with pytest.raises(UserInputError, match="another process is at work"):
        Journal(path, JOB, resume=True)
    written.close()
    read = Journal(path, JOB, resume=True)
    assert read.batches == [batch(number) for number in range(3)]
    assert (read.n_resumed, read.student, read.batch_plan) == (3, "ab", b"\0\xff")


@pytest.mark.parametrize("cut", [1, 2, 50, 200])
def test_a_torn_line_is_dropped_and_the_next_is_whole(tmp_path: Path, cut: int) -> None:
    path = tmp_path / FILE_NAME
    written = Journal(path, JOB)
    for number in range(2):
        written.add(*batch(number))
    written.close()
    path.write_bytes(path.read_bytes()[:-cut])
    read = Journal(path, JOB, resume=True)
    assert read.batches == [batch(0)]
    read.add(*batch(1))
    read.close()
    assert Journal(path, JOB, resume=True).batches == [batch(0), batch(1)]


def test_another_jobs_journal_or_none(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    with pytest.raises(UserInputError, match=f"{FILE_NAME} does not exist"):
        Journal(path, JOB, resume=True)
    Journal(path, JOB).close()
    with pytest.raises(UserInputError, match="belongs to another job: limit"):
        Journal(path, JOB | {"limit": 3}, resume=True)
    path.write_text("")
    with pytest.raises(UserInputError, match="belongs to another job"):
        Journal(path, JOB, resume=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("change", ["twice", "missing", "garbled"])
def test_a_journal_that_is_not_one_run_in_order_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / FILE_NAME
    written = Journal(path, JOB)
    for number in range(3):
        written.add(*batch(number))
    written.close()
    lines = path.read_text().splitlines(keepends=True)
    lines = {
        "twice": [*lines[:3], lines[2]],
        "missing": [lines[0], lines[2]],
        "garbled": [*lines[:2], "{\n", lines[3]],
    }[change]
    path.write_text("".join(lines))
    with pytest.raises(UserInputError, match="is damaged"):
        Journal(path, JOB, resume=True)


def test_a_run_at_work_is_left_alone(student: Path, data_dir: Path, tmp_path: Path) -> None:
    held = Journal(tmp_path / "run.partial" / FILE_NAME, JOB)
    for resume in (False, True):
        with pytest.raises(UserInputError, match="another process is at work"):
            local_run.run(job_for(student, data_dir), tmp_path / "run", resume=resume)
    held.add(*batch(0))
    assert (tmp_path / "run.partial" / FILE_NAME).read_text().count("\n") == 2


def test_a_full_disk_leaves_no_result_and_the_run_goes_on_from_there(
    student: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, out = job_for(student, data_dir, batch_size=4), tmp_path / "run"
    add = Journal.add

    def full(self: Journal, *batches: pb.Batch) -> None:
        if len(self.batches) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, *batches)

    monkeypatch.setattr(Journal, "add", full)
    with pytest.raises(MPCFormerError, match=r"run\.failed: No space left on device") as caught:
        local_run.run(job, out)
    assert "--resume goes on from batch 2" in caught.value.remedy
    assert not out.exists()
    assert not list(tmp_path.rglob("results.json"))
    assert "coordinator: cannot write the journal" in (tmp_path / "run.failed/logs/model-owner.log").read_text()
    monkeypatch.undo()

    for changed, message in (
        ({"batch_size": 3}, "belongs to another job: batch_size"),
        ({"limit": 7}, "belongs to another job: limit"),
    ):
        with pytest.raises(UserInputError, match=message):
            local_run.run(job_for(student, data_dir, **({"batch_size": 4} | changed)), out, resume=True)
    values = local_run.run(job, out, resume=True)
    assert values["batches"] == {"all": 3, "of_a_run_before": 2}
    assert values["examples"] == 12
    assert values["label_agreement"] == 1.0
    assert values["max_abs_logit_error"] < 0.005, "every row is where it belongs"
    assert json.loads((out / "manifest.json").read_text())["sha256"].keys() >= {"results.json", FILE_NAME}


def test_other_data_or_another_student_is_noticed(student: Path, data_dir: Path, tmp_path: Path) -> None:
    """A coordinator between organisations has neither data nor student: the owners notice a change."""
    logs = tmp_path / "logs"
    logs.mkdir()
    job = job_for(student, data_dir, batch_size=6)
    path = tmp_path / FILE_NAME
    journal = Journal(path, JOB)
    simulation.simulate(job, logs, journal)
    journal.close()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]))
    other = save_parquet(tmp_path / "other" / "sst2", n_train=90)
    changed = save_student(tmp_path / "changed", data_dir, seed=3)
    for job, message in (
        (job_for(student, other, batch_size=6), "data-owner: the data, the job or digest_key .* differs"),
        (
            job_for(changed, data_dir, batch_size=6),
            "model-owner: its student .* differs from what the run to be resumed began with",
        ),
    ):
        journal = Journal(path, JOB, resume=True)
        with pytest.raises(PartyError, match=message):
            simulation.simulate(job, logs, journal)
        journal.close()
