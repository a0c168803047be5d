"""The student as a Hugging Face model, its calibrated ranges, and checkpoints."""

from mpcformer.modeling.configuration import MPCFormerConfig
from mpcformer.modeling.load import default_backbone, load_checkpoint, load_student, load_tokenizer, resolve_checkpoint
from mpcformer.modeling.model import MPCFormerForSequenceClassification, StudentOutput
from mpcformer.modeling.ranges import Ranges, load_ranges

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
