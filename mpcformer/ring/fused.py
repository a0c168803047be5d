"""Elementwise computations that make one pass over memory, however many steps they have.

Between two messages an owner adds corrections, biases and masks, shifts, and packs. As operations of torch each of
these reads and writes all elements. A `Fused` only notes them, and carries all of them out when a result is wanted:
with the compiled function of `fused.c`, or else one by one with torch, which gives the same bits.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

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


class StepArguments(ctypes.Structure):
    """A step, as fused.c declares it."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        ("number", ctypes.c_int64),
        ("at", ctypes.c_void_p),
        ("strides", ctypes.c_int64 * N_SIZES),
    )


class FusedArguments(ctypes.Structure):
    """All steps and results, as fused.c declares them."""

    _fields_ = (
        ("sizes", ctypes.c_int64 * N_SIZES),
        ("n_steps", ctypes.c_int64),
        ("bits", ctypes.c_int64),
        ("steps", ctypes.POINTER(StepArguments)),
        *((name, ctypes.c_void_p) for name in ("packed", "stored", "theirs", "opened")),
    )


@dataclass(frozen=True, repr=False)
class _Step:
    kind: int
    number: int = 0
    operand: Operand | None = None


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

    def _run(self, function: "CompiledFused", bits: int, **results: torch.Tensor) -> None:
        """Compute into `results`, which are named as in `FusedArguments`; of these `theirs` is read."""
        if function(self._arguments(bits, results)):
            raise ValueError(f"fused.c does not compute {tuple(self.shape)} with results of {bits} bits")

    def _by_torch(self) -> torch.Tensor:
        if self.device.type == "meta":
            return torch.empty(self.shape, dtype=torch.int64, device=self.device)
        hand = torch.zeros((), dtype=torch.int64)
        for step in self._steps:
            hand = _stepped(hand, step)
        return hand

    def _arguments(self, bits: int, results: Mapping[str, torch.Tensor]) -> FusedArguments:
        operands: list[torch.Tensor] = []
        for step in self._steps:
            if isinstance(step.operand, torch.Tensor):
                if step.operand.dtype != torch.int64:
                    raise ValueError(f"an operand is {step.operand.dtype}, not int64")
                operands.append(step.operand.expand(self.shape))
        sizes, strides = collapsed(self.shape, [operand.stride() for operand in operands])
        if len(sizes) > N_SIZES:
            operands = [operand.contiguous() for operand in operands]
            sizes, strides = collapsed(self.shape, [operand.stride() for operand in operands])
        missing = N_SIZES - len(sizes)
        steps, at = (StepArguments * len(self._steps))(), 0
        for arguments, step in zip(steps, self._steps, strict=True):
            arguments.kind, arguments.number = step.kind, step.number
            if isinstance(step.operand, PackedMatrix):
                packed, arguments.number = step.operand.packed, step.operand.bits
                if packed.numel() != packed_bytes(self.numel(), step.operand.bits) or not packed.is_contiguous():
                    raise ValueError(f"{packed.numel()} bytes are not {tuple(self.shape)} of {step.operand.bits} bits")
                arguments.at = packed.data_ptr()
            elif step.operand is not None:
                arguments.at = operands[at].data_ptr()
                arguments.strides[missing:] = strides[at]
                at += 1
        found = FusedArguments(n_steps=len(steps), bits=bits, steps=steps)
        found.sizes[:] = [*[1] * missing, *sizes]
        for name, tensor in results.items():
            setattr(found, name, tensor.data_ptr())
        # Copies live as long as the structure that points to them.
        found.operands = operands
        return found

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
    """The compiled function; it takes a `FusedArguments`, and returns 0 if it knows all steps and widths.

    Args:
        library: the file, loaded.

    Raises:
        AttributeError: the file has no such function.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._run = library.mpcformer_fused_run
        self._run.argtypes = [ctypes.POINTER(FusedArguments)]

    def __call__(self, arguments: FusedArguments) -> int:
        """Run; return 0, or 1 if there is no such step or width."""
        return int(self._run(ctypes.byref(arguments)))

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
