"""Sentence embeddings and labels of tokens, asked of parties on this machine."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

import mpcformer
from distill.recipe import DistillRecipe
from distill.student import distill_student
from mpcformer.cli import build_app
from mpcformer.engines.plaintext import predict
from mpcformer.engines.registry import ENGINES
from mpcformer.errors import UserInputError
from mpcformer.modeling import load_checkpoint, load_student, load_tokenizer
from mpcformer.modeling.families.sentence import pooling_of
from mpcformer.modeling.precision import COMPACT
from mpcformer.modeling.tokenizer import Limits
from mpcformer.tasks import EMBEDDING, Examples, encode
from parties.ask.answers import AnswerFile
from tests.engines.test_families import CASES, save_family
from tests.modeling.test_families import saved
from tests.tiny import TRAINING, save_tokenizer, sentences

TEXTS = [text for text, _ in sentences(64)]


def save_encoder(folder: Path, pooling: str = "mean") -> Path:
    """Save a tiny random sentence encoder in the format of sentence-transformers."""
    family, settings, _ = CASES["bert-tokens"]
    saved(folder, family, settings | {"initializer_range": 0.3}, "Model")
    save_tokenizer(folder)
    names = {"mean": "mean_tokens", "first": "cls_token", "max": "max_tokens"}
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [{"path": f"{n}_{kind}", "type": f"sentence_transformers.models.{kind}"} for n, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    settings = {f"pooling_mode_{theirs}": ours == pooling for ours, theirs in names.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | settings))
    return folder


def vectors(model: Any, folder: Path, texts: Sequence[str]) -> torch.Tensor:
    examples = Examples(list(range(len(texts))), [(text,) for text in texts], [0.0] * len(texts), [""] * len(texts))
    encoded = encode(load_tokenizer(folder), examples, limits=Limits.of(model.config))
    found, _ = predict(model, encoded, pad_id=0, batch_size=8)
    return F.normalize(torch.from_numpy(found), dim=-1)


def test_the_pooling_is_the_one_that_the_folder_names(tmp_path: Path) -> None:
    assert pooling_of(tmp_path) == "mean"
    for pooling in ("mean", "first"):
        folder = save_encoder(tmp_path / pooling, pooling)
        assert pooling_of(folder) == load_checkpoint(folder, embedding=True).config.pooling == pooling
    with pytest.raises(UserInputError, match="pooling_mode_max_tokens is not supported"):
        pooling_of(save_encoder(tmp_path / "max", "max"))
    modules = json.loads((tmp_path / "mean" / "modules.json").read_text())
    dense = {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (tmp_path / "mean" / "modules.json").write_text(json.dumps([*modules, dense]))
    with pytest.raises(UserInputError, match="the module Dense is not supported"):
        pooling_of(tmp_path / "mean")


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_a_sentence_encoder_is_distilled_and_asked(tmp_path: Path, pooling: str) -> None:
    teacher = save_encoder(tmp_path / "teacher", pooling)
    data = tmp_path / "texts.csv"
    with data.open("w", newline="") as handle:
        csv.writer(handle).writerows([["sentence"], *([text] for text in TEXTS)])
    recipe = DistillRecipe(
        **TRAINING | {"task": EMBEDDING},
        teacher=teacher,
        train_data=data,
        label_column="",
        epochs1=3,
        epochs2=2,
        learning_rate1=1e-3,
        learning_rate2=1e-3,
        engine_precision=COMPACT,
        weight_bits=8,
    )
    student = tmp_path / "student"
    record = distill_student(recipe, student)
    assert record["engines"] == dict.fromkeys(ENGINES, "runs")
    assert record["selection_score"]["teacher"] == pytest.approx(1.0)
    assert record["selection_score"]["student, 8 bits"] > 0.9
    wanted = vectors(load_student(student), student, TEXTS[:6])
    theirs = vectors(load_checkpoint(teacher, embedding=True), teacher, TEXTS[:6])
    assert float((wanted * theirs).sum(-1).mean()) > 0.9
    with mpcformer.local(student, first=(4, 16)) as ask:
        answers = ask(TEXTS[:6], batch_size=4)
    assert isinstance(answers, list)
    found = torch.tensor([answer["embedding"] for answer in answers])
    assert torch.allclose(found.norm(dim=-1), torch.ones(6))
    assert float((found * wanted).sum(-1).min()) > 0.9999

    for suffix in ("parquet", "csv", "jsonl"):
        file = AnswerFile(tmp_path / f"answers.{suffix}", ["sentence"], {})
        for text, answer in zip(TEXTS, answers, strict=False):
            file.add([text], answer)
        file.finish()
    table = pq.read_table(tmp_path / "answers.parquet").to_pylist()
    assert table[3]["embedding"] == pytest.approx(answers[3]["embedding"])
    with (tmp_path / "answers.csv").open() as handle:
        assert json.loads(list(csv.DictReader(handle))[3]["embedding"]) == pytest.approx(answers[3]["embedding"])


def test_labels_of_tokens(tmp_path: Path, data_dir: Path) -> None:
    student = save_family(tmp_path / "student", data_dir, "bert-tokens", gelu="quad", softmax="2quad")
    with mpcformer.local(student, first=(4, 16)) as ask:
        answers = ask(TEXTS[:2], batch_size=4)
    assert isinstance(answers, list)
    model, tokenizer = load_student(student), load_tokenizer(student)
    for text, answer in zip(TEXTS, answers, strict=False):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0].softmax(-1)
        assert [token["score"] for token in answer["tokens"]] == pytest.approx(logits.amax(-1).tolist(), abs=0.002)
        assert [token["label"] for token in answer["tokens"]] == [f"LABEL_{i}" for i in logits.argmax(-1).tolist()]


def test_a_registered_task_is_no_place_for_embeddings(tmp_path: Path) -> None:
    recipe = DistillRecipe(**TRAINING | {"task": EMBEDDING}, teacher=save_encoder(tmp_path / "teacher"))
    with pytest.raises(UserInputError, match="takes texts of your own and no labels"):
        distill_student(recipe, tmp_path / "student")


def test_a_job_scores_classes_alone(tmp_path: Path, data_dir: Path) -> None:
    student = save_family(tmp_path / "student", data_dir, "bert-tokens", gelu="quad", softmax="2quad")
    arguments = ["infer", "--student", str(student), "--data-dir", str(data_dir), "--out", str(tmp_path / "run")]
    with pytest.raises(UserInputError, match="gives labels of tokens, which no job scores"):
        CliRunner().invoke(build_app(), arguments, catch_exceptions=False)
    assert not (tmp_path / "run").exists()
