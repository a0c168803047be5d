"""Every family computes what transformers' own class computes, in float64, with every optional part on and off."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from mpcformer.errors import UserInputError
from mpcformer.modeling import load_checkpoint
from mpcformer.modeling.description import described
from mpcformer.modeling.families import NEEDS, PLACES
from mpcformer.modeling.families.distances import distance_buckets
from mpcformer.modeling.families.export import as_transformers, tie_shared

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 160,
    "initializer_range": 0.3,
}
DISTIL = {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "initializer_range": 0.3}
CASES: list[tuple[str, dict[str, Any]]] = [
    *(("Bert", SIZES | {"hidden_act": act}) for act in ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")),
    ("Bert", SIZES | {"type_vocab_size": 1, "num_labels": 1}),
    ("Ernie", SIZES | {"use_task_id": True, "task_type_vocab_size": 3}),
    ("Ernie", SIZES | {"use_task_id": False, "hidden_act": "relu"}),
    ("Roberta", SIZES | {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "num_labels": 3}),
    ("Camembert", SIZES | {"type_vocab_size": 1}),
    ("XLMRoberta", SIZES | {"type_vocab_size": 1, "hidden_act": "gelu_new"}),
    ("DistilBert", DISTIL),
    ("DistilBert", DISTIL | {"activation": "relu", "sinusoidal_pos_embds": True, "num_labels": 4}),
    ("Electra", SIZES | {"embedding_size": 16}),
    ("Electra", SIZES | {"embedding_size": 32, "hidden_act": "relu"}),
    ("MPNet", SIZES | {"layer_norm_eps": 1e-5}),
    ("Albert", SIZES | {"embedding_size": 16}),
    ("Albert", SIZES | {"embedding_size": 32, "num_hidden_groups": 2, "hidden_act": "gelu"}),
]


def saved(folder: Path, family: str, settings: dict[str, Any], head: str = "ForSequenceClassification") -> Any:
    """Save a random model of a family and return it in float64, in evaluation mode; no bias and no gain is trivial."""
    torch.manual_seed(0)
    config = getattr(hf, f"{family}Config")(**settings)
    model = getattr(hf, f"{family}{head}")(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # Sums of two weights, which are made when a checkpoint is loaded, are then exact in float32.
            parameter.copy_(((parameter + 0.1 * noise) * 2**12).round() / 2**12)
    model.save_pretrained(folder)
    loaded = type(model).from_pretrained(folder, attn_implementation="eager")
    return loaded.double().eval()


def inputs(settings: dict[str, Any], n_tokens: int = 150) -> dict[str, torch.Tensor]:
    """Return two texts, a long one and a short padded one; no token is the pad token of any family."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 60, (2, n_tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    ids[1, 7:] = settings.get("pad_token_id", 0)
    return {"input_ids": ids, "attention_mask": mask}


def compared(folder: Path, reference: Any, **extra: torch.Tensor) -> None:
    texts = inputs(reference.config.to_dict())
    takes_types = "token_type_ids" in reference.forward.__code__.co_varnames
    types = torch.zeros_like(texts["input_ids"])
    if takes_types and getattr(reference.config, "type_vocab_size", 1) > 1:
        types[:, 3:6] = 1
    model = load_checkpoint(folder).double()
    with torch.no_grad():
        ours = model(**texts, token_type_ids=types, output_hidden_states=True)
        theirs = reference(**texts, **({"token_type_ids": types} if takes_types else {}), output_hidden_states=True)
    if hasattr(theirs, "start_logits"):
        theirs.logits = torch.stack([theirs.start_logits, theirs.end_logits], dim=-1)
    real = texts["attention_mask"].bool()
    seen = (lambda x: x[real]) if ours.logits.dim() == 3 else (lambda x: x)
    assert (seen(ours.logits) - seen(theirs.logits)).abs().max() < 1e-9
    assert seen(ours.logits).std() > 1e-3
    assert (ours.hidden_states[-1] - theirs.hidden_states[-1])[real].abs().max() < 1e-9


@pytest.mark.parametrize(("family", "settings"), CASES, ids=[f"{i}-{name}" for i, (name, _) in enumerate(CASES)])
def test_every_family_equals_transformers_own_class(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    compared(tmp_path, saved(tmp_path, family, settings))


@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert", "Electra", "MPNet", "Albert", "XLMRoberta"])
@pytest.mark.parametrize("head", ["ForTokenClassification", "ForQuestionAnswering"])
def test_heads_on_each_token_equal_transformers_own_class(tmp_path: Path, family: str, head: str) -> None:
    settings = dict(DISTIL if family == "DistilBert" else SIZES)
    if head == "ForTokenClassification":
        settings |= {"num_labels": 5}
    if family in ("Electra", "Albert"):
        settings |= {"embedding_size": 16}
    compared(tmp_path, saved(tmp_path, family, settings, head))


def test_the_distances_fall_into_the_groups_of_transformers() -> None:
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    position = torch.arange(600)
    theirs = MPNetEncoder.relative_position_bucket(position[None, :] - position[:, None], num_buckets=32)
    assert torch.equal(distance_buckets(600, 32), theirs)


@pytest.mark.parametrize("name", [*NEEDS, "t5", None, 7])
def test_other_families_are_refused_by_name(tmp_path: Path, name: Any) -> None:
    saved(tmp_path, "Bert", SIZES)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": name}))
    with pytest.raises(UserInputError, match=f"a model of the type {name!r}") as caught:
        load_checkpoint(tmp_path)
    assert (NEEDS.get(name, "") if isinstance(name, str) else "") in str(caught.value)
    assert "roberta" in caught.value.remedy


def test_every_family_is_described_without_torch() -> None:
    for name in PLACES:
        own = described({"model_type": name, "vocab_size": 40, "hidden_size": 64, "num_attention_heads": 4})
        assert own.vocab_size == 40


@pytest.mark.parametrize(("family", "settings"), CASES, ids=[f"{i}-{name}" for i, (name, _) in enumerate(CASES)])
def test_a_trained_model_is_exported_as_transformers_own_class(
    tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    reference = saved(tmp_path / "one", family, settings)
    raw = json.loads((tmp_path / "one" / "config.json").read_text())
    model = load_checkpoint(tmp_path / "one")
    tie_shared(model, raw)
    texts = inputs(raw)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimiser.zero_grad()
        model(**texts).logits.square().sum().backward()
        optimiser.step()
    labels = [] if reference.config.num_labels == 1 else [f"class {i}" for i in range(reference.config.num_labels)]
    as_transformers(model, raw, labels).save_pretrained(tmp_path / "two")
    theirs = type(reference).from_pretrained(tmp_path / "two", attn_implementation="eager").eval()
    with torch.no_grad():
        ours, theirs_logits = model.eval()(**texts).logits, theirs(**texts).logits
        before = reference.float()(**texts).logits
    assert torch.allclose(ours, theirs_logits, atol=1e-4)
    assert not torch.allclose(ours, before, atol=1e-3), "training changed something"
    assert torch.allclose(load_checkpoint(tmp_path / "two")(**texts).logits, ours, atol=1e-4)
    if labels:
        assert theirs.config.id2label[0] == "class 0"
