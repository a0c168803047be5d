"""A model with its family's own forms as transformers' own class, which can be used without this package."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as hf_logging

from mpcformer.errors import UserInputError
from mpcformer.modeling.families import family_of
from mpcformer.modeling.families.albert import group_of
from mpcformer.modeling.families.albert import layer_name as albert_layer
from mpcformer.modeling.families.mpnet import SHARED_BIAS, bias_name
from mpcformer.modeling.model import MPCFormerForSequenceClassification

PREFIX = "bert.embeddings"
POSITIONS, TYPES, TASKS = (f"{PREFIX}.{each}_embeddings.weight" for each in ("position", "token_type", "task_type"))
# What this package's configuration says in words of its own.
DROPPED = ("model_type", "gelu", "softmax", "task", "architectures", "id2label", "label2id", "transformers_version")


def tie_shared(model: MPCFormerForSequenceClassification, raw: Mapping[str, Any]) -> None:
    """Make layers share in training what a family's layers share, so that `as_transformers` can export the model.

    Args:
        model: as `load_checkpoint` has loaded it.
        raw: the config.json that it was loaded from.
    """
    layers = model.bert.layers
    if raw.get("model_type") == "mpnet":
        for layer in layers[1:]:
            layer.attention["self"].score_bias = layers[0].attention["self"].score_bias
    if raw.get("model_type") == "albert":
        groups: dict[int, int] = {}
        for n in range(len(layers)):
            first = groups.setdefault(group_of(n, raw), n)
            layers[n] = layers[first]
        model.bert.encoder["layer"] = nn.ModuleList(layers)


def as_transformers(
    model: MPCFormerForSequenceClassification, raw: Mapping[str, Any], labels: Sequence[str]
) -> PreTrainedModel:
    """Return the same weights in transformers' own class of the family, for the classification of sequences.

    Args:
        model: a model with its family's own forms; what its layers share is tied, see `tie_shared`.
        raw: the config.json of the checkpoint that it comes from.
        labels: the names of the classes; none for a regression.

    Raises:
        UserInputError: transformers' class has a tensor that the model has not.
    """
    family = family_of(raw, "the model")
    config = AutoConfig.for_model(raw["model_type"], **{key: value for key, value in raw.items() if key not in DROPPED})
    config.num_labels = model.num_labels
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    else:
        config.problem_type = "regression"
    hf_logging.disable_progress_bar()
    with torch.random.fork_rng():
        theirs = AutoModelForSequenceClassification.from_config(config)
    ours = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    names = {name: family.canonical_name(name) for name in theirs.state_dict()}
    if TYPES not in names.values():  # the one type of a family without types belongs to every position
        ours[POSITIONS] = ours[POSITIONS] + ours[TYPES][0]
    state = {}
    for name, tensor in theirs.state_dict().items():
        value = _tensor(names[name], tensor, ours, raw)
        if value is None or value.shape != tensor.shape:
            raise UserInputError(f"{name} of transformers' {type(theirs).__name__} has no counterpart", "report this")
        state[name] = value.contiguous()
    theirs.load_state_dict(state, strict=True)
    exported: PreTrainedModel = theirs.eval()
    return exported


def _tensor(
    name: str, theirs: torch.Tensor, ours: Mapping[str, torch.Tensor], raw: Mapping[str, Any]
) -> torch.Tensor | None:
    """Return the value of a tensor of transformers' class that has a BERT's `name`; None if there is none."""
    if name == POSITIONS:
        # A family whose first token has a later position never uses the rows before it.
        before = theirs.new_zeros((theirs.size(0) - ours[name].size(0), theirs.size(1)))
        return torch.cat([before, ours[name]])
    if name == TASKS:  # the positions carry that of the task in use
        return torch.zeros_like(theirs)
    if name == SHARED_BIAS:
        return ours.get(bias_name(0))
    return ours.get(albert_layer(name, raw) or name)
