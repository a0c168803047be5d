"""Record the ranges of a student's private non-linear functions on its training data."""

import torch

from mpcformer.engines.plaintext import predict
from mpcformer.modeling import MPCFormerForSequenceClassification, Ranges
from mpcformer.modeling.bounds import worst_case
from mpcformer.modeling.weights import bert_weights
from mpcformer.tasks import Encoded

BATCH_SIZE = 32
# Attention's tensors of a batch with more tokens are so large that their memory is returned and cleared each time.
MAX_TOKENS = 2048


def calibrate(model: MPCFormerForSequenceClassification, encoded: list[Encoded], *, pad_id: int) -> Ranges:
    """Return the ranges of every non-linear function's input over the given texts, in float32 and evaluation mode.

    Args:
        model: the student, with its final weights.
        encoded: the training texts.
        pad_id: the id of the padding token.
    """
    ranges = observed(model, encoded, pad_id=pad_id)
    limits = ranges.norm_limits(model.config.constant_norms)
    weights = bert_weights(model.state_dict(), model.config)
    ranges.note_reach(worst_case(model.config, weights, norm_limits=limits), model.config.precision)
    return ranges


def observed(model: MPCFormerForSequenceClassification, encoded: list[Encoded], *, pad_id: int) -> Ranges:
    """Return the ranges over the given texts as `calibrate` does, but without those that follow from the weights."""
    ranges = Ranges(n_examples=len(encoded))
    model.observer = ranges.observe
    try:
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            predict(model, encoded, pad_id=pad_id, batch_size=BATCH_SIZE, max_tokens=MAX_TOKENS)
    finally:
        model.observer = None
    return ranges
