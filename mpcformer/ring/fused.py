"""Elementwise computations that make one pass over memory, however many steps they have.

Between two messages an owner adds corrections, biases and masks, shifts, and packs. As operations of torch each of
these reads and writes all elements. A `Fused` only notes them, and carries all of them out when a result is wanted:
with the compiled function of `fused.c`, or else one by one with torch, which gives the same bits.
"""

import ctypes
import struct
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple, TypeGuard

import torch

from mpcformer.ring.library import load_library
from mpcformer.ring.packing import (
    WIDTHS,
    WORD,
    Operand,
    PackedMatrix,
    pack,
    pack_by_torch,
    packed_bytes,
    reduce,
    unpack_by_torch,
    unpack_onto,
)

# The kinds of steps, as fused.c numbers them.
SET, ADD, SUBTRACT, MULTIPLY, SET_PACKED, ADD_PACKED, ADD_NUMBER, SHIFT = range(8)
N_SIZES = 4
# The words before the steps in the structure of fused.c, and those of each step.
N_WORDS, N_STEP_WORDS = N_SIZES + 6, N_SIZES + 3
# The strides of an operand that is not there, and of one that lies in memory as the result does.
NO_STRIDES, IN_ORDER = (0,) * N_SIZES, (0, 0, 0, 1)
# So many ways in which operands lie in memory are remembered: several times those of a model.
KEPT_LAYOUTS = 1024


class _Step(NamedTuple):
    kind: int
    number: int = 0
    operand: Operand | None = None

    def __repr__(self) -> str:
        return f"_Step(kind={self.kind})"


