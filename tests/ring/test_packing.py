"""Packing keeps exactly the low bits, wherever a packed part begins."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcformer.ring import packing
from mpcformer.ring.packing import (
    WIDTHS,
    WORD,
    CompiledPacking,
    pack,
    pack_by_torch,
    packed_bytes,
    reduce,
    unpack,
    unpack_by_torch,
    unpack_int32,
    unpack_onto,
)
from mpcformer.ring.random import Stream, derive_key

COMPILED = packing.compiled()
needs_compiled = pytest.mark.skipif(COMPILED is None, reason="no compiled file here")


@settings(max_examples=60)
@given(st.sampled_from(WIDTHS), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9))
def test_packing_keeps_the_low_bits(bits: int, values: list[int]) -> None:
    x = torch.tensor(values, dtype=torch.int64)
    packed = pack(x, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == packed_bytes(len(values), bits) == -(-len(values) * bits // 8)
    assert torch.equal(unpack(packed, x.shape, bits), reduce(x, bits))
    # A part of a message may start at any byte.
    moved = torch.cat([torch.zeros(3, dtype=torch.uint8), packed])[3:]
    assert torch.equal(unpack(moved, x.shape, bits), reduce(x, bits))


def test_numbers_of_32_bits_are_read_as_they_are() -> None:
    x = torch.tensor([[-(2**31), -1, 0], [1, 2**31 - 1, 7]])
    packed = pack(x, 32)
    moved = torch.cat([torch.zeros(3, dtype=torch.uint8), packed])[3:]
    for message in (packed, moved):
        found = unpack_int32(message, (2, 3))
        assert found.dtype == torch.int32
        assert torch.equal(found.long(), x)
    assert unpack_int32(packed, (2, 3)).data_ptr() == packed.data_ptr()


@settings(max_examples=100)
@given(st.sampled_from(WIDTHS), st.integers(0, 40), st.integers(0, 2**40))
def test_a_message_is_added_as_it_is_unpacked(bits: int, n: int, seed: int) -> None:
    stream = Stream(derive_key(bytes(16), seed))
    x, y = stream.int64((n,)), stream.int64((n,))
    assert torch.equal(unpack_onto(pack(x, bits), y, bits), reduce(x + y, bits))


@needs_compiled
@settings(max_examples=300)
@given(st.sampled_from(WIDTHS[:-1]), st.integers(0, 70), st.integers(0, 2**40), st.integers(0, 3))
def test_the_compiled_functions_give_the_twins_bits(bits: int, n: int, seed: int, moved: int) -> None:
    assert COMPILED is not None
    stream = Stream(derive_key(bytes(16), seed))
    x, y = stream.int64((n,)), stream.int64((n,))
    packed = pack_by_torch(x, bits)
    assert torch.equal(COMPILED.pack(x, bits), packed)
    part = torch.cat([torch.zeros(moved, dtype=torch.uint8), packed])[moved:]
    numbers = unpack_by_torch(packed, x.shape, bits)
    assert torch.equal(COMPILED.unpack(part, x.shape, bits), numbers)
    assert torch.equal(COMPILED.unpack(part, x.shape, bits, y), reduce(numbers + y, bits))


@needs_compiled
def test_what_does_not_fit_is_refused() -> None:
    assert COMPILED is not None
    x = torch.zeros(6, dtype=torch.int64)
    packed = COMPILED.pack(x, 24)
    with pytest.raises(ValueError, match="does not pack"):
        COMPILED.pack(x.to(torch.int32), 24)
    for wrong in (lambda: COMPILED.unpack(packed[1:], (6,), 24), lambda: COMPILED.unpack(packed, (6,), 24, x[:5])):
        with pytest.raises(ValueError, match="does not unpack"):
            wrong()
    with pytest.raises(ValueError, match="does not pack into bytes"):
        COMPILED.pack(x, 23)


@needs_compiled
def test_a_processor_without_their_instructions_does_not_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def __getattr__(self, name: str) -> Callable[[], int]:
            assert name == "mpcformer_kernels_level", "nothing else may be called"
            return lambda: 0

    monkeypatch.setattr(packing, "load_library", lambda: (Old(), ""))
    packing.compiled.cache_clear()
    try:
        assert packing.compiled() is None
    finally:
        packing.compiled.cache_clear()


@needs_compiled
def test_wrong_functions_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    real = CompiledPacking.pack
    monkeypatch.setattr(CompiledPacking, "pack", lambda self, x, bits: real(self, x, bits) ^ 1)
    packing.compiled.cache_clear()
    try:
        assert packing.compiled() is None
        x = torch.arange(9)
        assert torch.equal(unpack_onto(pack(x, 20), x, 20), 2 * x)
        assert pack(x, WORD).numel() == 72
    finally:
        packing.compiled.cache_clear()
