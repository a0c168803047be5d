"""ALBERT: a BERT with narrow embeddings, all of whose layers have the same weights."""

import re
from collections.abc import Mapping
from typing import Any

from mpcformer.errors import UserInputError
from mpcformer.modeling.families.family import Family, Fields, Tensors, activation_of, require_absolute, shared_fields

SHARED_LAYER = re.compile(r"^bert\.encoder\.albert_layer_groups\.(\d+)\.albert_layers\.0\.(.*)$")


def _fields(config: Mapping[str, Any]) -> Fields:
    require_absolute(config)
    if config.get("inner_group_num", 1) != 1:
        raise UserInputError(
            f"inner_group_num: {config['inner_group_num']!r} is not supported", "use an ALBERT with inner_group_num 1"
        )
    return shared_fields(
        config,
        gelu=activation_of(config.get("hidden_act", "gelu_new")),
        vocab_size=config.get("vocab_size", 30000),
        embedding_size=config.get("embedding_size", 128),
        projection=True,
        hidden_size=config.get("hidden_size", 4096),
        num_attention_heads=config.get("num_attention_heads", 64),
        intermediate_size=config.get("intermediate_size", 16384),
        hidden_dropout_prob=config.get("hidden_dropout_prob", 0),
        attention_probs_dropout_prob=config.get("attention_probs_dropout_prob", 0),
    )


def group_of(layer: int, config: Mapping[str, Any]) -> int:
    """Return the group that a layer belongs to."""
    return int(layer / (config.get("num_hidden_layers", 12) / config.get("num_hidden_groups", 1)))


def layer_name(name: str, config: Mapping[str, Any]) -> str | None:
    """Return the name that a group's tensor has in the first layer of the group; None if it is no group's."""
    found = SHARED_LAYER.match(name)
    if found is None:
        return None
    layers = range(config.get("num_hidden_layers", 12))
    first = next(layer for layer in layers if group_of(layer, config) == int(found[1]))
    return f"bert.encoder.layer.{first}.{found[2]}"


def _complete(tensors: Tensors, config: Mapping[str, Any]) -> None:
    """Give every layer the tensors of its group."""
    for name in list(tensors):
        found = SHARED_LAYER.match(name)
        if found:
            tensor = tensors.pop(name)
            for layer in range(config.get("num_hidden_layers", 12)):
                if group_of(layer, config) == int(found[1]):
                    tensors[f"bert.encoder.layer.{layer}.{found[2]}"] = tensor


ALBERT = Family(
    body="albert.",
    fields=_fields,
    names=(
        (r"^pooler\.(?!dense)", "pooler.dense."),
        (r"^encoder\.embedding_hidden_mapping_in\.", "embeddings.projection."),
        (r"\.attention\.(query|key|value)\.", r".attention.self.\1."),
        (r"\.attention\.(dense|LayerNorm)\.", r".attention.output.\1."),
        (r"\.ffn\.", ".intermediate.dense."),
        (r"\.ffn_output\.", ".output.dense."),
        (r"\.full_layer_layer_norm\.", ".output.LayerNorm."),
    ),
    complete=_complete,
)
