"""Which texts go into a batch together, and to which shape a batch is filled up.

Correlations are dealt ahead by shape. Few shapes make it likely that a batch of the right one waits.
"""

from collections.abc import Sequence

import torch

from mpcformer.engines.base import BatchInputs, BatchShape
from mpcformer.tasks import Encoded, pad_batch


def padded_length(n_tokens: int, lengths: Sequence[int], positions: int) -> int:
    """Return the length that a text of so many tokens is padded to: the next of `lengths`, or all positions."""
    return min([length for length in lengths if n_tokens <= length <= positions], default=positions)


def batch_sizes(n_texts: int, sizes: Sequence[int]) -> list[int]:
    """Return the sizes of the batches for so many texts of one length, the largest first.

    A batch is filled, or more than half full where the next smaller size would take several, or of the smallest size.
    """
    falling = sorted(sizes, reverse=True)
    found = []
    for size, below in zip(falling, [*falling[1:], 0], strict=True):
        while n_texts >= size or n_texts > (size // 2 if below else 0):
            found.append(size)
            n_texts -= size
    return found


def batches(
    n_tokens: Sequence[int], lengths: Sequence[int], positions: int, sizes: Sequence[int]
) -> list[tuple[BatchShape, list[int]]]:
    """Group texts into batches.

    Args:
        n_tokens: of each text, with special tokens.
        lengths: the lengths that texts are padded to.
        positions: the number of positions of the model.
        sizes: the sizes that batches may have.

    Returns:
        The shape of each batch, and the indices of its texts, which may be fewer than the shape has room for.
    """
    by_length: dict[int, list[int]] = {}
    for index, n in enumerate(n_tokens):
        by_length.setdefault(padded_length(n, lengths, positions), []).append(index)
    found = []
    for length in sorted(by_length):
        members = sorted(by_length[length], key=lambda i: n_tokens[i])
        for size in batch_sizes(len(members), sizes):
            chosen, members = members[:size], members[size:]
            found.append((BatchShape(size, length), chosen))
    return found


def filled(texts: Sequence[Encoded], shape: BatchShape, pad_id: int) -> BatchInputs:
    """Return a batch of this shape; the last text is repeated where there are too few."""
    rows = [*texts, *[texts[-1]] * (shape.batch_size - len(texts))]
    tensors = pad_batch(rows, pad_id)
    missing = shape.seq_len - tensors["input_ids"].size(1)

    def wide(name: str, fill: int) -> torch.Tensor:
        return torch.nn.functional.pad(tensors[name], (0, missing), value=fill)

    return BatchInputs(
        wide("attention_mask", 0), wide("input_ids", pad_id), wide("token_type_ids", 0), n_told=len(texts)
    )
