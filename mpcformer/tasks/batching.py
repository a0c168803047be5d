"""Token ids and length-bucketed batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mpcformer.errors import UserInputError
from mpcformer.tasks.load import Examples

BUCKET_BATCHES = 50


@dataclass(frozen=True)
class Encoded:
    """One example's ids, unpadded, special tokens included."""

    input_ids: list[int]
    token_type_ids: list[int]

    def __repr__(self) -> str:
        return f"Encoded({len(self.input_ids)} tokens)"


def encode(tokenizer: Any, examples: Examples, *, positions: int, max_length: int | None = None) -> list[Encoded]:
    """Tokenise; longer texts are cut at `max_length`, or refused where it is None.

    Args:
        tokenizer: a Hugging Face tokenizer.
        examples: one or two texts each.
        positions: how many the model has.
        max_length: tokens kept, special ones included; at least 8.

    Raises:
        UserInputError: max_length outside 8..positions, or a text longer than the positions and no max_length.
    """
    if max_length is not None and not 8 <= max_length <= positions:
        raise UserInputError(
            f"--max-length: {max_length} is outside 8..{positions}", f"give at most {positions}, the model's positions"
        )
    columns = [list(column) for column in zip(*examples.texts, strict=True)]
    options = {"truncation": max_length is not None, "max_length": max_length, "verbose": False}
    rows = tokenizer(*columns, return_token_type_ids=True, return_attention_mask=False, **options)
    encoded = [Encoded(*row) for row in zip(rows["input_ids"], rows["token_type_ids"], strict=True)]
    for example, row in zip(examples.ids, encoded, strict=True):
        if len(row.input_ids) > positions:
            raise UserInputError(
                f"example {example} has more tokens than the model has positions, {positions}",
                f"cut long texts with --max-length {positions}",
            )
    return encoded


def length_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of like length, longest first, so that memory peaks at once and padding is rare.

    Raises:
        UserInputError: batch_size below 1.
    """
    if batch_size < 1:
        raise UserInputError(f"--batch-size: {batch_size} is below 1", "give a positive number")
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def shuffled_length_batches(lengths: Sequence[int], batch_size: int, permutation: Sequence[int]) -> list[list[int]]:
    """Training batches: windows of a random permutation, each sorted by length, then taken in a mixed order.

    Args:
        lengths: tokens of each example.
        batch_size: examples a batch.
        permutation: a random order of the examples; decides everything, so a seed reproduces it.
    """
    window = batch_size * BUCKET_BATCHES
    batches: list[list[int]] = []
    for start in range(0, len(permutation), window):
        chunk = sorted(permutation[start : start + window], key=lambda i: lengths[i])
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    rank = {example: place for place, example in enumerate(permutation)}
    return sorted(batches, key=lambda batch: rank[batch[0]])


def pad_batch(encoded: Sequence[Encoded], pad_id: int) -> dict[str, torch.Tensor]:
    """int64 input_ids, token_type_ids, attention_mask, each (B, L), L the longest of the batch."""
    longest = max(len(row.input_ids) for row in encoded)

    def column(values: list[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([row + [fill] * (longest - len(row)) for row in values])

    return {
        "input_ids": column([row.input_ids for row in encoded], pad_id),
        "token_type_ids": column([row.token_type_ids for row in encoded], 0),
        "attention_mask": column([[1] * len(row.input_ids) for row in encoded], 0),
    }
