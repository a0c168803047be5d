"""Students of every family and head, private against plaintext, on both engines; what a family costs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.training.calibrate import calibrate
from mpcformer.engines.base import BatchInputs, BatchShape, load_public_model
from mpcformer.engines.lift.scales import fixed_point as fp
from mpcformer.engines.lift.scales.head import head_scales
from mpcformer.engines.lift.scales.norms import Norm
from mpcformer.engines.registry import ENGINES, estimate_batch
from mpcformer.errors import RangeError
from mpcformer.modeling import load_checkpoint, load_student, load_tokenizer
from mpcformer.modeling.description import ModelDescription
from mpcformer.modeling.precision import COMPACT, WIDE
from mpcformer.modeling.save import round_weights, save_student
from mpcformer.modeling.tokenizer import Limits
from mpcformer.tasks import encode, get_task, load_examples, pad_batch
from tests.modeling.test_families import DISTIL, SIZES, saved
from tests.pair import run_private
from tests.tiny import WORDS, save_tokenizer

SMALL: dict[str, Any] = {"vocab_size": len(WORDS), "max_position_embeddings": 34, "initializer_range": 0.1}
CLASSIFY, TOKENS = "ForSequenceClassification", "ForTokenClassification"
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "roberta": ("Roberta", SIZES | SMALL | {"type_vocab_size": 1}, CLASSIFY),
    "distilbert": ("DistilBert", DISTIL | SMALL, CLASSIFY),
    "electra": ("Electra", SIZES | SMALL | {"embedding_size": 16}, CLASSIFY),
    "electra-base": ("Electra", SIZES | SMALL | {"embedding_size": 32}, CLASSIFY),
    "mpnet": ("MPNet", SIZES | SMALL, CLASSIFY),
    "albert": ("Albert", SIZES | SMALL | {"embedding_size": 16}, CLASSIFY),
    "ernie": ("Ernie", SIZES | SMALL | {"use_task_id": True}, CLASSIFY),
    "bert-tokens": ("Bert", SIZES | SMALL | {"num_labels": 3}, TOKENS),
    "mpnet-tokens": ("MPNet", SIZES | SMALL | {"num_labels": 3}, TOKENS),
    "roberta-answers": ("Roberta", SIZES | SMALL | {"type_vocab_size": 1}, "ForQuestionAnswering"),
}


def save_family(folder: Path, data: Path, case: str, *, precision: str = WIDE, **options: Any) -> Path:
    """Save an untrained student of a family, calibrated on the made-up training split; return its folder."""
    family, settings, head = CASES[case]
    saved(folder / "source", family, settings, head)
    model = load_checkpoint(folder / "source", **options)
    return finished(folder, data, model, precision)


def finished(folder: Path, data: Path, model: Any, precision: str = WIDE) -> Path:
    """Calibrate a model, and save it as a student."""
    save_tokenizer(folder)
    model.config.precision, model.config.task = precision, "sst2"
    rounded = round_weights(model, 8) if precision == COMPACT else None
    encoded = encode(load_tokenizer(folder), examples(data, "train"), limits=Limits.of(model.config))
    ranges = calibrate(model, encoded, pad_id=0)
    save_student(model, folder, rounded)
    ranges.save(folder)
    return folder


def examples(data: Path, split: str) -> Any:
    return load_examples(get_task("sst2"), split, data_dir=data)


def compared(folder: Path, data: Path, bound: float) -> Iterator[tuple[str, Any]]:
    """Compare the private logits of the evaluation split with the plaintext student's; yield engine and counters."""
    model = load_student(folder)
    encoded = encode(load_tokenizer(folder), examples(data, "validation"), limits=Limits.of(model.config))
    batch = pad_batch(encoded, 0)
    with torch.no_grad():
        expected = model(**batch).logits.numpy()
    inputs = BatchInputs(batch["attention_mask"], batch["input_ids"], batch["token_type_ids"])
    assert int(inputs.attention_mask.sum(1).min()) < inputs.shape.seq_len, "padding is part of the test"
    for engine in ENGINES:
        nobody, logits, _, counted = run_private(folder, inputs, engine=engine)
        assert nobody is None
        found, wanted = logits.numpy(), expected
        if wanted.ndim == 3:
            real = batch["attention_mask"].bool().numpy()
            assert np.isnan(found[~real]).all(), "nobody is told anything of padding"
            found, wanted = found[real], wanted[real]
        assert float(np.abs(found - wanted).max()) < bound
        assert float(wanted.std()) > 2 * bound
        if engine == "lift":
            cost = estimate_batch(engine, load_public_model(folder), inputs.shape)
            stated = cost.rounds, cost.bytes_to_data_owner, cost.bytes_to_model_owner
            assert (counted.rounds, counted.bytes_received, counted.bytes_sent) == stated
        yield engine, counted


