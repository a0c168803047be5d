"""Checkpoints as people have them: in shards, with old names, in other types of numbers, bare, or with other heads."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
)

from mpcformer.errors import UserInputError
from mpcformer.modeling import load_checkpoint
from mpcformer.modeling.folder import INDEX, WEIGHTS, weight_files, weights_digest
from tests.modeling.test_model import INPUTS
from tests.tiny import WORDS, save_bert

SMALL = BertConfig(
    vocab_size=len(WORDS),
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=32,
)


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = load_checkpoint(folder)(**INPUTS).logits
    return found


def test_the_oldest_names_of_layer_norms_load(tmp_path: Path) -> None:
    wanted = logits(save_bert(tmp_path / "bert"))
    path = tmp_path / "bert" / WEIGHTS
    state = load_file(path)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in state.items()
    }
    assert any(name.endswith(".gamma") for name in old)
    path.unlink()
    save_file(old, path)
    assert torch.equal(logits(tmp_path / "bert"), wanted)


def test_weights_in_shards_load(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "bert")
    wanted, whole = logits(folder), weights_digest(folder)
    model = BertForSequenceClassification.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / INDEX).is_file()
    assert not (folder / WEIGHTS).exists()
    assert len(weight_files(folder)) > 2
    assert torch.equal(logits(folder), wanted)
    digest = weights_digest(folder)
    assert digest != whole
    weight_files(folder)[1].unlink()
    with pytest.raises(UserInputError, match="which is not there"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "listed", [[], {}, {"weight_map": {}}, {"weight_map": {"a": 3}}, {"weight_map": {"a": "../x.safetensors"}}]
)
def test_a_damaged_list_of_shards_is_refused(tmp_path: Path, listed: object) -> None:
    folder = save_bert(tmp_path / "bert")
    (folder / WEIGHTS).rename(tmp_path / "x.safetensors")
    (folder / INDEX).write_text(json.dumps(listed))
    with pytest.raises(UserInputError, match=r"names no files of weights|which is not there"):
        load_checkpoint(folder)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_loads(tmp_path: Path, kind: torch.dtype) -> None:
    wanted = logits(save_bert(tmp_path / "bert"))
    model = BertForSequenceClassification.from_pretrained(tmp_path / "bert")
    model.to(kind).save_pretrained(tmp_path / "half")
    found = logits(tmp_path / "half")
    assert found.dtype == torch.float32
    assert 0 < float((found - wanted).abs().max()) < 0.05


def test_a_bare_model_or_one_with_another_head_starts_a_teacher_but_is_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    BertModel(SMALL).save_pretrained(tmp_path / "bare")
    BertForMaskedLM(SMALL).save_pretrained(tmp_path / "words")
    save_bert(tmp_path / "three", num_labels=3)
    settings = json.loads((tmp_path / "three" / "config.json").read_text())
    for name in ("id2label", "label2id", "num_labels"):
        settings.pop(name, None)
    (tmp_path / "three" / "config.json").write_text(json.dumps(settings))
    for name in ("bare", "words", "three"):
        with pytest.raises(UserInputError, match=r"the head's tensor (classifier|bert\.pooler)\S*, .* by config\.json"):
            load_checkpoint(tmp_path / name)
        start = load_checkpoint(tmp_path / name, num_labels=2, seed=0)
        again = load_checkpoint(tmp_path / name, num_labels=2, seed=0)
        assert torch.equal(start.classifier.weight, again.classifier.weight)
        theirs = load_file(tmp_path / name / WEIGHTS)
        word = next(value for key, value in theirs.items() if key.endswith("word_embeddings.weight"))
        assert torch.equal(start.bert.embeddings.word_embeddings.weight, word)


def test_an_adapter_is_refused_with_what_merges_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "roberta-base"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserInputError, match="holds a PEFT adapter") as caught:
        load_checkpoint(tmp_path)
    assert "merge_and_unload" in caught.value.remedy


def test_a_config_that_is_no_object_is_refused(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "bert")
    (folder / "config.json").write_text("[]")
    with pytest.raises(UserInputError, match="holds no JSON object"):
        load_checkpoint(folder)
    shutil.copy(folder / WEIGHTS, folder / "config.json")
    with pytest.raises(UserInputError, match=r"config\.json"):
        load_checkpoint(folder)


@pytest.mark.parametrize("changes", [{"vocab_size": "many"}, {"hidden_size": [32]}, {"layer_norm_eps": "small"}])
def test_a_field_of_another_type_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    folder = save_bert(tmp_path / "bert")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | changes))
    with pytest.raises(UserInputError, match=next(iter(changes))):
        load_checkpoint(folder)
