"""Ring elements on the wire: Z_2^k with k a multiple of 8 takes k / 8 bytes an element, little-endian.

In memory an element of Z_2^k is an int64 whose bits from k up mean nothing; sums, products and matrix products of such
numbers are right modulo 2^k without a reduction.
"""

from collections.abc import Sequence

import torch

WIDTHS = (8, 16, 24, 32, 40, 48, 56, 64)


def packed_bytes(n_elements: int, bits: int) -> int:
    """Bytes of `n_elements` of Z_2^bits."""
    if bits not in WIDTHS:
        raise ValueError(f"a ring of {bits} bits does not pack into bytes; choose one of {WIDTHS}")
    return n_elements * bits // 8


def pack(x: torch.Tensor, bits: int) -> torch.Tensor:
    """The low `bits` bits of each element: uint8 (x.numel() bits / 8)."""
    n_bytes = packed_bytes(x.numel(), bits)
    if x.device.type == "meta":
        return torch.empty(n_bytes, dtype=torch.uint8, device="meta")
    if bits == 32:
        return x.to(torch.int32).contiguous().view(-1).view(torch.uint8)
    flat = x.contiguous().view(-1)
    if bits == 64:
        return flat.view(torch.uint8)
    return flat.view(torch.uint8).view(-1, 8)[:, : bits // 8].reshape(-1)


def unpack(packed: torch.Tensor, shape: Sequence[int], bits: int) -> torch.Tensor:
    """int64 of `shape` from `pack`'s bytes, in [0, 2^bits); with 64 bits, any int64."""
    if packed.device.type == "meta":
        return torch.empty(tuple(shape), dtype=torch.int64, device="meta")
    if bits in (32, 64) and packed.storage_offset() % 8:
        packed = packed.clone()  # a part of a message may start anywhere
    if bits == 64:
        return packed.view(torch.int64).view(tuple(shape))
    if bits == 32:
        return (packed.view(torch.int32).to(torch.int64) & 0xFFFFFFFF).view(tuple(shape))
    out = torch.zeros((packed.numel() * 8 // bits, 8), dtype=torch.uint8)
    out[:, : bits // 8] = packed.view(-1, bits // 8)
    return out.view(-1).view(torch.int64).view(tuple(shape))


def reduce(x: torch.Tensor, bits: int) -> torch.Tensor:
    """x mod 2^bits in [0, 2^bits); with 64 bits, x."""
    return x if bits == 64 else x & ((1 << bits) - 1)
