"""ERNIE: a BERT that may also embed the number of its training task, which is 0 in use."""

from collections.abc import Mapping
from typing import Any

from mpcformer.modeling.families.bert import bert_fields
from mpcformer.modeling.families.family import Family, Tensors


def _complete(tensors: Tensors, config: Mapping[str, Any]) -> None:
    """Add the embedding of task 0 to every position."""
    tasks = tensors.pop("bert.embeddings.task_type_embeddings.weight", None)
    name = "bert.embeddings.position_embeddings.weight"
    if tasks is not None and config.get("use_task_id") and name in tensors:
        tensors[name] = tensors[name] + tasks[0]


ERNIE = Family(body="ernie.", fields=bert_fields, complete=_complete)
