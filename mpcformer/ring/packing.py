"""Ring elements on the wire: an element of Z_2^k, with k a multiple of 4, takes k / 8 bytes.

The elements lie in planes, each as wide as a machine word and little-endian. For 56 bits, for example, the low 32 bits
of all elements come first, then the next 16 bits of all, then the top 8. That way torch packs and unpacks whole words,
which is several times faster than byte by byte. If four bits are left, two elements share a byte of the last plane: the
first half of the elements has the low four bits of its bytes, and the second half the high ones.

In memory an element of Z_2^k is an int64 whose bits from k up mean nothing. Sums, products and matrix products of such
numbers are right modulo 2^k without a reduction. The compiled functions of `packing.c` do the same in one pass.
"""

import ctypes
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from mpcformer.ring.library import load_library

WORD = 64
NIBBLE = 4
PLANES = {
    4: (NIBBLE,),
    8: (8,),
    12: (8, NIBBLE),
    16: (16,),
    20: (16, NIBBLE),
    24: (16, 8),
    28: (16, 8, NIBBLE),
    32: (32,),
    36: (32, NIBBLE),
    40: (32, 8),
    44: (32, 8, NIBBLE),
    48: (32, 16),
    52: (32, 16, NIBBLE),
    56: (32, 16, 8),
    60: (32, 16, 8, NIBBLE),
    WORD: (WORD,),
}
WIDTHS = tuple(PLANES)
SIGNED = {8: torch.uint8, 16: torch.int16, 32: torch.int32, WORD: torch.int64}
UNSIGNED = {8: torch.uint8, 16: torch.uint16, 32: torch.uint32, WORD: torch.int64}


def packed_bytes(n_elements: int, bits: int) -> int:
    """Return the bytes that `n_elements` of Z_2^bits take.

    Raises:
        ValueError: elements of so many bits do not pack into bytes.
    """
    if bits not in WIDTHS:
        raise ValueError(f"a ring of {bits} bits does not pack into bytes; choose one of {WIDTHS}")
    return (n_elements * bits + NIBBLE) // 8


def packing_width(bits: int) -> int:
    """Return the smallest width that packs and has room for `bits`."""
    return next(width for width in WIDTHS if width >= bits)


class CompiledPacking:
    """The compiled functions. Tensors are int64 and uint8; widths are those of WIDTHS but WORD.

    Args:
        library: the compiled file, loaded.

    Raises:
        AttributeError: the file has no such functions.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._pack, self._unpack = library.mpcformer_packing_pack, library.mpcformer_packing_unpack
        self._pack.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p]
        self._unpack.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, *[ctypes.c_void_p] * 2]

    def pack(self, x: torch.Tensor, bits: int) -> torch.Tensor:
        """Do as `pack`."""
        x, out = x.contiguous(), torch.empty(packed_bytes(x.numel(), bits), dtype=torch.uint8)
        if x.dtype != torch.int64 or self._pack(x.data_ptr(), x.numel(), bits, out.data_ptr()):
            raise ValueError(f"packing.c does not pack {x.dtype} to {bits} bits")
        return out

    def unpack(
        self, packed: torch.Tensor, shape: Sequence[int], bits: int, added: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Do as `unpack`, or with `added` as `unpack_onto`."""
        packed, out = packed.contiguous(), torch.empty(tuple(shape), dtype=torch.int64)
        fits = packed.dtype == torch.uint8 and packed.numel() == packed_bytes(out.numel(), bits)
        if added is not None:
            added = added.contiguous()
            fits = fits and added.dtype == torch.int64 and added.shape == out.shape
        pointers = (None if added is None else added.data_ptr()), out.data_ptr()
        if not fits or self._unpack(packed.data_ptr(), out.numel(), bits, *pointers):
            raise ValueError(f"packing.c does not unpack {packed.numel()} bytes to {tuple(shape)} of {bits} bits")
        return out

    def are_right(self) -> bool:
        """Return whether they do the same as torch, for some numbers and all widths."""
        x = torch.arange(1, 78, dtype=torch.int64) * 0x1E3779B97F4A7C15
        for bits in WIDTHS[:-1]:
            packed = pack_by_torch(x, bits)
            numbers = unpack_by_torch(packed, x.shape, bits)
            both = self.unpack(packed, x.shape, bits, x)
            if not torch.equal(self.pack(x, bits), packed) or not torch.equal(both, reduce(numbers + x, bits)):
                return False
            if not torch.equal(self.unpack(packed, x.shape, bits), numbers):
                return False
        return True


@cache
def compiled() -> CompiledPacking | None:
    """Return the compiled functions, if there are any and they are right."""
    library, _ = load_library()
    try:
        # They are compiled for AVX2, which the processor may lack.
        found = CompiledPacking(library) if library is not None and library.mpcformer_kernels_level() else None
    except AttributeError:
        return None
    return found if found is not None and found.are_right() else None


