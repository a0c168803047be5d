"""Count in plaintext the texts that the default engine would refuse, because they leave the ranges of its tables."""

from collections.abc import Mapping, Sequence

import torch

from distill.training.calibrate import BATCH_SIZE, MAX_TOKENS
from mpcformer.modeling import MPCFormerForSequenceClassification
from mpcformer.tasks import Encoded, length_batches, pad_batch


def refused(
    model: MPCFormerForSequenceClassification,
    encoded: Sequence[Encoded],
    limits: Mapping[str, tuple[float, float]],
    *,
    pad_id: int,
) -> list[bool]:
    """Return for each text whether some number of it lies outside the limits, in float32 and evaluation mode.

    Args:
        model: the student.
        encoded: the texts.
        limits: the interval of each number that is watched, as `LiftScales.limits` gives it.
        pad_id: the id of the padding token.
    """
    verdicts = [False] * len(encoded)
    device = next(model.parameters()).device
    outside = torch.empty(0)

    def see(name: str, values: torch.Tensor, valid: torch.Tensor) -> None:
        if name in limits:
            low, high = limits[name]
            left = ((values < low) | (values > high)) & valid
            outside.logical_or_(left.flatten(1).any(1))

    was_training, before = model.training, model.observer
    model.eval()
    model.observer = see
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            for batch in length_batches([len(row.input_ids) for row in encoded], BATCH_SIZE, MAX_TOKENS):
                outside = torch.zeros(len(batch), dtype=torch.bool, device=device)
                inputs = pad_batch([encoded[i] for i in batch], pad_id)
                model(**{key: value.to(device) for key, value in inputs.items()})
                for index, verdict in zip(batch, outside.tolist(), strict=True):
                    verdicts[index] = verdict
    finally:
        model.observer = before
        model.train(was_training)
    return verdicts
