"""The compiled functions of `lifting.c`: what follows the opening of a lifted mask, and the dealer's corrections.

`protocols.lifted` and `correlations.lifted` compute the same with torch where `kernels.load` finds no compiled file.
"""

import ctypes
from collections.abc import Sequence

import torch

from mpcformer.ring.packing import Operand, PackedMatrix, packed_bytes, unpacked

USES = {"value": 0, "square": 1, "length": 2, "times": 3}
# The arrays that may be packed, and those of rows that are there for a product with a factor.
CORRECTED, OF_FACTORS = ("carry", "m", "rm", "squares", "rb", "mb", "rn"), ("factor", "eta", "wrapped")
MASKS = ("r_0", "r_1", "beta_0", "beta_1")
SHARES = ("carry", "m", "rm", "square", "b", "n", "rb", "mb", "rn")
# Whether the dealer shares squares: none, of each element, or summed over a row.
SQUARES = {"": 0, "elements": 1, "rows": 2}


class Lift(ctypes.Structure):
    """The arguments of `mpcformer_lifting_open`, as lifting.c declares them."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "width", "bits", "lift", "rank", "offset", "down")),
        *((name, ctypes.c_void_p) for name in ("c", "r", *CORRECTED)),
        *((f"{name}_bits", ctypes.c_int64) for name in CORRECTED),
        *((name, ctypes.c_void_p) for name in (*OF_FACTORS, "out")),
    )


class LiftCorrection(ctypes.Structure):
    """The arguments of `mpcformer_lifting_correct`, as lifting.c declares them."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "width", "bits", "squares")),
        *((name, ctypes.c_void_p) for name in MASKS),
        *((name, ctypes.c_void_p) for name in SHARES),
        *((f"out_{name}", ctypes.c_void_p) for name in SHARES),
    )


class LiftKernels:
    """The compiled functions.

    Args:
        library: the file, loaded.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._open, self._correct = library.mpcformer_lifting_open, library.mpcformer_lifting_correct
        self._open.argtypes = [ctypes.c_int, ctypes.POINTER(Lift)]
        self._correct.argtypes = [ctypes.POINTER(LiftCorrection)]
        self._correct.restype = None

    def opened(self, use: str, *, arrays: dict[str, Operand], **numbers: int) -> torch.Tensor:
        """Compute what follows the opening of a lifted mask, as `protocols.lifted.Opened` does.

        Args:
            use: one of USES.
            arrays: int64 tensors by the names in `Lift`; those of whole values are shaped like c (..., width). Those
                in CORRECTED may be packed.
            numbers: bits, lift, rank, offset and down, as `Lift` has them.

        Raises:
            ValueError: a tensor has another type or size.
        """
        c = unpacked(arrays["c"])
        rows, width = _rows_of(c)
        of_rows = {*OF_FACTORS} | ({"squares"} if use == "length" else set())
        kept, pointers = [], {}
        for name, array in arrays.items():
            n_elements = rows if name in of_rows else rows * width
            if isinstance(array, PackedMatrix):
                array = array.operand if name in CORRECTED and name not in of_rows else array.unpacked()
            if isinstance(array, PackedMatrix):
                tensor, numbers[f"{name}_bits"] = array.packed.contiguous(), array.bits
                if tensor.dtype != torch.uint8 or tensor.numel() != packed_bytes(n_elements, array.bits):
                    raise ValueError(f"{name} of {tensor.numel()} bytes does not fit c of {tuple(c.shape)}")
            else:
                tensor = array.contiguous()
                _check(name, tensor, n_elements, c)
            kept.append(tensor)
            pointers[name] = tensor.data_ptr()
        out = torch.empty((*c.shape[:-1], 1) if use == "length" else c.shape, dtype=torch.int64)
        arguments = Lift(rows=rows, width=width, out=out.data_ptr(), **numbers, **pointers)
        if self._open(USES[use], ctypes.byref(arguments)):
            raise ValueError(f"lifting.c has no {use}")
        return out

    def correct(
        self, masks: Sequence[torch.Tensor], shares: dict[str, torch.Tensor], *, bits: int, squares: str
    ) -> list[torch.Tensor]:
        """Compute the dealer's corrections of a lifted mask, as `correlations.lifted.Lifted.correct` does.

        Args:
            masks: int64 tensors in the order of MASKS, all four or the first two.
            shares: rank 1's shares by the names in SHARES, in that order.
            bits: the width of the small ring.
            squares: a key of SQUARES.

        Returns:
            The corrections in the order of the shares.

        Raises:
            ValueError: a tensor has another type or size.
        """
        rows, width = _rows_of(masks[0])
        of_rows = {"beta_0", "beta_1", "b", "n"} | ({"square"} if squares == "rows" else set())
        whole = {name: x.contiguous() for name, x in (*zip(MASKS, masks, strict=False), *shares.items())}
        for name, tensor in whole.items():
            _check(name, tensor, rows if name in of_rows else rows * width, masks[0])
        found = {name: torch.empty_like(whole[name]) for name in shares}
        pointers = {name: tensor.data_ptr() for name, tensor in whole.items()}
        pointers |= {f"out_{name}": tensor.data_ptr() for name, tensor in found.items()}
        self._correct(ctypes.byref(LiftCorrection(rows, width, bits, SQUARES[squares], **pointers)))
        return list(found.values())


def _rows_of(x: torch.Tensor) -> tuple[int, int]:
    width = x.size(-1) if x.dim() else 1
    return (x.numel() // width if width else 0), width


def _check(name: str, tensor: torch.Tensor, n_elements: int, whole: torch.Tensor) -> None:
    if tensor.dtype != torch.int64 or tensor.numel() != n_elements:
        raise ValueError(f"{name} of {tensor.dtype} {tuple(tensor.shape)} does not fit c of {tuple(whole.shape)}")
