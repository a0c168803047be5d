"""What may be loaded as a checkpoint or as a student; each refusal says what and what to do."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mpcformer.errors import DependencyError, MPCFormerError, RangeError, UserInputError
from mpcformer.modeling import load_checkpoint, load_student, load_tokenizer, resolve_checkpoint
from mpcformer.modeling.description import described
from mpcformer.modeling.weights_file import load_weights
from tests.tiny import save_bert, save_student


@pytest.fixture
def copy(student: Path, tmp_path: Path) -> Path:
    shutil.copytree(student, tmp_path / "copy")
    return tmp_path / "copy"


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    for key, value in changes.items():
        if value is None:
            del state[key]
        else:
            state[key] = value
    path.unlink()
    save_file(state, path)


def test_a_good_student(student: Path) -> None:
    assert load_student(student, gelu="quad", softmax="2quad").num_labels == 2


def test_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"config\.json and model\.safetensors missing"):
        load_checkpoint(tmp_path)
    with pytest.raises(UserInputError, match="has no tokenizer"):
        load_tokenizer(tmp_path)


def test_another_architecture(copy: Path) -> None:
    edit_config(copy, model_type="t5")
    with pytest.raises(UserInputError, match="holds a model of the type 't5'"):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "silu"}, "hidden_act: the activation 'silu'"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"num_attention_heads": 5, "head_size": None}, r"num_attention_heads \(5\) must divide hidden_size \(32\)"),
        ({"head_size": 0}, "head_size: 0 is no positive integer"),
        ({"head_size": "8"}, "head_size: '8' is no positive integer"),
        ({"head_size": 4}, "are missing or not shaped as config.json says, first bert.encoder.layer.0.attention.self"),
        ({"constant_norms": ["layer.9.output"]}, "'layer.9.output' is no LayerNorm of a model of 2 layers"),
        ({"gelu": "cubic"}, "form 'cubic' is unknown"),
    ],
)
def test_variants_that_are_not_computed(copy: Path, changes: dict[str, object], message: str) -> None:
    edit_config(copy, **changes)
    with pytest.raises(UserInputError, match=message):
        load_student(copy)


def test_a_plain_bert_is_no_student(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="plain bert model") as caught:
        load_student(save_bert(tmp_path / "bert"))
    assert "mpcformer distill" in caught.value.remedy


def test_forms_that_it_was_not_trained_with(student: Path) -> None:
    with pytest.raises(UserInputError, match=r"--softmax 2relu: .* was trained with softmax '2quad'"):
        load_student(student, softmax="2relu")
    with pytest.raises(UserInputError, match="--gelu relu"):
        load_student(student, gelu="relu")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.0**15])
def test_weights_that_fixed_point_cannot_carry(copy: Path, value: float) -> None:
    edit_weights(copy, **{"classifier.bias": torch.tensor([0.0, value])})
    with pytest.raises(RangeError, match=r"classifier\.bias"):
        load_student(copy)


def test_weights_stay_as_they_were_read_whatever_becomes_of_the_file(copy: Path) -> None:
    read = load_weights(copy)
    kept = {name: tensor.clone() for name, tensor in read.items()}
    path = copy / "model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))  # into the same file, as a copy onto it does
    assert all(torch.equal(tensor, kept[name]) for name, tensor in read.items())
    path.write_bytes(b"")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in read.items())


def test_missing_and_misshapen_tensors(copy: Path) -> None:
    edit_weights(copy, **{"bert.encoder.layer.0.output.dense.bias": torch.zeros(3)})
    with pytest.raises(UserInputError, match="1 tensors are missing or not shaped"):
        load_student(copy)


def test_a_student_must_bring_its_head(copy: Path) -> None:
    edit_weights(copy, **{"classifier.bias": None})
    with pytest.raises(UserInputError, match=r"lacks classifier\.bias"):
        load_student(copy)


def test_a_student_must_bring_its_divisors(tmp_path: Path, data_dir: Path) -> None:
    folder = save_student(tmp_path / "student", data_dir, softmax="2quad-const")
    assert load_student(folder, softmax="2quad-const")
    edit_weights(folder, **{"bert.encoder.layer.1.attention.self.log_divisor": None})
    with pytest.raises(UserInputError, match=r"lacks bert\.encoder\.layer\.1\.attention\.self\.log_divisor"):
        load_student(folder)


def test_a_student_must_bring_its_deviations(tmp_path: Path, data_dir: Path) -> None:
    folder = save_student(tmp_path / "student", data_dir, constant_norms=["output"])
    assert load_student(folder).config.constant_norms == ["layer.0.output", "layer.1.output"]
    edit_weights(folder, **{"bert.encoder.layer.1.output.LayerNorm.log_deviation": None})
    with pytest.raises(UserInputError, match=r"lacks bert\.encoder\.layer\.1\.output\.LayerNorm\.log_deviation"):
        load_student(folder)


def test_damaged_files(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserInputError, match="cannot be read"):
        load_student(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(UserInputError, match="not JSON"):
        load_student(copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "it has no ranges.json"),
        ("[]", "not a ranges file"),
        ('{"n_examples": 1, "bounds": {"a": [NaN, 1]}}', "is not finite"),
        ('{"n_examples": 1, "bounds": {"a": [2, 1]}}', "is not finite"),
    ],
)
def test_ranges(copy: Path, text: str | None, message: str) -> None:
    path = copy / "ranges.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(MPCFormerError, match=message):
        load_student(copy)


def test_a_hub_id_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*args: object, **kwargs: object) -> str:
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(DependencyError, match="'google/bert_tiny' is no folder here"):
        resolve_checkpoint("google/bert_tiny")
    assert resolve_checkpoint(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "8"])
def test_an_impossible_head_size_is_refused_by_parties_too(size: Any) -> None:
    with pytest.raises(UserInputError, match=r"head_size: .* is no positive integer"):
        described({"model_type": "mpcformer", "head_size": size})
    plain = {"model_type": "mpcformer"}
    assert described(plain).head_size == described(plain | {"head_size": None}).head_size == 64
