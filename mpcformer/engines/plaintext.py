"""The logits of a model in plaintext, in the batches of a private run, which is compared with them."""

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpcformer.tasks import Encoded, length_batches, pad_batch


def predict(
    model: torch.nn.Module, encoded: list[Encoded], *, pad_id: int, batch_size: int, max_tokens: int | None = None
) -> tuple[NDArray[np.float32], list[float]]:
    """Run a model on examples.

    Args:
        model: a student or a teacher.
        encoded: the examples.
        pad_id: the padding token.
        batch_size: the most examples of one batch.
        max_tokens: as `length_batches` takes it.

    Returns:
        float32 logits (N, C) in the order of the examples, or (N, L, C) of each token with NaN at padding; and the
        seconds of each example: those of its batch divided by the size of the batch.
    """
    n_examples = len(encoded)
    logits: list[NDArray[np.float32]] = [np.empty(0, dtype=np.float32)] * n_examples
    seconds = [0.0] * n_examples
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in length_batches([len(row.input_ids) for row in encoded], batch_size, max_tokens):
            inputs: dict[str, Any] = {
                key: value.to(device) for key, value in pad_batch([encoded[i] for i in batch], pad_id).items()
            }
            start = time.perf_counter()
            output = model(**inputs).logits.float().cpu().numpy()
            elapsed = time.perf_counter() - start
            for row, index in enumerate(batch):
                # Only the real tokens of a text have logits of their own.
                logits[index] = output[row][: len(encoded[index].input_ids)] if output.ndim == 3 else output[row]
                seconds[index] = elapsed / len(batch)
    model.train(was_training)
    return np.stack(_padded(logits)), seconds


def _padded(logits: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Return the logits of each example's tokens (L, C), padded with NaN to the longest; others (C,) as they are."""
    longest = max((len(row) for row in logits if row.ndim == 2), default=0)
    return [
        np.pad(row, ((0, longest - len(row)), (0, 0)), constant_values=np.nan) if row.ndim == 2 else row
        for row in logits
    ]