def pack(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack the low `bits` bits of each element, int64 or int32: uint8 (x.numel() bits / 8,)."""
    n_bytes = packed_bytes(x.numel(), bits)
    if x.device.type == "meta":
        return torch.empty(n_bytes, dtype=torch.uint8, device="meta")
    if bits == WORD:
        return x.contiguous().view(-1).view(torch.uint8)
    fast = compiled() if x.dtype == torch.int64 else None
    return pack_by_torch(x, bits) if fast is None else fast.pack(x, bits)


def pack_by_torch(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Do as `pack` does for less than a word, without the compiled functions."""
    flat, out = x.contiguous().view(-1), torch.empty(packed_bytes(x.numel(), bits), dtype=torch.uint8)
    for low, width, part in _planes(x.numel(), bits):
        if width == NIBBLE:
            _pack_nibbles(flat, low, out[part])
            continue
        plane = (flat >> low if low else flat).to(SIGNED[width])
        out[part] = plane.view(torch.uint8)
    return out


def _pack_nibbles(flat: torch.Tensor, low: int, out: torch.Tensor) -> None:
    nibbles = (flat >> low).to(torch.uint8).bitwise_and_((1 << NIBBLE) - 1)
    n_bytes, n_high = out.numel(), flat.numel() - out.numel()
    out.copy_(nibbles[:n_bytes])
    out[:n_high].bitwise_or_(nibbles[n_bytes:] << NIBBLE)


def _unpacked_nibbles(plane: torch.Tensor, n_elements: int) -> torch.Tensor:
    numbers = torch.empty(n_elements, dtype=torch.int64)
    n_bytes = plane.numel()
    numbers[:n_bytes] = plane & ((1 << NIBBLE) - 1)
    numbers[n_bytes:] = plane[: n_elements - n_bytes] >> NIBBLE
    return numbers


def unpack(packed: torch.Tensor, shape: Sequence[int], bits: int) -> torch.Tensor:
    """Unpack bytes made by `pack`: int64 of `shape` in [0, 2^bits), or any int64 if `bits` is 64."""
    if packed.device.type == "meta":
        return torch.empty(tuple(shape), dtype=torch.int64, device="meta")
    if bits == WORD:  # the dealer does not pack such tensors: they may arrive as int64
        return (packed.clone() if packed.storage_offset() % 8 else packed).view(torch.int64).view(tuple(shape))
    fast = compiled()
    return unpack_by_torch(packed, shape, bits) if fast is None else fast.unpack(packed, shape, bits)


def unpack_onto(packed: torch.Tensor, x: torch.Tensor, bits: int) -> torch.Tensor:
    """Unpack bytes made by `pack` and add int64 x of the same shape: the sum, in [0, 2^bits) if that is not a word."""
    if x.device.type == "meta" or bits == WORD or (fast := compiled()) is None:
        return reduce(unpack(packed, x.shape, bits) + x, bits)
    return fast.unpack(packed, x.shape, bits, x)


@dataclass(frozen=True, repr=False)
class PackedMatrix:
    """Ring elements that are kept packed, because they are used one batch after the other and are many.

    Args:
        packed: the bytes that `pack` made.
        shape: the shape of the elements.
        bits: the width of their ring.
    """

    packed: torch.Tensor
    shape: tuple[int, ...]
    bits: int

    def unpacked(self) -> torch.Tensor:
        """Return the elements, as `unpack` does."""
        return unpack(self.packed, self.shape, self.bits)

    @property
    def operand(self) -> "Operand":
        """What may stand for it where a packed operand is allowed: words need not be packed."""
        return self.unpacked() if self.bits == WORD else self


# Numbers of which functions read each once: int64, or packed.
Operand = torch.Tensor | PackedMatrix


def unpacked(operand: Operand) -> torch.Tensor:
    """Return the numbers, int64."""
    return operand.unpacked() if isinstance(operand, PackedMatrix) else operand


def unpack_by_torch(packed: torch.Tensor, shape: Sequence[int], bits: int) -> torch.Tensor:
    """Do as `unpack` does for less than a word, without the compiled functions."""
    total: torch.Tensor | None = None
    n_elements = math.prod(shape)
    for low, width, part in _planes(n_elements, bits):
        plane = packed[part]
        if width == NIBBLE:
            nibbles = _unpacked_nibbles(plane, n_elements)
            total = nibbles if total is None else total.bitwise_or_(nibbles << low)
            continue
        if plane.storage_offset() % (width // 8):
            plane = plane.clone()  # a part of a message may start anywhere
        numbers = plane.view(UNSIGNED[width]).to(torch.int64)
        total = numbers if total is None else total.bitwise_or_(numbers << low)
    assert total is not None
    return total.view(tuple(shape))


def unpack_int32(packed: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return bytes that `pack` made of 32 bits an element as int32 of `shape`, a copy only if they must be moved."""
    return (packed.clone() if packed.storage_offset() % 4 else packed).view(torch.int32).view(tuple(shape))


def _planes(n_elements: int, bits: int) -> Iterator[tuple[int, int, slice]]:
    """Yield the lowest bit, the width and the position in the bytes of each plane."""
    low = at = 0
    for width in PLANES[bits]:
        end = at + packed_bytes(n_elements, width) if width > NIBBLE else at + (n_elements + 1) // 2
        yield low, width, slice(at, end)
        low, at = low + width, end


def reduce(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Return x mod 2^bits in [0, 2^bits), or x itself if `bits` is 64."""
    return x if bits == 64 else x & ((1 << bits) - 1)


def logical_shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Return x >> bits with zeros shifted in; int64 of any shape, 1 <= bits <= 63."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
