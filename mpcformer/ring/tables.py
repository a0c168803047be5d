"""The compiled function of `tables.c`: looking numbers up in tables by keys, in one pass.

`protocols.table` computes the same with torch where `kernels.load` finds no compiled file.
"""

import ctypes
from collections.abc import Sequence

import torch

POWERS = ("one", "low", "squared")


class LookUp(ctypes.Structure):
    """The arguments, as tables.c declares them."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "n", "n_marks")),
        *((name, ctypes.c_void_p) for name in ("first", "marks", "k", "x", *POWERS)),
        *((f"tag_{name}", ctypes.c_void_p) for name in POWERS),
        *((name, ctypes.c_void_p) for name in ("out_marks", "out", "out_tags")),
    )


class TableKernels:
    """The compiled function.

    Args:
        library: the file, loaded.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._look_up = library.mpcformer_tables_look_up
        self._look_up.argtypes = [ctypes.POINTER(LookUp)]
        self._look_up.restype = None

    def look_up(
        self,
        vectors: torch.Tensor,
        first: torch.Tensor,
        marks: Sequence[torch.Tensor],
        coefficients: torch.Tensor | None = None,
        x: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Do as `protocols.table.look_up_by_torch`, which explains the arguments.

        Raises:
            ValueError: a tensor has another type or size.
        """
        count, rows, n = vectors.shape
        public = torch.stack(list(marks))
        arrays = {"first": first.contiguous(), "marks": _twice(public)}
        shapes = {"first": (rows,), "marks": (len(marks), 2 * n)}
        if coefficients is not None and x is not None:
            arrays |= {"k": _twice(coefficients), "x": x.contiguous()}
            shapes |= {"k": (len(POWERS), 2 * n), "x": (rows,)}
        powers = (*POWERS, *(f"tag_{name}" for name in POWERS))[: count if coefficients is not None else 1]
        whole = vectors.contiguous()
        arrays |= dict(zip(powers, whole, strict=False))
        shapes |= dict.fromkeys(powers, (rows, n))
        for name, array in arrays.items():
            if array.dtype != torch.int64 or tuple(array.shape) != shapes[name]:
                raise ValueError(f"{name} of {array.dtype} {tuple(array.shape)} does not fit {tuple(vectors.shape)}")
        out_marks = torch.empty((len(marks), rows), dtype=torch.int64)
        out, out_tags = torch.empty(rows, dtype=torch.int64), torch.empty(rows, dtype=torch.int64)
        results = {"out_marks": out_marks, "out": out, "out_tags": out_tags}
        pointers = {name: array.data_ptr() for name, array in (arrays | results).items()}
        self._look_up(ctypes.byref(LookUp(rows=rows, n=n, n_marks=len(marks), **pointers)))
        if coefficients is None:
            return list(out_marks)
        return [out, *out_marks, *([out_tags] if count > len(POWERS) else [])]


def _twice(tables: torch.Tensor) -> torch.Tensor:
    """Return each table from its last number to its first, twice: a turned table is a piece of that."""
    return tables.flip(1).repeat(1, 2)
