"""A fused computation gives the bits of its steps done one by one, compiled or not."""

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcformer.ring import fused
from mpcformer.ring.fused import CompiledFused, Fused, collapsed
from mpcformer.ring.packing import WIDTHS, WORD, PackedMatrix, pack, packed_bytes, reduce, unpack
from mpcformer.ring.random import Stream, derive_key

COMPILED = fused.compiled()
needs_compiled = pytest.mark.skipif(COMPILED is None, reason="no compiled file here")
SHAPES = [(0,), (1,), (7,), (3, 5), (2, 1, 700), (1, 33, 65), (2, 3, 4, 5), (3, 2, 2, 3, 2), (1, 1), ()]


def operand(stream: Stream, shape: tuple[int, ...], choice: int) -> torch.Tensor:
    """Return numbers that broadcast to the shape, and lie in memory in one of several ways."""
    if choice == 1 and len(shape) > 1:
        return stream.int64((*shape[:-2], shape[-1], shape[-2])).transpose(-1, -2)
    if choice == 2 and shape:
        return stream.int64(shape[-1:])
    if choice == 3 and shape:
        return stream.int64((*shape[:-1], 1))
    return stream.int64((2, *shape))[1] if choice == 4 else stream.int64(shape)


def steps(stream: Stream, shape: tuple[int, ...], kinds: list[tuple[int, int, int]]) -> tuple[Fused, torch.Tensor]:
    """Return a computation, and its result by torch's operations."""
    first = operand(stream, shape, kinds[0][1] if kinds else 0).expand(shape)
    hand, computation = first, Fused(first)
    for kind, choice, number in kinds:
        x, down = operand(stream, shape, choice), number % 127 - 63
        if kind == 0:
            computation, hand = computation + x, hand + x
        elif kind == 1:
            computation, hand = computation - x, hand - x
        elif kind == 2:
            computation, hand = computation * x, hand * x
        elif kind == 3:
            computation, hand = computation + number, hand + number
        elif kind == 4:
            computation, hand = (
                (computation >> down, hand >> down) if down > 0 else (computation << -down, hand << -down)
            )
        elif kind == 5:
            computation, hand = computation.plus(x, down), hand + (x >> down if down >= 0 else x << -down)
        elif kind == 6:
            computation, hand = computation.minus(x, down), hand - (x >> down if down >= 0 else x << -down)
        else:
            bits = WIDTHS[number % len(WIDTHS)]
            packed = PackedMatrix(pack(stream.int64(shape), bits), shape, bits)
            computation, hand = computation + packed, hand + packed.unpacked()
    return computation, hand


KINDS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 4), st.integers(-(2**62), 2**62)), max_size=6)


@pytest.mark.parametrize("is_compiled", [pytest.param(True, marks=needs_compiled), False])
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SHAPES), KINDS, st.sampled_from(WIDTHS), st.integers(0, 2**40))
def test_steps_together_are_the_steps_one_by_one(
    is_compiled: bool, shape: tuple[int, ...], kinds: list[tuple[int, int, int]], bits: int, seed: int
) -> None:
    stream = Stream(derive_key(bytes(16), seed))
    computation, expected = steps(stream, shape, kinds)
    theirs = stream.int64(shape)
    message, opened = pack(theirs, bits), reduce(expected + theirs, bits)
    with pytest.MonkeyPatch.context() as patch:
        if not is_compiled:
            patch.setattr(fused, "compiled", lambda: None)
        assert computation.shape == expected.shape
        assert torch.equal(computation.computed(), expected)
        assert torch.equal(computation.packed(bits), pack(expected, bits))
        packed, numbers = computation.packed_and_computed(bits)
        assert torch.equal(packed, pack(expected, bits))
        assert torch.equal(numbers, expected)
        packed, numbers = computation.packed_and_opened(bits, message)
        assert torch.equal(packed, pack(expected, bits))
        assert torch.equal(reduce(numbers, bits), opened)
        assert torch.equal(reduce(computation.opened(bits, message), bits), opened)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(WIDTHS), st.integers(1, 3000), st.integers(0, 2**40))
def test_it_begins_with_a_message_that_may_start_anywhere(bits: int, n: int, seed: int) -> None:
    stream = Stream(derive_key(bytes(16), seed))
    x, y = stream.int64((n,)), stream.int64((n,))
    moved = torch.cat([torch.zeros(3, dtype=torch.uint8), pack(x, bits)])[3:]
    found = Fused(PackedMatrix(moved, (n,), bits)).opened(bits, pack(y, bits))
    assert torch.equal(reduce(found, bits), reduce(x + y, bits))


def test_what_does_not_fit_is_refused() -> None:
    x = torch.zeros(4, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match="bytes are not"):
        Fused(x).opened(32, torch.zeros(packed_bytes(20, 32) - 1, dtype=torch.uint8))


@needs_compiled
def test_operands_that_do_not_fit_are_refused() -> None:
    x = torch.zeros(4, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match="not int64"):
        (Fused(x) + x.float()).computed()
    with pytest.raises(ValueError, match="bytes are not"):
        (Fused(x) + PackedMatrix(torch.zeros(3, dtype=torch.uint8), (4, 5), 8)).computed()


@needs_compiled
def test_a_function_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert COMPILED is not None
    assert COMPILED.are_right()
    run = CompiledFused.__call__

    def without_rounding(function: CompiledFused, arguments: bytes) -> int:
        words = list(struct.unpack(f"{len(arguments) // 8}q", arguments))
        for step in range(fused.N_WORDS, len(words), fused.N_STEP_WORDS):
            words[step + 1] -= words[step] == fused.ADD_NUMBER
        return run(function, struct.pack(f"{len(words)}q", *words))

    monkeypatch.setattr(CompiledFused, "__call__", without_rounding)
    assert not COMPILED.are_right()


def test_numbers_are_hidden_from_repr() -> None:
    computation = Fused(torch.tensor([123_456_789])) + 5
    for shown in (computation, computation._steps):
        assert "123456789" not in repr(shown)


def test_words_are_packed_as_they_are() -> None:
    x = torch.arange(6) - 3
    packed, numbers = Fused(x).packed_and_opened(WORD, pack(x, WORD))
    assert torch.equal(unpack(packed, (6,), WORD), x)
    assert torch.equal(numbers, 2 * x)


def test_dimensions_that_all_pass_alike_are_joined() -> None:
    assert collapsed((2, 3, 4), [(12, 4, 1), (12, 4, 1)]) == ([24], [[1], [1]])
    assert collapsed((2, 3, 4), [(12, 4, 1), (0, 0, 1)]) == ([6, 4], [[4, 1], [0, 1]])
    assert collapsed((2, 1, 4), [(4, 9, 1)]) == ([8], [[1]])
    assert collapsed((), [()]) == ([], [[]])
