"""ELECTRA: a BERT whose embeddings may be narrower than its layers, and whose head has a GeLU in place of the tanh."""

from collections.abc import Mapping
from typing import Any

from mpcformer.modeling.families.family import Family, Fields, activation_of, require_absolute, shared_fields
from mpcformer.modeling.families.roberta import OUTER_HEAD


def _fields(config: Mapping[str, Any]) -> Fields:
    require_absolute(config)
    return shared_fields(
        config,
        gelu=activation_of(config.get("hidden_act", "gelu")),
        embedding_size=config.get("embedding_size", 128),
        hidden_size=config.get("hidden_size", 256),
        num_attention_heads=config.get("num_attention_heads", 4),
        intermediate_size=config.get("intermediate_size", 1024),
        head_activation="gelu",
    )


ELECTRA = Family(
    body="electra.",
    fields=_fields,
    names=((r"^embeddings_project\.", "embeddings.projection."),),
    head=OUTER_HEAD,
)
