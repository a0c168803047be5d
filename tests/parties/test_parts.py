"""A job in parts has the results of one session, bit for bit under fixed keys, whichever machine computes a part."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from mpcformer.cli import build_app
from mpcformer.errors import MPCFormerError, PartyError, UserInputError
from parties.roles.journal import FILE_NAME, Journal
from parties.runs import cluster, local_run, parts
from parties.runs.cluster import Call
from parties.runs.parts import Pool, parts_of, run_part
from parties.runs.simulation import LocalRunOptions, simulate
from parties.settings.config import Insecure
from parties.settings.job import JobDescription
from parties.stubs import parties_pb2 as pb

JOB = JobDescription(task="sst2", limit=7, batch_size=2)


@pytest.fixture
def options(student: Path, data_dir: Path) -> LocalRunOptions:
    """Four batches, the last of one sentence."""
    return LocalRunOptions(student, None, JOB, data_dir, insecure=Insecure(fixed_seed=7))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In place of Ray: the calls run in this process, the last one first. Returns the labels of those that ran."""
    ran: list[str] = []

    def run(function: Callable[..., Any], calls: list[Call], *, done: Callable[..., None], **how: Any) -> None:
        for call in reversed(calls):
            ran.append(call.label)
            done(call, function(*call.arguments, 1))

    monkeypatch.setattr(cluster, "run", run)
    monkeypatch.setattr(cluster, "check", lambda address: None)
    return ran


def logits(folder: Path) -> dict[int, list[float]]:
    table = pq.read_table(folder / "predictions.parquet").to_pydict()
    return dict(zip(table["id"], table["private_logits"], strict=True))


def test_all_batches_are_in_one_part(options: LocalRunOptions) -> None:
    for n_parts in (1, 2, 3, 4, 9):
        found = parts_of(options, n_parts)
        assert len(found) == min(n_parts, 4)
        assert [part.begin for part in found] == [0, *(part.end for part in found[:-1])]
        assert found[-1].end == 4
        assert found[0].first_operation == 0
        starts = [part.first_operation for part in found]
        assert starts == sorted(set(starts))
    assert parts_of(options, 2, begin=3) == parts_of(options, 4)[3:]
    (nothing,) = parts_of(options, 2, begin=4)
    assert (nothing.begin, nothing.end) == (4, 4)


def test_a_part_has_the_bits_of_the_whole(options: LocalRunOptions, tmp_path: Path) -> None:
    whole = simulate(options, tmp_path).predictions
    assert len(set(whole.logits)) > 2
    (part,) = parts_of(options, 4)[2:3]
    found = run_part(options, part, tmp_path / "part")
    told = pb.Batch.FromString(found.batches[0][1]).predictions
    rows = [list(whole.rows).index(row) for row in told.rows]
    assert len(rows) == 2
    assert list(told.logits) == [value for row in rows for value in whole.logits[2 * row : 2 * row + 2]]


@pytest.mark.slow
def test_a_pool_gives_the_results_of_one_machine(options: LocalRunOptions, here: list[str], tmp_path: Path) -> None:
    local_run.run(options, tmp_path / "one")
    values = local_run.run(options, tmp_path / "pool", pool=Pool(jobs=2))
    assert here == ["batches 4 to 4", "batches 3 to 3", "batches 2 to 2", "batches 1 to 1"]
    assert logits(tmp_path / "pool") == logits(tmp_path / "one")
    alone = json.loads((tmp_path / "one" / "results.json").read_text())
    assert values["metrics"] == alone["metrics"]
    assert values["online"]["rounds_per_batch"] == alone["online"]["rounds_per_batch"] > 0
    assert values["batches"] == {"all": 4, "of_a_run_before": 0}
    assert (tmp_path / "pool" / "logs" / "part-3" / "dealer.log").is_file()