class Fused:
    """A computation modulo 2^64 on the elements of int64 tensors, which is carried out when a result is wanted.

    Operands must not change before that. Those of other shapes broadcast to the shape of the first.

    Args:
        first: what the computation begins with, int64 or packed.
    """

    __slots__ = ("_steps", "device", "shape")

    def __init__(self, first: Operand) -> None:
        first = first.operand if isinstance(first, PackedMatrix) else first
        self.shape = torch.Size(first.shape)
        is_packed = isinstance(first, PackedMatrix)
        self.device = first.packed.device if isinstance(first, PackedMatrix) else first.device
        self._steps: tuple[_Step, ...] = (_Step(SET_PACKED if is_packed else SET, 0, first),)

    def numel(self) -> int:
        """Return the number of elements."""
        return self.shape.numel()

    def __add__(self, other: "Operand | int") -> "Fused":
        """Add an operand or a number. A packed operand has all of the shape."""
        if isinstance(other, int):
            return self._then(_Step(ADD_NUMBER, other)) if other else self
        other = other.operand if isinstance(other, PackedMatrix) else other
        return self._then(_Step(ADD_PACKED if isinstance(other, PackedMatrix) else ADD, 0, other))

    def __sub__(self, other: torch.Tensor) -> "Fused":
        """Subtract a tensor."""
        return self._then(_Step(SUBTRACT, 0, other))

    def __mul__(self, other: torch.Tensor) -> "Fused":
        """Multiply by a tensor."""
        return self._then(_Step(MULTIPLY, 0, other))

    def __rshift__(self, bits: int) -> "Fused":
        """Shift right, with the sign."""
        return self._then(_Step(SHIFT, bits)) if bits else self

    def __lshift__(self, bits: int) -> "Fused":
        """Shift left."""
        return self >> -bits

    def plus(self, other: torch.Tensor, down: int) -> "Fused":
        """Add a tensor that is shifted right by `down` bits before, or left if that is negative."""
        return self._then(_Step(ADD, down, other))

    def minus(self, other: torch.Tensor, down: int) -> "Fused":
        """Subtract a tensor that is shifted right by `down` bits before, or left if that is negative."""
        return self._then(_Step(SUBTRACT, down, other))

    def _then(self, step: _Step) -> "Fused":
        found = Fused.__new__(Fused)
        found.shape, found.device, found._steps = self.shape, self.device, (*self._steps, step)
        return found

    # ---- results ----------------------------------------------------------------------------------------------------

    def computed(self) -> torch.Tensor:
        """Return the elements, int64."""
        if (function := self._function()) is None:
            return self._by_torch()
        elements = self._int64()
        self._run(function, WORD, stored=elements)
        return elements

    def packed(self, bits: int) -> torch.Tensor:
        """Return the elements packed to `bits` bits, as `packing.pack` does it."""
        function = self._function()
        if function is None or bits == WORD:
            return pack(self.computed(), bits)
        message = self._bytes(bits)
        self._run(function, bits, packed=message)
        return message

    def packed_and_computed(self, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both at once."""
        function = self._function()
        if function is None or bits == WORD:
            elements = self.computed()
            return pack(elements, bits), elements
        message, elements = self._bytes(bits), self._int64()
        self._run(function, bits, packed=message, stored=elements)
        return message, elements

    def packed_and_opened(self, bits: int, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the elements packed, and their sum with the packed `theirs`, in [0, 2^bits) if that is not a word.

        Raises:
            ValueError: `theirs` has another size.
        """
        self._check_size(theirs, bits)
        function = self._function()
        if function is None or bits == WORD:
            elements = self.computed()
            return pack(elements, bits), unpack_onto(theirs, elements, bits)
        message, opened = self._bytes(bits), self._int64()
        self._run(function, bits, packed=message, theirs=theirs.contiguous(), opened=opened)
        return message, opened

    def opened(self, bits: int, theirs: torch.Tensor) -> torch.Tensor:
        """Return the sum with the packed `theirs`, in [0, 2^bits) if that is not a word.

        Raises:
            ValueError: `theirs` has another size.
        """
        self._check_size(theirs, bits)
        function = self._function()
        if function is None or bits == WORD:
            return unpack_onto(theirs, self.computed(), bits)
        opened = self._int64()
        self._run(function, bits, theirs=theirs.contiguous(), opened=opened)
        return opened

    def _int64(self) -> torch.Tensor:
        return torch.empty(self.shape, dtype=torch.int64)

    def _bytes(self, bits: int) -> torch.Tensor:
        return torch.empty(packed_bytes(self.numel(), bits), dtype=torch.uint8)

    def _check_size(self, theirs: torch.Tensor, bits: int) -> None:
        n_bytes = packed_bytes(self.numel(), bits)
        if theirs.dtype == torch.uint8 and theirs.numel() != n_bytes:
            raise ValueError(f"{theirs.numel()} bytes are not {tuple(self.shape)} of {bits} bits, which are {n_bytes}")

    def _function(self) -> "CompiledFused | None":
        """Return the compiled function, if it is of use here: a plan has no numbers."""
        return None if self.device.type == "meta" else compiled()

    def _run(
        self,
        function: "CompiledFused",
        bits: int,
        *,
        packed: torch.Tensor | None = None,
        stored: torch.Tensor | None = None,
        theirs: torch.Tensor | None = None,
        opened: torch.Tensor | None = None,
    ) -> None:
        """Compute into the tensors that are given, which fused.c explains; of these `theirs` is read."""
        sizes, strides, operands = self._layout()
        words = [*sizes, len(self._steps), bits]
        words += [0 if each is None else each.data_ptr() for each in (packed, stored, theirs, opened)]
        for step, operand, own in zip(self._steps, operands, strides, strict=True):
            if isinstance(operand, PackedMatrix):
                at = operand.packed
                if at.numel() != packed_bytes(self.numel(), operand.bits) or not at.is_contiguous():
                    raise ValueError(f"{at.numel()} bytes are not {tuple(self.shape)} of {operand.bits} bits")
                words += (step.kind, operand.bits, at.data_ptr(), *own)
            else:
                words += (step.kind, step.number, 0 if operand is None else operand.data_ptr(), *own)
        if function(struct.pack(f"{len(words)}q", *words)):
            raise ValueError(f"fused.c does not compute {tuple(self.shape)} with results of {bits} bits")

    def _by_torch(self) -> torch.Tensor:
        if self.device.type == "meta":
            return torch.empty(self.shape, dtype=torch.int64, device=self.device)
        hand = torch.zeros((), dtype=torch.int64)
        for step in self._steps:
            hand = _stepped(hand, step)
        return hand

    def _layout(self) -> tuple[Sequence[int], Sequence[Sequence[int]], list[Operand | None]]:
        """Return N_SIZES sizes, and each step's strides and operand; operands that do not fit are copied."""
        operands, in_order = [step.operand for step in self._steps], True
        for operand in operands:
            if isinstance(operand, torch.Tensor):
                if operand.dtype != torch.int64:
                    raise ValueError(f"an operand is {operand.dtype}, not int64")
                in_order = in_order and operand.shape == self.shape and operand.is_contiguous()
        if in_order:
            strides = [IN_ORDER if isinstance(each, torch.Tensor) else NO_STRIDES for each in operands]
            return (1, 1, 1, self.numel()), strides, operands
        operands = [each.expand(self.shape) if _is_other(each, self.shape) else each for each in operands]
        found = _collapsed(self.shape, _strides(operands))
        if found is None:
            operands = [each.contiguous() if isinstance(each, torch.Tensor) else each for each in operands]
            found = _collapsed(self.shape, _strides(operands))
            assert found is not None, "tensors in order have one size"
        return *found, operands

    def __repr__(self) -> str:
        return f"Fused({tuple(self.shape)}, {len(self._steps)} steps)"


def _stepped(hand: torch.Tensor, step: _Step) -> torch.Tensor:
    operand, number = step.operand, step.number
    if operand is None:
        return hand + number if step.kind == ADD_NUMBER else _shifted(hand, number)
    if isinstance(operand, PackedMatrix):
        return operand.unpacked() if step.kind == SET_PACKED else hand + operand.unpacked()
    if step.kind == MULTIPLY:
        return hand * operand
    operand = _shifted(operand, number)
    return operand if step.kind == SET else hand + operand if step.kind == ADD else hand - operand


def _shifted(x: torch.Tensor, down: int) -> torch.Tensor:
    if not down:
        return x
    return x >> down if down > 0 else x << -down


def _is_other(operand: Operand | None, shape: torch.Size) -> TypeGuard[torch.Tensor]:
    """Return whether this is a tensor of another shape."""
    return isinstance(operand, torch.Tensor) and operand.shape != shape


def _strides(operands: Sequence[Operand | None]) -> tuple[tuple[int, ...], ...]:
    """Return the strides of each operand, or none."""
    return tuple(each.stride() if isinstance(each, torch.Tensor) else () for each in operands)


@lru_cache(KEPT_LAYOUTS)
def _collapsed(
    shape: tuple[int, ...], strides: tuple[tuple[int, ...], ...]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]] | None:
    """Do as `collapsed`, with N_SIZES sizes and strides; None if there are more. Operands without strides get none."""
    sizes, found = collapsed(shape, [own for own in strides if own])
    missing = N_SIZES - len(sizes)
    if missing < 0:
        return None
    left = iter(found)
    padded = [(*[0] * missing, *next(left)) if own else NO_STRIDES for own in strides]
    return (*[1] * missing, *sizes), padded


