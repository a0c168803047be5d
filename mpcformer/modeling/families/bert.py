"""BERT, and students, whose tensors have a BERT's names."""

from collections.abc import Mapping
from typing import Any

from mpcformer.modeling.families.family import Family, Fields, activation_of, require_absolute, shared_fields

# The fields that only students have.
STUDENT = (
    "gelu",
    "softmax",
    "task",
    "constant_norms",
    "head_size",
    "precision",
    "embedding_size",
    "projection",
    "score_buckets",
    "pooling",
    "head_activation",
    "output",
    "strides",
)


def bert_fields(config: Mapping[str, Any]) -> Fields:
    """Return the fields of a BERT or of a student."""
    require_absolute(config)
    own = shared_fields(config, gelu=activation_of(config.get("hidden_act", "gelu")))
    if config.get("model_type") != "mpcformer":
        return own
    return own | {name: config[name] for name in STUDENT if config.get(name) is not None}


BERT = Family(body="bert.", fields=bert_fields)
