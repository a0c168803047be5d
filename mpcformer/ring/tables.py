"""The compiled functions of `tables.c`: looking numbers up in tables by keys, and sums of a table's rows by bucket.

`protocols.table` and `correlations.row_lookup` compute the same where `kernels.load` finds no compiled file.
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


class ByBucket(ctypes.Structure):
    """The arguments of sums by bucket, as tables.c declares them."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("parts", "groups", "rows", "width", "n_buckets")),
        *((name, ctypes.c_void_p) for name in ("factors", "buckets", "table", "out")),
    )


class TableKernels:
    """The compiled functions.

    Args:
        library: the file, loaded.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._look_up = library.mpcformer_tables_look_up
        self._look_up.argtypes = [ctypes.POINTER(LookUp)]
        self._by_bucket = library.mpcformer_tables_by_bucket
        self._by_bucket.argtypes = [ctypes.POINTER(ByBucket)]
        self._look_up.restype = self._by_bucket.restype = None

    def by_bucket(
        self, factors: torch.Tensor, buckets: torch.Tensor, table: torch.Tensor, n_buckets: int
    ) -> torch.Tensor:
        """Add up the rows of a table by bucket, each times its factor, over Z_2^32.

        Args:
            factors: int32 (K, groups, V), for K sums that differ by the factors alone.
            buckets: (groups, V), where each row counts, below n_buckets.
            table: int32 (V, H).
            n_buckets: how many buckets there are.

        Returns:
            int32 (K, n_buckets, H).

        Raises:
            ValueError: a tensor has another type or size, or a bucket is none.
        """
        (parts, groups, rows), width = factors.shape, table.size(1)
        fits = buckets.shape == (groups, rows) and table.size(0) == rows
        if not fits or factors.dtype != torch.int32 or table.dtype != torch.int32:
            shapes = [(x.dtype, tuple(x.shape)) for x in (factors, buckets, table)]
            raise ValueError(f"no sums by bucket of {shapes}")
        if rows and not 0 <= int(buckets.min()) <= int(buckets.max()) < n_buckets:
            raise ValueError(f"a bucket is none of {n_buckets}")
        arrays = factors.contiguous(), buckets.to(torch.int32).contiguous(), table.contiguous()
        out = torch.zeros((parts, n_buckets, width), dtype=torch.int32)
        pointers = (x.data_ptr() for x in (*arrays, out))
        self._by_bucket(ctypes.byref(ByBucket(parts, groups, rows, width, n_buckets, *pointers)))
        return out

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