@pytest.mark.parametrize("case", CASES)
def test_private_logits_of_every_family(tmp_path: Path, data_dir: Path, case: str) -> None:
    folder = save_family(tmp_path / "student", data_dir, case, gelu="quad", softmax="2quad")
    # ELECTRA's head has an exact GeLU, which engine `lift` computes to within 0.0022.
    bound = 0.01 if "electra" in case else 0.002
    assert [engine for engine, _ in compared(folder, data_dir, bound)] == list(ENGINES)


@pytest.mark.parametrize("case", ["distilbert", "mpnet", "albert"])
def test_private_logits_with_a_familys_own_forms(tmp_path: Path, data_dir: Path, case: str) -> None:
    folder = save_family(tmp_path / "student", data_dir, case)
    config = load_public_model(folder).config
    assert (config.gelu, config.softmax) == ("gelu_tanh" if case == "albert" else "gelu", "softmax")
    assert [engine for engine, _ in compared(folder, data_dir, 0.01)] == list(ENGINES)


@pytest.mark.parametrize("case", ["roberta", "distilbert", "electra-base", "mpnet", "bert-tokens"])
def test_compact_students_of_other_families(tmp_path: Path, data_dir: Path, case: str) -> None:
    folder = save_family(tmp_path / "student", data_dir, case, precision=COMPACT, gelu="quad", softmax="2quad")
    assert load_public_model(folder).config.precision == COMPACT
    assert next(compared(folder, data_dir, 0.01))[0] == "lift"


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("roberta", {"gelu": "quad", "softmax": "2quad"}),
        ("roberta", {"gelu": "quad", "softmax": "2quad", "precision": COMPACT}),
        ("mpnet", {"gelu": "quad", "softmax": "2quad-const"}),
        ("mpnet", {"gelu": "quad", "softmax": "softmax"}),
        ("mpnet", {"gelu": "quad", "softmax": "2quad", "embedding": True}),
    ],
    ids=["2quad", "compact", "2quad-const", "softmax", "mean"],
)
def test_students_that_drop_positions(tmp_path: Path, data_dir: Path, case: str, options: dict[str, Any]) -> None:
    folder = save_family(tmp_path / "student", data_dir, case, strides=[2, 3], **options)
    public = load_public_model(folder)
    assert public.config.strides == [2, 3]
    assert [engine for engine, _ in compared(folder, data_dir, 0.01)] == list(ENGINES)


def test_dropping_positions_saves_what_they_cost(tmp_path: Path, data_dir: Path) -> None:
    shape, online = BatchShape(2, 16), []
    for strides in ([], [4, 1]):
        case = f"roberta-{len(strides)}"
        folder = save_family(tmp_path / case, data_dir, "roberta", gelu="quad", softmax="2quad", strides=strides)
        cost = estimate_batch("lift", load_public_model(folder), shape)
        online.append((cost.bytes_to_data_owner + cost.bytes_to_model_owner, cost.rounds))
    assert online[1][0] < 0.7 * online[0][0]
    assert online[1][1] == online[0][1]


def test_a_bias_on_the_scores_costs_nothing(tmp_path: Path, data_dir: Path) -> None:
    costs = []
    for case in ("mpnet", "roberta"):
        folder = save_family(tmp_path / case, data_dir, case, gelu="quad", softmax="2quad")
        cost = estimate_batch("lift", load_public_model(folder), BatchShape(2, 16))
        costs.append((cost.rounds, cost.bytes_to_data_owner, cost.bytes_to_model_owner))
    assert costs[0] == costs[1]


def test_the_mean_of_very_many_rows_needs_wide_rings() -> None:
    settings = {"pooling": "mean", "head_activation": "none", "max_position_embeddings": 1 << 13}
    config = ModelDescription(**settings)  # type: ignore[arg-type]
    norm = Norm(scale=13, factor_scale=13, function=None)
    assert head_scales(config, fp.WIDE, norm, {}).weight_scale >= 10
    with pytest.raises(RangeError, match="max_position_embeddings"):
        head_scales(config, fp.compact(1.0, 1.0), norm, {})