def collapsed(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Join dimensions that all operands pass over in the same steps.

    Args:
        shape: of the elements.
        strides: of each operand, for each dimension.

    Returns:
        The sizes that are left, and each operand's strides for them.
    """
    sizes: list[int] = []
    found: list[list[int]] = [[] for _ in strides]
    for d in reversed(range(len(shape))):
        if shape[d] == 1:
            continue
        if sizes and all(own[d] == mine[0] * sizes[0] for own, mine in zip(strides, found, strict=True)):
            sizes[0] *= shape[d]
            continue
        sizes.insert(0, shape[d])
        for own, mine in zip(strides, found, strict=True):
            mine.insert(0, own[d])
    return sizes, found


class CompiledFused:
    """The compiled function; it takes the words of a `Fused` of fused.c, and returns 0 if it knows steps and widths.

    Args:
        library: the file, loaded.

    Raises:
        AttributeError: the file has no such function.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._run = library.mpcformer_fused_run
        self._run.argtypes = [ctypes.c_char_p]

    def __call__(self, arguments: bytes) -> int:
        """Run; return 0, or 1 if there is no such step or width."""
        return int(self._run(arguments))

    def are_right(self) -> bool:
        """Return whether all kinds of steps and widths give what torch gives, for some numbers."""
        x = torch.arange(1, 16, dtype=torch.int64).view(5, 3) * 0x1E3779B97F4A7C15
        row, column = x[0], x[:, :1]
        for bits in WIDTHS[:-1]:
            message = pack_by_torch(x, bits)
            packed = PackedMatrix(message, (5, 3), bits)
            computation = ((Fused(packed) + packed + row) * x >> 3) + 7 - column
            computation = (computation.plus(x, 5) << 1).minus(x.t().reshape(3, 5).t(), -2)
            expected = computation._by_torch()
            own, elements, opened = computation._bytes(bits), torch.empty_like(x), torch.empty_like(x)
            computation._run(self, bits, packed=own, stored=elements, theirs=message, opened=opened)
            both = reduce(unpack_by_torch(message, (5, 3), bits) + expected, bits)
            right = zip((own, elements, opened), (pack_by_torch(expected, bits), expected, both), strict=True)
            if not all(torch.equal(found, wanted) for found, wanted in right):
                return False
        return True


@cache
def compiled() -> CompiledFused | None:
    """Return the compiled function, if there is one and it is right."""
    library, _ = load_library()
    try:
        # It is compiled for AVX2, which the processor may lack.
        found = CompiledFused(library) if library is not None and library.mpcformer_kernels_level() else None
    except AttributeError:
        return None
    return found if found is not None and found.are_right() else None
