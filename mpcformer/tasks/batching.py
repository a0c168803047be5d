"""Turn texts into token ids, and examples into batches of similar length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mpcformer.errors import UserInputError
from mpcformer.modeling.tokenizer import Limits, TextTokenizer
from mpcformer.tasks.load import Examples

BUCKET_BATCHES = 50
LONGEST_TEXT = 200_000


@dataclass(frozen=True)
class Encoded:
    """The ids of one example, without padding but with the special tokens."""

    input_ids: list[int]
    token_type_ids: list[int]

    def __repr__(self) -> str:
        return f"Encoded({len(self.input_ids)} tokens)"


def encode(tokenizer: Any, examples: Examples, *, limits: Limits, max_length: int | None = None) -> list[Encoded]:
    """Tokenise examples. Texts longer than `max_length` are cut.

    Args:
        tokenizer: a Hugging Face tokenizer, or a `TextTokenizer` that cuts to `max_length`.
        examples: the examples, with one or two texts each.
        limits: what the model can read.
        max_length: the number of tokens to keep, with the special ones, at least 8; None refuses texts that are longer
            than the model's positions.

    Raises:
        UserInputError: `max_length` is outside 8..positions, a text is too long and there is no `max_length`, or the
            tokenizer has more words than the model.
    """
    positions = limits.positions
    if max_length is not None and not 8 <= max_length <= positions:
        raise UserInputError(
            f"--max-length: {max_length} is outside 8..{positions}", f"give at most {positions}, the model's positions"
        )
    columns = [list(column) for column in zip(*examples.texts, strict=True)]
    for column in columns:
        for index, text in enumerate(column):
            # To tokenise ten million characters takes a minute, and no model has so many positions.
            if len(text) > LONGEST_TEXT and max_length is None:
                raise UserInputError(
                    f"example {examples.ids[index]} has {len(text)} characters; at most {LONGEST_TEXT} are tokenised",
                    f"cut long texts with --max-length {positions}",
                )
            column[index] = text[:LONGEST_TEXT]
    texts = list(zip(*columns, strict=True))
    rows = (
        [tokenizer.ids(*each) for each in texts]
        if isinstance(tokenizer, TextTokenizer)
        else _by_transformers(tokenizer, texts, max_length)
    )
    encoded = [Encoded(*limits.checked(*row)) for row in rows]
    for example, row in zip(examples.ids, encoded, strict=True):
        if len(row.input_ids) > positions:
            raise UserInputError(
                f"example {example} has more tokens than the model has positions, {positions}",
                f"cut long texts with --max-length {positions}",
            )
    return encoded


def _by_transformers(
    tokenizer: Any, texts: list[tuple[str, ...]], max_length: int | None
) -> list[tuple[list[int], list[int]]]:
    """Return the ids and token types of texts, or of pairs of texts, by a Hugging Face tokenizer."""
    options = {"truncation": max_length is not None, "max_length": max_length, "verbose": False}
    options |= {"return_token_type_ids": True, "return_attention_mask": False}
    rows = tokenizer(*(list(column) for column in zip(*texts, strict=True)), **options)
    found = list(zip(rows["input_ids"], rows["token_type_ids"], strict=True))
    for i, each in enumerate(texts):
        # In a list transformers takes an empty second text for a text; alone, as asking does, for none.
        if len(each) == 2 and not each[1]:
            row = tokenizer(each[0], **options)
            found[i] = row["input_ids"], row["token_type_ids"]
    return found


def length_batches(lengths: Sequence[int], batch_size: int, max_tokens: int | None = None) -> list[list[int]]:
    """Group indices into batches of similar length, the longest first. Padding is rare, and memory peaks at the start.

    Args:
        lengths: the number of tokens of each example.
        batch_size: the most examples in a batch.
        max_tokens: the most tokens in a batch with padding, as far as it has several examples; None for any number.

    Raises:
        UserInputError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise UserInputError(f"--batch-size: {batch_size} is below 1", "give a positive number")
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if max_tokens is None:
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    batches: list[list[int]] = []
    while order:
        size = max(1, min(batch_size, max_tokens // max(1, lengths[order[0]])))
        batches.append(order[:size])
        order = order[size:]
    return batches


def shuffled_length_batches(lengths: Sequence[int], batch_size: int, permutation: Sequence[int]) -> list[list[int]]:
    """Group examples into training batches: windows of a permutation are sorted by length, and the batches are mixed.

    Args:
        lengths: the number of tokens of each example.
        batch_size: the number of examples in a batch.
        permutation: a random order of the examples. It alone decides the batches, so a seed reproduces them.
    """
    window = batch_size * BUCKET_BATCHES
    batches: list[list[int]] = []
    for start in range(0, len(permutation), window):
        chunk = sorted(permutation[start : start + window], key=lambda i: lengths[i])
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    rank = {example: place for place, example in enumerate(permutation)}
    return sorted(batches, key=lambda batch: rank[batch[0]])


def pad_batch(encoded: Sequence[Encoded], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad examples to the longest of the batch: int64 input_ids, token_type_ids and attention_mask, each (B, L)."""
    longest = max(len(row.input_ids) for row in encoded)

    def column(values: list[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([row + [fill] * (longest - len(row)) for row in values])

    return {
        "input_ids": column([row.input_ids for row in encoded], pad_id),
        "token_type_ids": column([row.token_type_ids for row in encoded], 0),
        "attention_mask": column([[1] * len(row.input_ids) for row in encoded], 0),
    }
