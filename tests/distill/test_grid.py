"""Several learning rates: the teacher with the best selection score is kept, and no teacher is trained twice."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

import distill.training.loop
from distill import commands, grid
from distill.grid import train_teachers
from distill.recipe import TeacherRecipe
from distill.teacher import train_teacher
from mpcformer.errors import UserInputError
from mpcformer.files import read_json, sha256_file, write_json
from tests.tiny import save_bert

RATES = [1e-6, 3e-3]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("grid") / "base")


@pytest.fixture
def recipe(base: Path, data_dir: Path) -> TeacherRecipe:
    return TeacherRecipe(
        task="sst2", model=str(base), data_dir=data_dir, epochs=3, batch_size=8, max_length=32, precision="fp32",
        selection_share=0.15,
    )  # fmt: skip


def made_up(scores: dict[float, float], trained: list[float]) -> Any:
    """A replacement for train_teacher that only writes a folder with a record of the rate's score."""

    def train(recipe: TeacherRecipe, out: Path, **options: Any) -> dict[str, Any]:
        trained.append(recipe.learning_rate)
        if recipe.learning_rate not in scores:
            raise KeyboardInterrupt
        out.mkdir()
        record = {"rate": recipe.learning_rate, "selection_score": scores[recipe.learning_rate]}
        write_json(out / "teacher.json", record)
        return record

    return train


def test_the_best_is_kept_as_if_trained_alone(recipe: TeacherRecipe, tmp_path: Path) -> None:
    record = train_teachers(recipe, RATES, tmp_path / "best")
    alone = train_teacher(replace(recipe, learning_rate=3e-3), tmp_path / "alone")
    assert read_json(tmp_path / "best" / "teacher.json") == record
    assert record["recipe"]["learning_rate"] == 3e-3
    assert [row["learning_rate"] for row in record["grid"]] == RATES
    scores = [row["selection_score"] for row in record["grid"]]
    assert scores[0] < scores[1] == record["selection_score"] == alone["selection_score"]
    ours, theirs = (tmp_path / name / "model.safetensors" for name in ("best", "alone"))
    assert sha256_file(ours) == sha256_file(theirs)
    assert {path.name for path in (tmp_path / "best").iterdir()} == {p.name for p in (tmp_path / "alone").iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == {"best", "alone"}


def test_of_equals_the_first(recipe: TeacherRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[float] = []
    monkeypatch.setattr(grid, "train_teacher", made_up({1e-4: 0.5, 5e-5: 0.8, 2e-5: 0.8}, trained))
    assert train_teachers(recipe, [1e-4, 5e-5, 2e-5], tmp_path / "out")["rate"] == 5e-5
    assert trained == [1e-4, 5e-5, 2e-5]


def test_one_rate_is_an_ordinary_training(recipe: TeacherRecipe, tmp_path: Path) -> None:
    record = train_teachers(replace(recipe, epochs=1), [1e-3], tmp_path / "out")
    assert "grid" not in record
    assert record["recipe"]["learning_rate"] == 1e-3


def test_stopped_it_goes_on_with_the_rates_that_are_left(
    recipe: TeacherRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, trained = tmp_path / "out", list[float]()
    monkeypatch.setattr(grid, "train_teacher", made_up({1e-4: 0.5}, trained))
    with pytest.raises(KeyboardInterrupt):
        train_teachers(recipe, [1e-4, 5e-5], out)
    assert not out.exists()
    for rates, resume, message in (
        ([1e-4, 5e-5], False, "left from an interrupted run"),
        ([1e-4, 2e-5], True, r"had learning_rate = \[0.0001, 5e-05\], not \[0.0001, 2e-05\]"),
    ):
        with pytest.raises(UserInputError, match=message):
            train_teachers(recipe, rates, out, resume=resume)
    with pytest.raises(UserInputError, match=r"had learning_rate = \[0.0001, 5e-05\], not 0.0001"):
        train_teacher(replace(recipe, learning_rate=1e-4), out, resume=True)
    with pytest.raises(UserInputError, match="had seed = 0, not 1"):
        train_teachers(replace(recipe, seed=1), [1e-4, 5e-5], out, resume=True)
    monkeypatch.setattr(grid, "train_teacher", made_up({5e-5: 0.75}, trained))
    assert train_teachers(recipe, [1e-4, 5e-5], out, resume=True)["selection_score"] == 0.75
    assert trained == [1e-4, 5e-5, 5e-5]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_stopped_inside_a_training_it_ends_in_the_same_weights(
    recipe: TeacherRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_teachers(recipe, RATES, tmp_path / "whole")
    step, calls = distill.training.loop._Runner._step, list[int]()

    def stopped(self: object, *args: object) -> float:
        calls.append(1)
        if len(calls) > 50:  # in the second epoch of the second rate
            raise KeyboardInterrupt
        return step(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(distill.training.loop._Runner, "_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_teachers(recipe, RATES, tmp_path / "out")
    before = [path.name for path in (tmp_path / "out.partial").iterdir()]
    assert sorted(before) == ["lr-0.003.partial", "lr-1e-06", "recipe.json"]
    assert train_teachers(recipe, RATES, tmp_path / "out", resume=True)["grid"] == whole["grid"]
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(a[key].equal(b[key]) for key in a)


@pytest.mark.parametrize(
    ("changes", "rates", "message"),
    [
        ({}, [1e-4, 0.0], r"--lr: 0\.0 is not positive"),
        ({}, [1e-4, 1e-4], r"--lr: 0\.0001 is given twice"),
        ({"epochs": 0}, RATES, "--epochs: 0 is not positive"),
        ({"precision": "fp8"}, RATES, "'fp8' is unknown"),
        ({"data_dir": Path("nowhere")}, RATES, "nowhere is not a folder"),
        ({"model": "no/where/at/all"}, RATES, "no/where/at/all"),
    ],
)
def test_bad_input_leaves_nothing(
    recipe: TeacherRecipe, tmp_path: Path, changes: dict[str, Any], rates: list[float], message: str
) -> None:
    with pytest.raises(UserInputError, match=message):
        train_teachers(replace(recipe, **changes), rates, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_on_the_command_line(base: Path, data_dir: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(commands.teacher)
    line = ["--task", "sst2", "--model", str(base), "--data-dir", str(data_dir), "--out", str(tmp_path / "out")]
    line += ["--epochs", "1", "--max-length", "32", "--precision", "fp32"]
    done = CliRunner().invoke(app, [*line, "--lr", "1e-3", "--lr", "2e-3"], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    for text in ("teacher, rate 0.001", "teacher, rate 0.002", "the teacher kept"):
        assert text in done.output
    record = json.loads((tmp_path / "out" / "teacher.json").read_text())
    assert [row["learning_rate"] for row in record["grid"]] == [1e-3, 2e-3]
