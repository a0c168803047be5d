"""Test a small demo with the real MiniLM, real sentences and real processes. A second call keeps finished parts.

Before it trains anything and after that, it asks three sentences.
"""

import json
from pathlib import Path

import pytest

from experiments import demo
from experiments.demo import DemoOptions, run
from mpcformer.errors import UserInputError
from mpcformer.files import sha256_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "TEACHER", demo.TEACHER | {"epochs": 1})
        patch.setattr(demo, "STUDENT", demo.STUDENT | {"epochs1": 1, "epochs2": 1, "fit_tokens": 8000})
        run(DemoOptions(out=out, examples=4, train_limit=150, batch_size=4))
    return out


def test_private_equals_plaintext_on_a_real_model(folder: Path) -> None:
    values = json.loads((folder / "results.json").read_text())
    assert values["examples"] == 4
    assert values["student"]["layers"] == 6
    assert values["student"]["hidden"] == 384
    assert values["label_agreement"] == 1.0
    assert values["max_abs_logit_error"] < 0.02


def _rows(part: str) -> list[list[str]]:
    """Return the rows of the table of sentences in a part of the output."""
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in part.splitlines() if line.startswith("│")]
    return [row for row in lines if row[0] in demo.SENTENCES]


def three_are_answered_before_and_after(told: str) -> None:
    """Assert that three sentences were answered before the teacher and after the private run, each with its cost."""
    first, rest = told.split("1/4 teacher")
    _, last = rest.split("4/4 the same three sentences")
    assert "0/4 three sentences" in first
    for part in (first, last):
        rows = _rows(part)
        assert [row[0] for row in rows] == list(demo.SENTENCES)
        for _, label, score, *costs in rows:
            assert label in ("negative", "positive")
            assert 0.5 <= float(score) <= 1
            seconds, online, rounds, mib = map(float, costs)
            assert seconds > online > 0
            assert rounds > 0
            assert mib > 0
    assert [row[1] for row in _rows(first)] == ["positive", "negative", "negative"]


def test_a_first_part_that_fails_ends_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "first_student", lambda: tmp_path / "lost")
    with pytest.raises(UserInputError, match="lost is not a folder"):
        run(DemoOptions(out=tmp_path / "demo", examples=2, train_limit=150, batch_size=4))
    assert not list((tmp_path / "demo").iterdir())


def test_everything_lies_where_the_readme_says(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    of_the_run = {"results.json", "predictions.parquet", "report.html", "journal.jsonl", "logs", "plaintext"}
    assert names == {"teacher", "student", "manifest.json", *of_the_run}
    assert "report.html" in names
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, digest in manifest["sha256"].items():
        assert sha256_file(folder / name) == digest


def test_wrong_numbers_and_models_of_other_numbers_are_refused(folder: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"examples": 0}, "--examples: 0 is below 1"),
        ({"train_limit": 1}, "--train-limit: 1 is below 100"),
        ({"batch_size": 0}, "--batch-size: 0 is below 1"),
    ):
        options = {"out": tmp_path / "demo", "examples": 4, "train_limit": 150, "batch_size": 4} | changes
        with pytest.raises(UserInputError, match=message):
            run(DemoOptions(**options))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserInputError, match=r"--train-limit: 200, but .*teacher was made with 150 sentences"):
        run(DemoOptions(out=folder, examples=2, train_limit=200, batch_size=4))


def test_a_second_call_keeps_teacher_and_student(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    before = sha256_file(folder / "student" / "model.safetensors")
    run(DemoOptions(out=folder, examples=2, train_limit=150, batch_size=4))
    told = capsys.readouterr().out
    assert "kept from" in told
    three_are_answered_before_and_after(told)
    assert sha256_file(folder / "student" / "model.safetensors") == before
    assert json.loads((folder / "results.json").read_text())["examples"] == 2
