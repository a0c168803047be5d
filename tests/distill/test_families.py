"""Teachers of other families than BERT are fine-tuned, saved as transformers' own class, and distilled."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from distill.recipe import DistillRecipe, TeacherRecipe
from distill.student import distill_student
from distill.teacher import train_teacher
from mpcformer.engines.plaintext import predict
from mpcformer.engines.registry import ENGINES
from mpcformer.errors import UserInputError
from mpcformer.modeling import load_checkpoint, load_student, load_tokenizer
from mpcformer.modeling.precision import COMPACT, WIDE
from mpcformer.modeling.tokenizer import Limits
from mpcformer.tasks import encode, get_task, load_examples
from tests.engines.test_families import CASES
from tests.modeling.test_families import saved
from tests.tiny import TRAINING, save_tokenizer

SCORE = 0.9


@pytest.mark.parametrize(
    "case", ["mpnet", "roberta", *(pytest.param(name, marks=pytest.mark.slow) for name in ("distilbert", "electra"))]
)
def test_a_family_from_a_bare_model_to_a_private_student(tmp_path: Path, data_dir: Path, case: str) -> None:
    family, settings, _ = CASES[case]
    saved(tmp_path / "bare", family, settings | {"initializer_range": 0.1}, "Model")
    save_tokenizer(tmp_path / "bare")
    recipe = TeacherRecipe(model=str(tmp_path / "bare"), data_dir=data_dir, epochs=8, learning_rate=3e-3, **TRAINING)
    record = train_teacher(recipe, tmp_path / "teacher")
    assert record["selection_score"] >= SCORE
    theirs = getattr(hf, f"{family}ForSequenceClassification").from_pretrained(tmp_path / "teacher").eval()
    tokenizer = load_tokenizer(tmp_path / "teacher")
    examples = load_examples(get_task("sst2"), "validation", data_dir=data_dir)
    model = load_checkpoint(tmp_path / "teacher")
    encoded = encode(tokenizer, examples, limits=Limits.of(model.config))
    ours, _ = predict(model, encoded, pad_id=0, batch_size=4)
    logits = []
    with torch.no_grad():
        for row in encoded:
            logits.append(theirs(input_ids=torch.tensor([row.input_ids])).logits[0])
    assert torch.allclose(torch.from_numpy(ours), torch.stack(logits), atol=1e-4)

    precision: dict[str, Any] = {"engine_precision": COMPACT, "weight_bits": 8}
    if case == "electra":  # its embeddings are narrower than its layers
        with pytest.raises(UserInputError, match="compact does not carry a map"):
            distill_student(_distillation(tmp_path, data_dir, **precision), tmp_path / "student")
        precision = {"engine_precision": WIDE, "weight_bits": None}
    record = distill_student(_distillation(tmp_path, data_dir, **precision), tmp_path / "student")
    assert record["selection_score"]["student"] >= SCORE
    assert record["engines"] == dict.fromkeys(ENGINES, "runs")
    student = load_student(tmp_path / "student")
    assert json.loads((tmp_path / "student" / "config.json").read_text())["model_type"] == "mpcformer"
    found, _ = predict(student, encoded, pad_id=0, batch_size=4)
    assert float((found.argmax(1) == ours.argmax(1)).mean()) >= SCORE


def _distillation(folder: Path, data: Path, **changes: Any) -> DistillRecipe:
    rates = {"learning_rate1": 1e-3, "learning_rate2": 1e-3, "epochs1": 4, "epochs2": 2}
    return DistillRecipe(teacher=folder / "teacher", data_dir=data, **TRAINING, **rates, **changes)  # type: ignore[arg-type]
