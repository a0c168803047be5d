"""The tasks: their registry, how their examples are loaded and batched, and their metrics.

Only the registry is imported at once. The rest loads pyarrow and torch, for which a command's help need not wait, and
is imported when somebody asks for it.
"""

from typing import TYPE_CHECKING

from mpcformer.lazy import lazily
from mpcformer.tasks.registry import EMBEDDING, EVAL, OWN_DATA, TASKS, OwnData, Task, get_task

if TYPE_CHECKING:
    from mpcformer.tasks.batching import Encoded, encode, length_batches, pad_batch, shuffled_length_batches
    from mpcformer.tasks.files import TextFile
    from mpcformer.tasks.labels import UNLABELLED, class_order, known_names, model_names
    from mpcformer.tasks.load import Examples, carve_selection, load_examples
    from mpcformer.tasks.metrics import agreement, compute_metrics, predictions_of, primary_score, ties
    from mpcformer.tasks.own import (
        JobData,
        best_names,
        described,
        embedding_task,
        file_classes,
        job_task,
        load_job,
        load_own,
        open_own,
        own_task,
        with_metrics,
    )

MODULES = {
    "batching": (
        "Encoded",
        "encode",
        "length_batches",
        "pad_batch",
        "shuffled_length_batches",
    ),
    "files": ("TextFile",),
    "labels": (
        "UNLABELLED",
        "class_order",
        "known_names",
        "model_names",
    ),
    "load": (
        "Examples",
        "carve_selection",
        "load_examples",
    ),
    "metrics": (
        "agreement",
        "compute_metrics",
        "predictions_of",
        "primary_score",
        "ties",
    ),
    "own": (
        "JobData",
        "best_names",
        "embedding_task",
        "embedding_task",
        "described",
        "file_classes",
        "job_task",
        "load_job",
        "load_own",
        "open_own",
        "own_task",
        "with_metrics",
    ),
}

__all__ = [
    "EMBEDDING",
    "EVAL",
    "OWN_DATA",
    "TASKS",
    "UNLABELLED",
    "Encoded",
    "Examples",
    "JobData",
    "OwnData",
    "Task",
    "TextFile",
    "agreement",
    "best_names",
    "carve_selection",
    "class_order",
    "compute_metrics",
    "described",
    "embedding_task",
    "encode",
    "file_classes",
    "get_task",
    "job_task",
    "known_names",
    "length_batches",
    "load_examples",
    "load_job",
    "load_own",
    "model_names",
    "open_own",
    "own_task",
    "pad_batch",
    "predictions_of",
    "primary_score",
    "shuffled_length_batches",
    "ties",
    "with_metrics",
]

__getattr__ = lazily(__name__, MODULES)
