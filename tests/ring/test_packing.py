"""Packing keeps exactly the low bits, wherever a packed part begins."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcformer.ring.packing import WIDTHS, pack, packed_bytes, reduce, unpack, unpack_int32


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
    packed = torch.cat([torch.zeros(3, dtype=torch.uint8), pack(x, 32)])[3:]
    found = unpack_int32(packed, (2, 3))
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), x)