@pytest.mark.slow
def test_the_real_ray_gives_the_results_of_one_machine(options: LocalRunOptions, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: make extras")
    local_run.run(options, tmp_path / "one")
    local_run.run(options, tmp_path / "pool", pool=Pool(jobs=2, address="local"))
    assert logits(tmp_path / "pool") == logits(tmp_path / "one")


def test_parts_that_were_done_are_kept(
    options: LocalRunOptions, here: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dying = [1]

    def fake(options: LocalRunOptions, part: Any, logs: Path, threads: int) -> parts.PartResults:
        if part.begin in dying:
            raise PartyError("dealer", "it died")
        batch = pb.Batch(batch=part.begin, student="s", batch_plan=b"p" * 32)
        batch.report.batch_size = 1
        batch.predictions.MergeFrom(
            pb.Predictions(rows=[part.begin], ids=[1], labels=[0], groups=["g"], n_outputs=1, logits=[0.5])
        )
        batch.predictions.refused.append(False)
        raw = batch.SerializeToString()
        reports = dict.fromkeys(parts.ROLES, pb.Report(peak_rss_bytes=part.begin).SerializeToString())
        return parts.PartResults([(raw, raw)], reports, b"i" * 16, 1.0)

    def in_order(function: Callable[..., Any], calls: list[Call], *, done: Callable[..., None], **how: Any) -> None:
        for call in calls:
            here.append(call.label)
            done(call, function(*call.arguments, 1))

    monkeypatch.setattr(cluster, "run", in_order)
    monkeypatch.setattr(parts, "run_part", fake)
    journal = Journal(tmp_path / FILE_NAME, JOB.to_json())
    with pytest.raises(PartyError, match="it died"):
        parts.run_in_parts(options, tmp_path, journal, Pool(jobs=2))
    assert journal.next_batch == 1, "the first part is on disk"
    journal.close()
    journal = Journal(tmp_path / FILE_NAME, JOB.to_json(), resume=True)
    dying.clear()
    results = parts.run_in_parts(options, tmp_path, journal, Pool(jobs=2))
    assert here[-3:] == ["batches 2 to 2", "batches 3 to 3", "batches 4 to 4"]
    assert (results.n_resumed, list(results.predictions.rows)) == (1, [0, 1, 2, 3])
    assert results.reports["dealer"].peak_rss_bytes == 3
    journal.close()


def test_another_model_on_one_of_the_machines_is_an_error(tmp_path: Path) -> None:
    journal = Journal(tmp_path / FILE_NAME, {})

    def result(batch: int, student: str) -> parts.PartResults:
        raw = pb.Batch(batch=batch, student=student, batch_plan=b"p").SerializeToString()
        return parts.PartResults([(raw, raw)], {}, b"", 0.0)

    parts._add(journal, result(0, "a"))
    with pytest.raises(PartyError, match="one of the machines"):
        parts._add(journal, result(1, "b"))
    journal.close()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--pool", "ray", "--jobs", "0"], "--jobs: 0 is below 1"),
        (["--pool", "ray", "--port", "5000"], "--port: 5000 with --pool ray"),
        (["--ray-address", "auto"], "--ray-address: auto is for --pool ray"),
        (["--pool", "moon"], "--pool: 'moon' is unknown"),
    ],
)
def test_options_that_do_not_go_together(
    arguments: list[str], match: str, student: Path, data_dir: Path, here: list[str], tmp_path: Path
) -> None:
    command = ["infer", "--student", str(student), "--task", "sst2", "--data-dir", str(data_dir)]
    result = CliRunner().invoke(build_app(), [*command, "--out", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2 or isinstance(result.exception, UserInputError)
    assert match in (str(result.exception) if isinstance(result.exception, MPCFormerError) else result.output)


def test_a_whole_job_needs_its_digest(options: LocalRunOptions, tmp_path: Path) -> None:
    """Only a part may begin later without the digest of a run that is resumed."""
    journal = Journal(tmp_path / FILE_NAME, JOB.to_json(), begin=2)
    with pytest.raises(MPCFormerError, match=r"data-owner: .* differs from what the run to be resumed began with"):
        simulate(replace(options, deadline_s=30), tmp_path, journal)
    journal.close()
