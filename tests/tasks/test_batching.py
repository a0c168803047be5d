"""Batches contain every example once and group similar lengths; encoding refuses texts that do not fit."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpcformer.errors import UserInputError
from mpcformer.modeling import load_tokenizer
from mpcformer.modeling.tokenizer import Limits
from mpcformer.tasks import Encoded, Examples, encode, length_batches, pad_batch, shuffled_length_batches
from tests.tiny import save_tokenizer

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=300)


@given(lengths, st.integers(1, 20))
def test_inference_batches(values: list[int], size: int) -> None:
    batches = length_batches(values, size)
    assert sorted(i for batch in batches for i in batch) == list(range(len(values)))
    assert all(len(batch) == size for batch in batches[:-1])
    ordered = [values[i] for batch in batches for i in batch]
    assert ordered == sorted(ordered, reverse=True)


@given(lengths, st.integers(1, 5), st.randoms(use_true_random=False))
def test_training_batches(values: list[int], size: int, random: object) -> None:
    order = list(range(len(values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    batches = shuffled_length_batches(values, size, order)
    assert sorted(i for batch in batches for i in batch) == list(range(len(values)))
    assert len(batches) == -(-len(values) // size)
    assert batches == shuffled_length_batches(values, size, order)


def test_training_batches_hold_like_lengths() -> None:
    values = [1 + i % 50 for i in range(1000)]
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(1)).tolist()
    spread = [max(values[i] for i in b) - min(values[i] for i in b) for b in shuffled_length_batches(values, 10, order)]
    assert sum(spread) / len(spread) < 5


def test_padding() -> None:
    batch = pad_batch([Encoded([5, 6, 7], [0, 0, 1]), Encoded([8], [0])], pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1], [0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_encoding(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    pair = Examples([7], [("the day", "was fine")], [0], ["train"])
    row = encode(tokenizer, pair, limits=Limits(32))[0]
    assert len(row.input_ids) == 7
    assert row.token_type_ids == [0, 0, 0, 0, 1, 1, 1]
    long = Examples([7], [("the " * 40,)], [0], ["train"])
    with pytest.raises(UserInputError, match="example 7 has more tokens than the model has positions, 32"):
        encode(tokenizer, long, limits=Limits(32))
    assert len(encode(tokenizer, long, limits=Limits(32), max_length=16)[0].input_ids) == 16
    for bad in (7, 33):
        with pytest.raises(UserInputError, match=f"--max-length: {bad} is outside"):
            encode(tokenizer, long, limits=Limits(32), max_length=bad)
    with pytest.raises(UserInputError, match="--batch-size: 0"):
        length_batches([1], 0)
    assert "fine" not in repr(pair)


def test_batches_are_bounded_in_tokens_too() -> None:
    lengths = [500, 3, 64, 64, 64, 10, 700]
    assert length_batches(lengths, 3, 512) == [[6], [0], [2, 3, 4], [5, 1]]
    assert length_batches(lengths, 3, 128) == [[6], [0], [2, 3], [4, 5], [1]]


@given(st.lists(st.integers(1, 600), min_size=1, max_size=50), st.integers(1, 40), st.integers(1, 3000))
def test_bounded_batches_hold_every_example_once(lengths: list[int], batch_size: int, max_tokens: int) -> None:
    batches = length_batches(lengths, batch_size, max_tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= batch_size
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= max_tokens
