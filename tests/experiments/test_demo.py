"""Test a small demo with the real MiniLM, real sentences and real processes. A second call keeps finished parts."""

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
        patch.setattr(demo, "STUDENT", demo.STUDENT | {"epochs1": 1, "epochs2": 1})
        run(DemoOptions(out=out, examples=4, train_limit=150, batch_size=4))
    return out


def test_private_equals_plaintext_on_a_real_model(folder: Path) -> None:
    values = json.loads((folder / "results.json").read_text())
    assert values["examples"] == 4
    assert values["student"]["layers"] == 6
    assert values["student"]["hidden"] == 384
    assert values["label_agreement"] == 1.0
    assert values["max_abs_logit_error"] < 0.02


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


def test_a_second_call_keeps_teacher_and_student(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sha256_file(folder / "student" / "model.safetensors")
    run(DemoOptions(out=folder, examples=2, train_limit=150, batch_size=4))
    assert "kept from" in capsys.readouterr().out
    assert sha256_file(folder / "student" / "model.safetensors") == before
    assert json.loads((folder / "results.json").read_text())["examples"] == 2
