"""The general student: it learns from the texts of several tasks, and the students of all tasks can start from it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import distill.general
import distill.training.loop
from distill.general import distill_general
from distill.recipe import TRAINING_TEXTS, DistillRecipe, GeneralRecipe, TeacherRecipe, paper_recipe
from distill.start.initialise import TASK_WEIGHTS
from distill.student import distill_student
from distill.teacher import train_teacher
from mpcformer.errors import UserInputError
from mpcformer.modeling import load_student
from mpcformer.modeling.tokenizer import Limits
from mpcformer.tasks import Examples, carve_selection, get_task, load_examples
from tests.tiny import TRAINING, save_bert, save_parquet

LIKE = {key: value for key, value in TRAINING.items() if key != "task"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backbone, the data of two tasks, a general student and a teacher."""
    folder = tmp_path_factory.mktemp("general")
    save_bert(folder / "base")
    for task in ("sst2", "mrpc"):
        save_parquet(folder / "data" / task, task=task)
    distill_general(general_recipe(folder), folder / "general")
    teacher = TeacherRecipe(
        model=str(folder / "base"), data_dir=folder / "data", epochs=2, learning_rate=3e-3, **TRAINING
    )
    train_teacher(teacher, folder / "teacher")
    return folder


def general_recipe(shop: Path, **changes: Any) -> GeneralRecipe:
    asked: dict[str, Any] = {"tasks": ("sst2", "mrpc"), "epochs": 6, "learning_rate": 1e-3, **LIKE}
    return GeneralRecipe(**({"model": str(shop / "base"), "data_dir": shop / "data"} | asked | changes))


def student_recipe(shop: Path, **changes: Any) -> DistillRecipe:
    asked: dict[str, Any] = {"start": "general", "general": shop / "general", "epochs1": 0, "epochs2": 0, **TRAINING}
    return DistillRecipe(**({"teacher": shop / "teacher", "data_dir": shop / "data"} | asked | changes))


def test_it_learns_and_is_no_student(shop: Path) -> None:
    record = json.loads((shop / "general" / "general.json").read_text())
    losses = [row["loss"] for row in record["log"]]
    assert losses[-1] < 0.9 * losses[0]
    assert len(record["fit"]) == 2
    assert not list((shop / "general").glob("*last*"))
    with pytest.raises(UserInputError, match=r"ranges\.json"):
        load_student(shop / "general")


def test_it_reads_what_the_tasks_train_on_and_no_more(shop: Path, tmp_path: Path, monkeypatch: Any) -> None:
    read: list[tuple[str, str]] = []
    encoded: list[Examples] = []
    load, encode = distill.general.load_examples, distill.general.encode

    def noted_load(task: Any, split: str, **how: Any) -> Examples:
        read.append((task.name, split))
        return load(task, split, **how)

    def noted_encode(tokenizer: Any, examples: Examples, **how: Any) -> Any:
        encoded.append(examples)
        return encode(tokenizer, examples, **how)

    monkeypatch.setattr(distill.general, "load_examples", noted_load)
    monkeypatch.setattr(distill.general, "encode", noted_encode)
    record = distill_general(general_recipe(shop, epochs=1), tmp_path / "general")
    assert read == [("sst2", "train"), ("mrpc", "train")]
    training, set_aside = carve_selection(load_examples(get_task("sst2"), "train", data_dir=shop / "data"), 0.15)
    assert encoded[0].texts == training.texts
    assert not set(encoded[0].texts) & set(set_aside.texts)
    assert record["n_training"] == sum(map(len, encoded))


