"""The student as a Hugging Face model, its calibrated ranges, and checkpoints.

Torch, transformers and its modelling code take seconds to load. A command's help, or one that refuses its arguments,
need not spend them, and a data owner and a model owner need no model class. So everything is imported when somebody
asks for it.
"""

from typing import TYPE_CHECKING

from mpcformer.lazy import lazily

if TYPE_CHECKING:
    from mpcformer.modeling.configuration import MPCFormerConfig
    from mpcformer.modeling.load import (
        default_backbone,
        load_checkpoint,
        load_student,
        load_tokenizer,
        resolve_checkpoint,
    )
    from mpcformer.modeling.model import MPCFormerForSequenceClassification, StudentOutput
    from mpcformer.modeling.ranges import Ranges, load_ranges

MODULES = {
    "configuration": ("MPCFormerConfig",),
    "load": (
        "default_backbone",
        "load_checkpoint",
        "load_student",
        "load_tokenizer",
        "resolve_checkpoint",
    ),
    "model": (
        "MPCFormerForSequenceClassification",
        "StudentOutput",
    ),
    "ranges": (
        "Ranges",
        "load_ranges",
    ),
}

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

__getattr__ = lazily(__name__, MODULES)
