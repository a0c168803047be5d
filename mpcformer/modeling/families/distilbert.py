"""DistilBERT: a BERT without token types, whose head has a ReLU in place of the tanh."""

from collections.abc import Mapping
from typing import Any

from mpcformer.modeling.families.family import Family, Fields, Tensors, activation_of, add_token_types, shared_fields

NAMES = {"q_lin": "self.query", "k_lin": "self.key", "v_lin": "self.value", "out_lin": "output.dense"}


def _fields(config: Mapping[str, Any]) -> Fields:
    return shared_fields(
        config,
        gelu=activation_of(config.get("activation", "gelu")),
        type_vocab_size=1,
        hidden_size=config.get("dim", 768),
        num_hidden_layers=config.get("n_layers", 6),
        num_attention_heads=config.get("n_heads", 12),
        intermediate_size=config.get("hidden_dim", 3072),
        hidden_dropout_prob=config.get("dropout", 0.1),
        attention_probs_dropout_prob=config.get("attention_dropout", 0.1),
        layer_norm_eps=1e-12,
        head_activation="relu",
    )


def _complete(tensors: Tensors, config: Mapping[str, Any]) -> None:
    add_token_types(tensors)


DISTILBERT = Family(
    body="distilbert.",
    fields=_fields,
    names=(
        (r"^transformer\.", "encoder."),
        *((rf"\.attention\.{theirs}\.", f".attention.{ours}.") for theirs, ours in NAMES.items()),
        (r"\.sa_layer_norm\.", ".attention.output.LayerNorm."),
        (r"\.ffn\.lin1\.", ".intermediate.dense."),
        (r"\.ffn\.lin2\.", ".output.dense."),
        (r"\.output_layer_norm\.", ".output.LayerNorm."),
    ),
    head=((r"^pre_classifier\.", "bert.pooler.dense."), (r"^classifier\.", "classifier.")),
    complete=_complete,
)