def test_the_first_texts_are_of_all_tasks(shop: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(distill.general, "encode", lambda tokenizer, examples, **how: list(examples.texts))
    texts: list[Any] = distill.general._texts(general_recipe(shop), None, limits=Limits(32))
    assert {len(text) for text in texts[:4]} == {1, 2}, "one text of sst2, two of mrpc"
    of_one, of_half = (sum(len(text) == 1 for text in part) for part in (texts, texts[: len(texts) // 2]))
    assert of_half == pytest.approx(of_one / 2, abs=1)


def test_a_student_starts_from_its_body_with_the_teachers_head(shop: Path, tmp_path: Path) -> None:
    # Positions that the training texts do not reach would repeat known ones.
    record = distill_student(replace(student_recipe(shop), covers=TRAINING_TEXTS), tmp_path / "student")
    student, general, teacher = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "student", shop / "general", shop / "teacher")
    )
    for name, value in student.items():
        assert torch.equal(value, (teacher if name.startswith(TASK_WEIGHTS) else general)[name]), name
    assert record["fit"] == []
    assert len(record["general"]["sha256"]) == 64
    assert record["general"]["sha256"] in (tmp_path / "student" / "README.md").read_text()


def test_it_is_a_better_start_than_the_teacher_as_it_is(shop: Path, tmp_path: Path) -> None:
    made = {"epochs1": 1, "learning_rate1": 1e-5, "replaced": 0.0}
    losses = [
        distill_student(student_recipe(shop, **made, **start), tmp_path / start["start"])["log"][0]["loss"]
        for start in ({"start": "general"}, {"start": "teacher", "general": None})
    ]
    assert losses[0] < losses[1]


def test_the_published_recipe_starts_from_the_teacher_whatever_was_asked(shop: Path) -> None:
    recipe = replace(student_recipe(shop), **paper_recipe("sst2"))
    assert (recipe.start, recipe.general) == ("teacher", None)


def test_a_resumed_run_ends_in_the_same_weights(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    step = distill.training.loop._Runner._step

    def interrupted(self: Any, *args: Any) -> float:
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(distill.training.loop._Runner, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            distill_general(general_recipe(shop), tmp_path / "general", checkpoint_minutes=0)
    distill_general(general_recipe(shop), tmp_path / "general", resume=True)
    whole, resumed = (load_file(folder / "general" / "model.safetensors") for folder in (shop, tmp_path))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_wrong_recipe_is_refused_before_training(shop: Path, tmp_path: Path) -> None:
    for changes, what in (
        ({"tasks": ()}, "--task: none"),
        ({"tasks": ("sst2", "sst2")}, "--task: sst2, sst2"),
        ({"tasks": ("sst3",)}, "sst3"),
        ({"epochs": 0}, "--epochs: 0"),
        ({"replaced": 1.5}, "--replaced: 1.5"),
        ({"gelu": "cubic"}, "cubic"),
        ({"precision": "fp8"}, "fp8"),
        ({"data_dir": shop / "none"}, "--data-dir"),
    ):
        with pytest.raises(UserInputError) as error:
            distill_general(general_recipe(shop, **changes), tmp_path / "general")
        assert what in error.value.what
    assert not list(tmp_path.iterdir())


def test_a_general_student_that_does_not_fit_is_refused_before_training(shop: Path, tmp_path: Path) -> None:
    small = save_bert(tmp_path / "small", hidden_size=16)
    distill_general(general_recipe(shop, model=str(small), epochs=1), tmp_path / "narrow")
    other = tmp_path / "other"
    distill_general(general_recipe(shop, epochs=1), other)
    words = json.loads((other / "tokenizer.json").read_text())
    words["model"]["vocab"]["[other]"] = words["model"]["vocab"].pop("river")
    (other / "tokenizer.json").write_text(json.dumps(words))
    for changes, what in (
        ({"softmax": "2relu"}, "has softmax 2quad, this student 2relu"),
        ({"general": tmp_path / "narrow"}, "has hidden_size 16, this student 32"),
        ({"general": other}, "reads other tokens"),
        ({"general": shop / "base"}, "has gelu gelu"),
        ({"general": tmp_path / "none"}, "none is not a folder"),
        ({"general": None}, "with general student None"),
        ({"start": "fitted"}, "start 'fitted' was given with general student"),
        ({"layers": 1}, "--layers: 1"),
    ):
        with pytest.raises(UserInputError) as error:
            distill_student(student_recipe(shop, **changes), tmp_path / "student")
        assert what in error.value.what
    assert not list(tmp_path.glob("student*"))
