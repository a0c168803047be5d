"""The student as a Hugging Face model: equal to transformers' BERT with gelu + softmax; seen, saved, loaded."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, BertForSequenceClassification

from mpcformer.approximations import QUAD_DIVISOR, SOFTMAX_FORMS
from mpcformer.errors import UserInputError
from mpcformer.modeling import (
    MPCFormerConfig,
    MPCFormerForSequenceClassification,
    Ranges,
    default_backbone,
    load_checkpoint,
    load_tokenizer,
)
from mpcformer.modeling.description import chosen_norms, norm_names, split_norms
from mpcformer.modeling.encoder import Context
from tests.tiny import WORDS, save_bert

IDS = torch.tensor([[2, 4, 12, 3, 0, 0], [2, 8, 13, 14, 15, 3]])
MASK = (IDS != 0).long()
TYPES = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
INPUTS = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": TYPES}


@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_equals_transformers_bert(tmp_path: Path, num_labels: int) -> None:
    folder = save_bert(tmp_path / "bert", num_labels=num_labels)
    reference = BertForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        ours, theirs = load_checkpoint(folder)(**INPUTS), reference(**INPUTS, output_hidden_states=True)
    assert torch.allclose(ours.logits, theirs.logits, atol=1e-5)
    assert ours.hidden_states is None


def test_equals_transformers_bert_on_real_text() -> None:
    folder = default_backbone()
    model, tokenizer = load_checkpoint(folder, num_labels=2, seed=0), load_tokenizer(folder)
    reference = BertForSequenceClassification.from_pretrained(folder, num_labels=2, attn_implementation="eager").eval()
    reference.load_state_dict(model.state_dict(), strict=True)
    sentences = [
        "The harbour lay still under a thin rain.",
        "Nobody had warned them about the second winter, had they?",
        "No.",
    ]
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        ours = model(**batch, output_hidden_states=True)
        theirs = reference(**batch, output_hidden_states=True)
    assert torch.allclose(ours.logits, theirs.logits, atol=1e-5)
    valid = batch["attention_mask"].bool()
    for mine, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert torch.allclose(mine[valid], other[valid], atol=1e-4)


@pytest.mark.parametrize("softmax", SOFTMAX_FORMS)
def test_padding_changes_nothing(tmp_path: Path, softmax: str) -> None:
    model = load_checkpoint(save_bert(tmp_path / "bert"), gelu="quad", softmax=softmax)
    with torch.no_grad():
        alone = model(IDS[:1, :4], MASK[:1, :4]).logits
        padded = model(IDS, MASK).logits[:1]
    assert torch.allclose(alone, padded, atol=1e-5)


def test_attention_scores_and_hidden_states(tmp_path: Path) -> None:
    model = load_checkpoint(save_bert(tmp_path / "bert"))
    output = model(**INPUTS, output_hidden_states=True, output_attention_scores=True)
    assert [tuple(s.shape) for s in output.attention_scores] == [(2, 4, 6, 6)] * 2
    assert [tuple(h.shape) for h in output.hidden_states] == [(2, 6, 32)] * 3


@pytest.mark.parametrize("softmax", ["softmax", "2quad"])
def test_a_layer_that_keeps_every_second_position(tmp_path: Path, softmax: str) -> None:
    """Kept rows are those of a layer that keeps all, and a later layer reads them alone."""
    folder, forms = save_bert(tmp_path / "bert"), {"gelu": "quad", "softmax": softmax}
    outputs = {"output_hidden_states": True, "output_attention_scores": True}
    whole = load_checkpoint(folder, **forms)
    first, last = (load_checkpoint(folder, **forms, strides=strides) for strides in ([2, 1], [1, 2]))
    with torch.no_grad():
        all_kept, early, late = (model(**INPUTS, **outputs) for model in (whole, first, last))
        hidden = first.bert.layers[1](
            all_kept.hidden_states[1][:, ::2], Context(MASK[:, None, None, ::2], None, []), ""
        )
    assert torch.allclose(late.hidden_states[2], all_kept.hidden_states[2][:, ::2], atol=1e-6)
    assert torch.allclose(early.hidden_states[1], all_kept.hidden_states[1][:, ::2], atol=1e-6)
    assert torch.allclose(early.hidden_states[2], hidden, atol=1e-6)
    assert [tuple(scores.shape[2:]) for scores in early.attention_scores] == [(3, 6), (3, 3)]
    assert not torch.allclose(early.logits, all_kept.logits, atol=1e-3)
    assert torch.allclose(late.logits, all_kept.logits, atol=1e-6), "the head takes the first position alone"


def test_a_bias_on_the_scores_goes_by_distances_in_the_text() -> None:
    settings = {"num_hidden_layers": 3, "hidden_size": 8, "num_attention_heads": 2, "score_buckets": 32}
    every, second = (
        MPCFormerForSequenceClassification(MPCFormerConfig(**settings, strides=s)) for s in ([], [1, 2, 3])
    )
    second.load_state_dict(every.state_dict())
    biases = [model.bert.layers[2].attention["self"].bias for model in (every, second)]
    assert torch.equal(biases[1](6), biases[0](11)[:, ::6, ::2])


@pytest.mark.parametrize(
    ("strides", "message"),
    [
        ([2], "1 numbers for a model of 2 layers"),
        ([1, True], "no list of integers from 1 to 64"),
        ([1, 65], "no list of integers from 1 to 64"),
        ([64, 9], r"\[64, 9\] keep one of 576 positions, and no text has more than 512"),
        ("12", "no list of integers"),
        (3, "no list of integers"),
    ],
)
def test_strides_are_a_number_for_each_layer(strides: Any, message: str) -> None:
    with pytest.raises(UserInputError, match=f"^strides: .*{message}"):
        MPCFormerConfig(num_hidden_layers=2, strides=strides)


def test_strides_of_one_are_none_and_every_tokens_answer_needs_every_position() -> None:
    assert MPCFormerConfig(num_hidden_layers=2, strides=(1, 1)).strides == []
    with pytest.raises(UserInputError, match=r"strides: \[1, 2\] drop positions"):
        MPCFormerConfig(num_hidden_layers=2, strides=[1, 2], pooling="each", head_activation="none")


@pytest.mark.parametrize(("labels", "num_labels"), [([0, 1], 2), ([0.5, 3.0], 1)])
def test_loss(tmp_path: Path, labels: list[float], num_labels: int) -> None:
    model = load_checkpoint(save_bert(tmp_path / "bert", num_labels=num_labels))
    output = model(**INPUTS, labels=torch.tensor(labels))
    if num_labels == 1:
        assert torch.allclose(output.loss, ((output.logits[:, 0] - torch.tensor(labels)) ** 2).mean())
    else:
        assert torch.allclose(output.loss, -output.logits.log_softmax(-1)[[0, 1], labels].mean())


@pytest.mark.parametrize("softmax", ["2quad", "2quad-const"])
def test_auto_classes_save_safetensors_and_load_back(tmp_path: Path, softmax: str) -> None:
    model = load_checkpoint(save_bert(tmp_path / "bert"), gelu="quad", softmax=softmax, task="sst2")
    divisors = [p for name, p in model.named_parameters() if name.endswith("self.log_divisor")]
    assert len(divisors) == (2 if softmax == "2quad-const" else 0), "one a layer"
    for n, divisor in enumerate(divisors):
        assert divisor.exp().item() == pytest.approx(QUAD_DIVISOR)
        divisor.data += 0.3 + 0.1 * n
    model.save_pretrained(tmp_path / "student")
    assert (tmp_path / "student" / "model.safetensors").is_file()
    config = AutoConfig.from_pretrained(tmp_path / "student")
    assert isinstance(config, MPCFormerConfig)
    assert (config.gelu, config.softmax, config.task) == ("quad", softmax, "sst2")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").eval()
    assert isinstance(again, MPCFormerForSequenceClassification)
    with torch.no_grad():
        assert torch.equal(again(**INPUTS).logits, model(**INPUTS).logits)


def test_observer_sees_real_tokens_only_and_every_nonlinearity(tmp_path: Path) -> None:
    model = load_checkpoint(save_bert(tmp_path / "bert"), gelu="quad", softmax="2quad")
    clean, dirty = Ranges(), Ranges()
    for ranges, ids in ((clean, IDS), (dirty, torch.where(MASK == 0, torch.tensor(9), IDS))):
        model.observer = ranges.observe
        with torch.no_grad():
            model(ids, MASK, TYPES)
    layer = ["scores", "row_mean", "attention.variance", "activation", "output.variance", "hidden"]
    names = {f"layer.{n}.{part}" for n in range(2) for part in layer}
    assert set(clean.bounds) == names | {"embeddings.variance", "pooler.tanh", "logits"}
    for name, bounds in clean.bounds.items():
        assert dirty.bounds[name] == pytest.approx(bounds, abs=1e-5), name


def test_constant_norms_by_hand_saved_and_loaded_back(tmp_path: Path) -> None:
    model = load_checkpoint(save_bert(tmp_path / "bert"), constant_norms=["layer.1.output", "attention"])
    assert model.config.constant_norms == ["layer.0.attention", "layer.1.attention", "layer.1.output"]
    norm = model.bert.layers[1].output.LayerNorm
    norm.log_deviation.data.fill_(math.log(3.0))
    norm.weight.data.fill_(2.0)
    norm.bias.data.fill_(0.5)
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    expected = (x - x.mean(-1, keepdim=True)) / 3.0 * 2.0 + 0.5
    assert torch.allclose(norm(x), expected, atol=1e-6)
    assert model.bert.embeddings.LayerNorm.log_deviation is None
    assert torch.allclose(model.bert.embeddings.LayerNorm(x).mean(-1), torch.zeros(4), atol=1e-6)
    model.save_pretrained(tmp_path / "student")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").eval()
    assert again.config.constant_norms == model.config.constant_norms
    assert load_checkpoint(tmp_path / "student", constant_norms=()).config.constant_norms == []
    with torch.no_grad():
        assert torch.equal(again(**INPUTS).logits, model(**INPUTS).logits)


@pytest.mark.parametrize("name", ["layer.2.attention", "layer.0.attention.output", "pooler", "layer.0"])
def test_a_norm_that_there_is_not(name: str) -> None:
    with pytest.raises(UserInputError, match=f"'{name}' is no LayerNorm of a model of 2 layers"):
        MPCFormerConfig(num_hidden_layers=2, constant_norms=["embeddings", name])


def test_groups_of_norms() -> None:
    assert chosen_norms(["output", "embeddings"], 2) == ["embeddings", "layer.0.output", "layer.1.output"]
    assert chosen_norms(["all"], 2) == norm_names(2) == chosen_norms(["output", "attention", "embeddings"], 2)
    assert chosen_norms(split_norms(" layer.1.output,,attention"), 2) == [
        "layer.0.attention",
        "layer.1.attention",
        "layer.1.output",
    ]
    assert chosen_norms(split_norms(""), 2) == []


def test_narrow_heads_equal_wide_ones_that_are_half_zeros(tmp_path: Path) -> None:
    wide = load_checkpoint(save_bert(tmp_path / "bert"), gelu="quad")
    narrow = MPCFormerForSequenceClassification(MPCFormerConfig(**(wide.config.to_dict() | {"head_size": 5}))).eval()
    assert wide.config.head_size == 8
    assert narrow.config.attention_size == 20
    kept = (torch.arange(32) % 8) < 5
    state = wide.state_dict()
    for n in range(2):
        for part in ("query", "key", "value"):
            for kind in ("weight", "bias"):
                state[f"bert.encoder.layer.{n}.attention.self.{part}.{kind}"][~kept] = 0
    wide.load_state_dict(state)
    for n in range(2):
        attention = f"bert.encoder.layer.{n}.attention"
        for part in ("query", "key", "value"):
            for kind in ("weight", "bias"):
                state[f"{attention}.self.{part}.{kind}"] = state[f"{attention}.self.{part}.{kind}"][kept]
        # Scores are divided by the root of the smaller size.
        for kind in ("weight", "bias"):
            state[f"{attention}.self.query.{kind}"] *= math.sqrt(5 / 8)
        state[f"{attention}.output.dense.weight"] = state[f"{attention}.output.dense.weight"][:, kept]
    narrow.load_state_dict(state)
    with torch.no_grad():
        assert torch.allclose(narrow(**INPUTS).logits, wide(**INPUTS).logits, atol=1e-5)
    narrow.save_pretrained(tmp_path / "narrow")
    again = load_checkpoint(tmp_path / "narrow", gelu="quad")
    assert (again.config.head_size, again.config.num_attention_heads) == (5, 4)
    with torch.no_grad():
        assert torch.equal(again(**INPUTS).logits, narrow(**INPUTS).logits)


def test_heads_that_do_not_fill_the_width() -> None:
    assert MPCFormerConfig(hidden_size=32, num_attention_heads=3, head_size=8).attention_size == 24
    assert MPCFormerConfig(hidden_size=32, num_attention_heads=4).head_size == 8
    with pytest.raises(UserInputError, match=r"\(5\) must divide hidden_size \(32\)"):
        MPCFormerConfig(hidden_size=32, num_attention_heads=5)


@pytest.mark.parametrize("norms", [None, 5, [["all"]], {"all": 0}, "all", [1]])
def test_constant_norms_are_a_list_of_names(norms: Any) -> None:
    with pytest.raises(UserInputError, match=r"constant_norms: .* is no list of LayerNorms' names"):
        MPCFormerConfig(constant_norms=norms)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("head_size", True),
        ("head_size", 8.0),
        ("head_size", 0),
        ("head_size", "8"),
        ("num_attention_heads", 0),
        ("num_attention_heads", -4),
    ],
)
def test_sizes_of_attention_are_positive_integers(name: str, value: Any) -> None:
    for others in ({}, {"head_size": 4}):
        with pytest.raises(UserInputError, match=rf"{name}: .* is no positive integer"):
            MPCFormerConfig(**(others | {name: value}))


def test_vocabulary_of_the_tiny_model() -> None:
    assert WORDS[0] == "[PAD]", "IDS above uses 0 as padding"
