"""The tasks: their registry, how their examples are loaded and batched, and their metrics."""

from mpcformer.tasks.batching import Encoded, encode, length_batches, pad_batch, shuffled_length_batches
from mpcformer.tasks.load import EVAL, Examples, carve_selection, load_examples
from mpcformer.tasks.metrics import agreement, compute_metrics, predictions_of, primary_score
from mpcformer.tasks.registry import TASKS, Task, get_task

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
