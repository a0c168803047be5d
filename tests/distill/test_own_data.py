"""Teachers and students of own data, and teachers whose classes have another order than the task's."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from distill.recipe import DistillRecipe
from distill.start.initialise import load_pair
from mpcformer.cli import build_app
from mpcformer.errors import UserInputError
from mpcformer.tasks import OWN_DATA, get_task
from tests.tiny import save_bert, sentences

NAMES = ("bad news", "Good news")


def made(*line: object) -> None:
    CliRunner().invoke(build_app(), [*map(str, line)], catch_exceptions=False)


def write(path: Path, n: int, start: int = 0, columns: tuple[str, str] = ("content", "target")) -> Path:
    rows = [
        {"a": "no text", columns[0]: text, columns[1]: NAMES[label]} for text, label in sentences(start + n)[start:]
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_teacher_and_a_student_of_own_data(tmp_path: Path) -> None:
    """Classes are the file's sorted names, which both models have; the student reads its teacher's columns."""
    train, evaluation = (
        write(tmp_path / f"{name}.jsonl", n, start, ("b", "c"))
        for name, n, start in (("train", 48, 0), ("eval", 8, 48))
    )
    base = save_bert(tmp_path / "base", num_labels=3)
    small = ["--batch-size", 8, "--max-length", 16, "--precision", "fp32"]
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    made("teacher", "--train-data", train, "--eval-data", evaluation, "--model", base, "--epochs", 4, "--lr", 3e-3,
         "--text-column", "b", "--label-column", "c",
         *small, "--out", teacher)  # fmt: skip
    record = json.loads((teacher / "teacher.json").read_text())
    assert (record["n_training"], record["n_selection"], record["task"]) == (48, 8, OWN_DATA)
    assert record["selection_score"] > 0.8
    made("distill", "--train-data", train, "--teacher", teacher, "--epochs1", 0, "--epochs2", 0, *small,
         "--out", student)  # fmt: skip
    for folder in (teacher, student):
        config = json.loads((folder / "config.json").read_text())
        assert config["id2label"] == {"0": "Good news", "1": "bad news"}
        assert config["label2id"] == {"Good news": 0, "bad news": 1}
        card = (folder / "README.md").read_text()
        assert "Good news, bad news" in card
        assert str(tmp_path) not in card
    scores = json.loads((student / "distillation.json").read_text())["selection_score"]
    assert scores["teacher"] > 0.7, "the labels mean the same to teacher and student"


@pytest.mark.parametrize("start", ["fitted", "random"])
def test_a_teacher_whose_classes_have_another_order(tmp_path: Path, start: str) -> None:
    straight = save_bert(tmp_path / "straight")
    reverse = save_bert(tmp_path / "reverse", id2label={0: "Positive", 1: "Negative"})
    found = [load_pair(DistillRecipe(teacher=folder, task="sst2", start=start), get_task("sst2"))
             for folder in (straight, reverse)]  # fmt: skip
    for model, turned in zip(*found, strict=True):
        assert turned.config.id2label == {0: "negative", 1: "positive"}
        if model is not found[0][1] or start == "fitted":
            assert torch.equal(model.classifier.weight, turned.classifier.weight.flip(0))
            assert torch.equal(model.classifier.bias, turned.classifier.bias.flip(0))


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    teacher = save_bert(tmp_path / "teacher", id2label={0: "ham", 1: "spam"})
    with pytest.raises(UserInputError, match=r"classes are ham, spam; those of sst2 are negative, positive") as caught:
        load_pair(DistillRecipe(teacher=teacher, task="sst2"), get_task("sst2"))
    assert "id2label" in caught.value.remedy


BAD = [
    ("teacher --out {out}", "--task: neither a task nor data of your own is given"),
    ("teacher --task sst2 --train-data {file} --out {out}", "--train-data: it was given with --task"),
    ("teacher --train-data {file} --data-dir {folder} --out {out}", "--train-data: it was given with --data-dir"),
    ("teacher --task sst2 --eval-data {file} --out {out}", "--eval-data: it goes with --train-data"),
    ("teacher --train-data {file}x --out {out}", "--train-data: {file}x does not exist"),
    ("distill --teacher {bert} --out {out}", "--task: neither a task nor data of your own is given"),
    ("distill --teacher {bert} --train-data {file} --out {out}", "classes are Good news, bad news; those of the model"),
    ("distill --teacher {bert} --train-data {file} --recipe paper --out {out}", "no recipe for 'own-data'"),
]


@pytest.mark.parametrize(("line", "what"), BAD, ids=[b[0] for b in BAD])
def test_options_that_do_not_fit(tmp_path: Path, line: str, what: str) -> None:
    places = {"file": write(tmp_path / "f.jsonl", 8), "folder": tmp_path, "out": tmp_path / "out"}
    places["bert"] = save_bert(tmp_path / "bert")
    with pytest.raises(UserInputError) as caught:
        made(*line.format(**places).split())
    assert what.format(**places) in caught.value.what
    assert caught.value.remedy
    assert not (tmp_path / "out").exists()
