"""The student as a Hugging Face model, its calibrated ranges, and checkpoints.

The model's classes load transformers' modelling code, which takes two seconds. A data owner, and a command that refuses
its arguments, need not spend them, so the classes are imported when somebody asks for them.
"""

from typing import TYPE_CHECKING, Any

from mpcformer.modeling.configuration import MPCFormerConfig
from mpcformer.modeling.load import default_backbone, load_checkpoint, load_student, load_tokenizer, resolve_checkpoint
from mpcformer.modeling.ranges import Ranges, load_ranges

if TYPE_CHECKING:
    from mpcformer.modeling.model import MPCFormerForSequenceClassification, StudentOutput

__all__ = [
    "MPCFormerConfig",
    "MPCFormerForSequenceClassification",
    "Ranges",
    "StudentOutput",
    "default_backbone",
    "load_checkpoint",
    "load_ranges",
    "load_student",
    "load_tokenizer",
    "resolve_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in ("MPCFormerForSequenceClassification", "StudentOutput"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mpcformer.modeling import model

    return getattr(model, name)
