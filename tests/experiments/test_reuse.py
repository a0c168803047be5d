"""Test that rows of a record are reused where models and measurement are the same, and nowhere else."""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.replay import run
from mpcformer.errors import UserInputError
from mpcformer.files import read_json, write_json
from tests.replays import Counted, glue


def test_rows_of_the_same_models_are_reused_without_the_models(
    folder: Path, shop: Path, tmp_path: Path, counted: Counted
) -> None:
    options = replace(glue(shop, keep=folder / "results.json"), out=tmp_path / "out", models=tmp_path / "models")
    values, before = run(options), read_json(folder / "results.json")
    assert (values["n_kept"], before["n_kept"]) == (len(before["rows"]), 0)
    assert values | {"n_kept": 0} == before
    assert counted.trained == counted.private == []
    assert f"{len(before['rows'])} of {len(before['rows'])}, of the same" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("task", "model", "what", "n_trained", "n_private"),
    [
        # Its teacher and the general student are trained too.
        pytest.param("sst2", "our recipe", "model", 3, 1, marks=pytest.mark.slow),
        ("stsb", "published recipe", "model", 2, 0),
        ("stsb", "teacher", "measured", 1, 0),
    ],
)
def test_only_what_a_record_lacks_is_done(
    folder: Path,
    shop: Path,
    tmp_path: Path,
    counted: Counted,
    task: str,
    model: str,
    what: str,
    n_trained: int,
    n_private: int,
) -> None:
    record = read_json(folder / "results.json")
    (row,) = (row for row in record["rows"] if (row["key"]["task"], row["key"]["model"]) == (task, model))
    row["origin"][what] = "another"
    row["values"]["score"] = 2.0
    write_json(tmp_path / "record.json", record)
    options = replace(glue(shop, keep=tmp_path / "record.json"), out=tmp_path / "out", models=tmp_path / "models")
    values, before = run(options), read_json(folder / "results.json")
    assert values["n_kept"] == len(before["rows"]) - 1
    assert [row["values"]["score"] for row in values["rows"]] == [row["values"]["score"] for row in before["rows"]]
    assert (len(counted.trained), len(counted.private)) == (n_trained, n_private)


def test_students_of_a_teacher_that_came_out_otherwise_are_made_anew(folder: Path, shop: Path, tmp_path: Path) -> None:
    record = read_json(folder / "results.json")
    rows = [row for row in record["rows"] if row["key"]["task"] == "sst2"]
    for row in rows:
        row["origin"]["weights" if row["key"]["model"] == "teacher" else "model"] = "of another machine"
        row["values"]["score"] = 2.0
    write_json(tmp_path / "record.json", record)
    values = run(replace(glue(shop, keep=tmp_path / "record.json"), out=tmp_path / "out"))
    assert values["n_kept"] == len(record["rows"]) - len(rows)
    assert max(row["values"]["score"] for row in values["rows"]) <= 1


def test_a_record_without_reusable_rows_is_refused(folder: Path, shop: Path, tmp_path: Path) -> None:
    record = read_json(folder / "results.json")
    for row in record["rows"]:
        del row["origin"]
    write_json(tmp_path / "record.json", record)
    out = {"out": tmp_path / "out"}
    with pytest.raises(UserInputError, match=r"--keep: no row of .*record\.json says which model"):
        run(replace(glue(shop, keep=tmp_path / "record.json"), **out))
    with pytest.raises(UserInputError, match=r"--keep: .* belongs to glue at scale smoke, not pareto"):
        run(replace(glue(shop, keep=folder / "results.json"), experiment="pareto", **out))
    with pytest.raises(UserInputError, match="--keep: counts trains nothing"):
        run(replace(glue(shop, keep=folder / "results.json"), experiment="counts", **out))
    assert not (tmp_path / "out").exists()
