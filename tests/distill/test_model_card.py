"""The model card: what the hub reads, what people read, and what the card must not contain."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from distill.model_card import BACKBONE_ID, FILE_NAME, base_model, base_model_of, tasks_of, write_card
from distill.recipe import DistillRecipe, TeacherRecipe
from distill.student import distill_student
from distill.teacher import train_teacher
from mpcformer.files import sha256_file
from mpcformer.modeling import Ranges, default_backbone, load_checkpoint, load_ranges
from mpcformer.tasks import get_task
from tests.tiny import TRAINING, save_bert, sentences


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("cards")
    base = save_bert(folder / "base")
    train_teacher(TeacherRecipe(model=str(base), data_dir=data_dir, epochs=1, **TRAINING), folder / "teacher")
    recipe = DistillRecipe(teacher=folder / "teacher", data_dir=data_dir, epochs1=1, epochs2=1, seed=7, **TRAINING)
    distill_student(recipe, folder / "student")
    return folder / "teacher", folder / "student"


def front_matter(folder: Path) -> dict[str, Any]:
    _, head, _ = (folder / FILE_NAME).read_text().split("---\n", 2)
    return dict(yaml.safe_load(head))


def test_a_students_card_says_what_its_record_says(models: tuple[Path, Path]) -> None:
    _, student = models
    card, record = (student / FILE_NAME).read_text(), json.loads((student / "distillation.json").read_text())
    scores = record["selection_score"]
    for said in (
        f"| teacher | {scores['teacher']:.4f} |",
        f"| student | {scores['student']:.4f} |",
        "GeLU `quad`, softmax `2quad`",
        "| seed | 7 |",
        f"| torch | {record['versions']['torch']} |",
        sha256_file(student / "model.safetensors"),
        record["teacher"]["sha256"],
        "Privacy comes from running the model with MPCFormer, not from the files.",
        "mpcformer infer --student FOLDER",
    ):
        assert said in card, said
    for name in load_ranges(student).bounds:
        assert f"| {name} |" in card
    (result,) = front_matter(student)["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == pytest.approx(scores["student"], abs=1e-6)
    assert result["dataset"]["name"] == "sst2"


def test_a_teachers_card_has_its_score_and_no_ranges(models: tuple[Path, Path]) -> None:
    teacher, _ = models
    card, record = (teacher / FILE_NAME).read_text(), json.loads((teacher / "teacher.json").read_text())
    assert f"| teacher | {record['selection_score']:.4f} |" in card
    assert "Calibrated ranges" not in card
    assert front_matter(teacher)["library_name"] == "transformers"


def test_cards_name_no_place_and_quote_no_sentence(models: tuple[Path, Path], data_dir: Path) -> None:
    for folder in models:
        card = (folder / FILE_NAME).read_text()
        for place in (folder.parent, data_dir, Path.home(), Path.cwd()):
            assert str(place) not in card
        assert not [text for text, _ in sentences(108) if text in card]
        # Data and model were folders, so the card names nothing on the hub.
        assert not {"base_model", "datasets"} & set(front_matter(folder))


@pytest.mark.parametrize("task", ["stsb", "mnli", "movie-sentiment"])
def test_the_hub_reads_a_card(tmp_path: Path, task: str) -> None:
    chosen = get_task(task)
    model = load_checkpoint(save_bert(tmp_path / "model", num_labels=chosen.num_labels))
    record = {
        "teacher": {"sha256": "0" * 64},
        "n_training": 1,
        "n_selection": 1,
        "selection_score": {"teacher": 0.75, "student": 0.5},
        "versions": {},
        "engines": {"lift": "runs", "crypten": "runs"},
        "coverage": {
            "kinds": ["joined", "marks"],
            "n_texts": 7,
            "known_positions": 20,
            "dealer_bytes": {"tokens": 9, "training texts": 2 * 2**20, "widened": 3 * 2**20},
            "refused": {"joined": {"texts": 11, "refused": 1}},
        },
    }
    recipe = DistillRecipe(teacher=tmp_path, task=task)
    ranges = Ranges({"logits": (-1.0, 1.0)}, 1)
    write_card(tmp_path / "model", task=chosen, recipe=recipe, record=record, model=model, base="a/b", ranges=ranges)
    card = ModelCard.load(tmp_path / "model" / FILE_NAME)
    assert card.data.base_model == "a/b"
    assert card.data.get("datasets") == ([chosen.hub_path] if chosen.hub_path else None)
    (result,) = card.data.eval_results
    assert result.metric_value == 0.5
    assert result.metric_name == {"stsb": "mean of pearson and spearman"}.get(task, "accuracy")
    assert "| joined | 11 | 1 |" in card.text
    assert "on 7 texts of the kinds: joined, marks." in card.text
    assert "a sentence of 9 tokens the dealer sends 3.0 MiB" in card.text
    assert "alone it would be 2.0 MiB" in card.text
    assert "more than 20 tokens" in card.text
    assert ("a number in 0..5" in card.text) == (task == "stsb")


def test_the_base_is_named_only_if_the_hub_has_it(tmp_path: Path) -> None:
    assert base_model("google-bert/bert-base-uncased", tmp_path) == "google-bert/bert-base-uncased"
    assert base_model(str(default_backbone()), default_backbone()) == BACKBONE_ID
    assert base_model(str(tmp_path), tmp_path) is None
    assert base_model_of(tmp_path) is None
    for text, tasks in (
        ('{"task": "rte"}', ["rte"]),
        ('{"task": "rte", "after": ["stsb"]}', ["stsb", "rte"]),
        ("[]", []),
        ("{}", []),
    ):
        (tmp_path / "teacher.json").write_text(text)
        assert tasks_of(tmp_path) == tasks
    for text, expected in (('{"base_model": "a/b"}', "a/b"), ('{"base_model": null}', None), ("[]", None), ("{", None)):
        (tmp_path / "teacher.json").write_text(text)
        assert base_model_of(tmp_path) == expected
