"""Record the ranges of a student's private non-linear functions on its training data."""

import torch

from mpcformer.engines.plaintext import predict
from mpcformer.modeling import MPCFormerForSequenceClassification, Ranges
from mpcformer.modeling.bounds import model_bounds
from mpcformer.tasks import Encoded

BATCH_SIZE = 32


def calibrate(model: MPCFormerForSequenceClassification, encoded: list[Encoded], *, pad_id: int) -> Ranges:
    """Return the ranges of every non-linear function's input over the given texts, in float32 and evaluation mode.

    Args:
        model: the student, with its final weights.
        encoded: the training texts.
        pad_id: the id of the padding token.
    """
    ranges = Ranges(n_examples=len(encoded))
    model.observer = ranges.observe
    try:
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            predict(model, encoded, pad_id=pad_id, batch_size=BATCH_SIZE)
    finally:
        model.observer = None
    limits = ranges.norm_limits(model.config.constant_norms)
    heads, gelu = model.config.num_attention_heads, model.config.gelu
    ranges.note_reach(model_bounds(heads, gelu, model.state_dict(), norm_limits=limits))
    return ranges
