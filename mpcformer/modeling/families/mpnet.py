"""MPNet: a BERT with a learnt bias on the scores for each distance, no token types, and first position 2."""

from collections.abc import Mapping
from typing import Any

from mpcformer.modeling.families.family import (
    Family,
    Fields,
    Tensors,
    activation_of,
    add_token_types,
    drop_first_positions,
    shared_fields,
)
from mpcformer.modeling.families.roberta import NO_POOLER, OUTER_HEAD

PADDING = 1
SHARED_BIAS = "bert.encoder.relative_attention_bias.weight"
ATTENTION = {"q": "self.query", "k": "self.key", "v": "self.value", "o": "output.dense"}


def bias_name(layer: int) -> str:
    """Return the name of a layer's table of biases."""
    return f"bert.encoder.layer.{layer}.attention.self.score_bias.weight"


def _fields(config: Mapping[str, Any]) -> Fields:
    return shared_fields(
        config,
        gelu=activation_of(config.get("hidden_act", "gelu")),
        vocab_size=config.get("vocab_size", 30527),
        type_vocab_size=1,
        pad_token_id=PADDING,
        score_buckets=config.get("relative_attention_num_buckets", 32),
        max_position_embeddings=config.get("max_position_embeddings", 512) - PADDING - 1,
    )


def _complete(tensors: Tensors, config: Mapping[str, Any]) -> None:
    """Give every layer the table of biases, which all layers share."""
    shared = tensors.pop(SHARED_BIAS, None)
    if shared is not None:
        for layer in range(config.get("num_hidden_layers", 12)):
            tensors[bias_name(layer)] = shared
    drop_first_positions(tensors, PADDING + 1)
    add_token_types(tensors)


MPNET = Family(
    body="mpnet.",
    fields=_fields,
    names=(
        NO_POOLER,
        *((rf"\.attention\.attn\.{theirs}\.", f".attention.{ours}.") for theirs, ours in ATTENTION.items()),
        (r"\.attention\.LayerNorm\.", ".attention.output.LayerNorm."),
    ),
    head=OUTER_HEAD,
    complete=_complete,
)
