"""RoBERTa, CamemBERT and XLM-R: a BERT whose first position is 2 and whose pooler stands in the head."""

from collections.abc import Mapping
from typing import Any

from mpcformer.modeling.families.family import (
    Family,
    Fields,
    Tensors,
    activation_of,
    drop_first_positions,
    require_absolute,
    shared_fields,
)

# The two linear maps of the head; the pooler of a bare model is not used by any head.
OUTER_HEAD = ((r"^classifier\.dense\.", "bert.pooler.dense."), (r"^classifier\.out_proj\.", "classifier."))
NO_POOLER = (r"^pooler\..*$", "")


def _first_position(config: Mapping[str, Any]) -> int:
    return int(config.get("pad_token_id", 1)) + 1


def _fields(config: Mapping[str, Any]) -> Fields:
    require_absolute(config)
    return shared_fields(
        config,
        gelu=activation_of(config.get("hidden_act", "gelu")),
        vocab_size=config.get("vocab_size", 50265),
        type_vocab_size=config.get("type_vocab_size", 2),
        pad_token_id=config.get("pad_token_id", 1),
        max_position_embeddings=config.get("max_position_embeddings", 512) - _first_position(config),
    )


def _complete(tensors: Tensors, config: Mapping[str, Any]) -> None:
    drop_first_positions(tensors, _first_position(config))


ROBERTA = Family(body="roberta.", fields=_fields, names=(NO_POOLER,), head=OUTER_HEAD, complete=_complete)
