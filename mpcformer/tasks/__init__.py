"""The tasks: their registry, how their examples are loaded and batched, and their metrics.

Only the registry is imported at once. The rest loads pyarrow and torch, for which a command's help need not wait, and
is imported when somebody asks for it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mpcformer.tasks.registry import EVAL, TASKS, Task, get_task

if TYPE_CHECKING:
    from mpcformer.tasks.batching import Encoded, encode, length_batches, pad_batch, shuffled_length_batches
    from mpcformer.tasks.load import Examples, carve_selection, load_examples
    from mpcformer.tasks.metrics import agreement, compute_metrics, predictions_of, primary_score

MODULES = ("load", "metrics", "batching")

__all__ = [
    "EVAL",
    "TASKS",
    "Encoded",
    "Examples",
    "Task",
    "agreement",
    "carve_selection",
    "compute_metrics",
    "encode",
    "get_task",
    "length_batches",
    "load_examples",
    "pad_batch",
    "predictions_of",
    "primary_score",
    "shuffled_length_batches",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in MODULES:
            found = importlib.import_module(f"{__name__}.{module}")
            if name in vars(found):
                return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
