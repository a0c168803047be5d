"""What a family of encoders is: the rules by which its fields and its tensors become those of a BERT."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpcformer.errors import UserInputError

if TYPE_CHECKING:
    import torch

Fields = dict[str, Any]
Tensors = dict[str, "torch.Tensor"]
Names = Sequence[tuple[str, str]]

# What the private model calls an activation, by the names that configurations use.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
# Fields that mean the same in every family.
SHARED = (
    "vocab_size",
    "type_vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "layer_norm_eps",
    "initializer_range",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "pad_token_id",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
)
# The beginnings of names in a model that is saved without a head.
BODY = ("embeddings", "encoder.", "transformer.", "pooler.")
OLD_NAMES = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))
# The heads by the end of the class's name in `architectures`. Logits for each token are computed without a dense layer.
EACH_TOKEN = ("ForTokenClassification", "ForQuestionAnswering")
EACH_HEAD = ((r"^(classifier|qa_outputs)\.", "classifier."),)
ANSWERS = {0: "start", 1: "end"}


@dataclass(frozen=True, eq=False, kw_only=True)
class Family:
    """A family of encoders.

    Args:
        body: how the names of the body's tensors begin in a model with a head, such as "roberta.".
        fields: makes the fields that `ModelDescription` and training read from a config.json.
        names: patterns, and what replaces them, which make a name within the body that of a BERT's tensor; the ones
            whose replacement is empty drop the tensor. They are applied in order.
        head: the same for whole names outside the body, in a model for the classification of sequences.
        complete: adds what a BERT has and the family lacks, and takes away what it has beside; it may change its first
            argument. The second one is the config.json.
    """

    body: str
    fields: Callable[[Mapping[str, Any]], Fields]
    names: Names = ()
    head: Names = ((r"^classifier\.", "classifier."),)
    complete: Callable[[Tensors, Mapping[str, Any]], None] = lambda tensors, config: None

    def described(self, config: Mapping[str, Any]) -> Fields:
        """Return the fields of a config.json as a BERT's configuration has them, with the head's."""
        fields = {name: value for name, value in self.fields(config).items() if value is not None}
        if pools_each(config):
            fields |= {"pooling": "each", "head_activation": "none"}
            if _is_answering(config):
                fields |= {"id2label": ANSWERS, "label2id": {name: index for index, name in ANSWERS.items()}}
        return fields

    def canonical(self, tensors: Mapping[str, "torch.Tensor"], config: Mapping[str, Any]) -> Tensors:
        """Return the tensors of a checkpoint under a BERT's names; those of other heads are left out."""
        found: Tensors = {}
        for name, tensor in tensors.items():
            new = self.canonical_name(name, is_each=pools_each(config))
            if new:
                found[new] = tensor
        self.complete(found, config)
        return found

    def canonical_name(self, name: str, *, is_each: bool = False) -> str:
        """Return a BERT's name of a tensor, before `complete`; empty if there is none.

        Args:
            name: the tensor's.
            is_each: whether the head gives logits for each token.
        """
        name = _replaced(name, OLD_NAMES)
        head = EACH_HEAD if is_each else self.head
        if name.startswith(self.body):
            inside = name[len(self.body) :]
        elif name.startswith(BODY):
            inside = name
        else:
            new = _replaced(name, head)
            return new if any(re.search(pattern, name) for pattern, _ in head) else ""
        new = _replaced(inside, self.names)
        return f"bert.{new}" if new else ""


def pools_each(config: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint's head gives logits for each token."""
    names = config.get("architectures")
    return isinstance(names, list) and any(str(name).endswith(EACH_TOKEN) for name in names)


def _is_answering(config: Mapping[str, Any]) -> bool:
    return any(str(name).endswith("ForQuestionAnswering") for name in config.get("architectures") or ())


def _replaced(name: str, rules: Names) -> str:
    for pattern, replacement in rules:
        name, n = re.subn(pattern, replacement, name)
        if n and not replacement:
            return ""
    return name


def shared_fields(config: Mapping[str, Any], **changes: Any) -> Fields:
    """Return the fields of a config.json that mean the same in every family, with those that a family changes."""
    shared = {name: config[name] for name in SHARED if config.get(name) is not None}
    return {"softmax": "softmax"} | shared | changes


def activation_of(name: Any) -> str:
    """Return what the private model calls an activation.

    Raises:
        UserInputError: it computes no such activation.
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UserInputError(
            f"hidden_act: the activation {name!r} is not supported",
            f"use a checkpoint with one of these: {', '.join(ACTIVATIONS)}",
        )
    return ACTIVATIONS[name]


def require_absolute(config: Mapping[str, Any]) -> None:
    """Refuse a model whose positions are relative to each other.

    Raises:
        UserInputError: it is such a model.
    """
    positions = config.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise UserInputError(f"position_embedding_type: {positions!r} is not supported", "use absolute positions")


def drop_first_positions(tensors: Tensors, n: int) -> None:
    """Leave out the first rows of the positions' table, where a family's first token has a later position."""
    name = "bert.embeddings.position_embeddings.weight"
    if name in tensors:
        tensors[name] = tensors[name][n:]


def add_token_types(tensors: Tensors) -> None:
    """Add one token type of zeros, where a family has none."""
    words, types = (f"bert.embeddings.{each}_embeddings.weight" for each in ("word", "token_type"))
    if words in tensors and types not in tensors:
        tensors[types] = tensors[words].new_zeros((1, tensors[words].size(1)))
