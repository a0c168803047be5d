"""The compiled functions of `windows.c`: comparisons with public thresholds, and functions with a window.

`protocols.comparison`, `protocols.window` and `correlations.window` compute the same with torch where `kernels.load`
finds no compiled file. All tensors are int64; those of whole values have one shape, and `contiguous` makes them lie in
one piece.
"""

import ctypes
from collections.abc import Sequence

import torch

N_LINE, N_SHARES, N_OUT = 5, 24, 24


def _structure(name: str, *fields: tuple[str, object]) -> type[ctypes.Structure]:
    """Make the type of a structure of windows.c."""
    return type(name, (ctypes.Structure,), {"_fields_": list(fields)})


def _numbers(names: str) -> list[tuple[str, object]]:
    return [(name, ctypes.c_int64) for name in names.split()]


def _pointers(names: str) -> list[tuple[str, object]]:
    return [(name, ctypes.c_void_p) for name in names.split()]


Pick = _structure(
    "Pick",
    *_numbers("n rank bits log_width bin_bits down"),
    *_pointers("c low_words high_words values slopes fine coarse value slope"),
)
Sum = _structure(
    "Sum",
    *_numbers("n rank bits down value_bits slope_bits below constant factor"),
    *_pointers("c r chosen value slope"),
    ("always", ctypes.c_void_p * N_LINE),
    ("masked", ctypes.c_void_p * N_LINE),
    *_pointers("counted above r_above top_above carry top out"),
)
Correct = _structure(
    "Correct",
    *_numbers("n bits bin_bits n_chunks n_inputs input_bits product_bits down value_bits slope_bits counted degree"),
    *_pointers("mask_products fine coarse"),
    ("share_0", ctypes.c_void_p * N_LINE),
    ("share_1", ctypes.c_void_p * N_SHARES),
    ("out", ctypes.c_void_p * N_OUT),
)


def _signed(number: int) -> int:
    """Return an integer modulo 2^64 as the structures hold it."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


class WindowKernels:
    """The compiled functions.

    Args:
        library: the file, loaded.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._inputs, self._reached = library.mpcformer_windows_inputs, library.mpcformer_windows_reached
        self._inputs.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, *[ctypes.c_int64] * 4]
        self._inputs.argtypes += [ctypes.c_void_p] * 6
        self._reached.argtypes = [*[ctypes.c_int64] * 7, *[ctypes.c_void_p] * 7]
        self._pick, self._sum = library.mpcformer_windows_pick, library.mpcformer_windows_sum
        self._correct = library.mpcformer_windows_correct
        for function in (self._pick, self._sum, self._correct):
            function.argtypes = [ctypes.c_void_p]
        for function in (self._inputs, self._reached, self._pick, self._sum, self._correct):
            function.restype = None

    def inputs(
        self,
        c: torch.Tensor,
        offsets: Sequence[int],
        words: torch.Tensor,
        top: torch.Tensor,
        masks: torch.Tensor,
        *,
        bits: int,
        input_bits: int,
        rank: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Do as `Comparisons.inputs` does; the second tensor has a bit for each threshold.

        Args:
            c, top, masks: (...), as there.
            offsets: the thresholds plus 2^(bits - 2).
            words: (n_chunks, ...).
            bits, input_bits, rank: as there.
        """
        c, words, top, masks = (x.contiguous() for x in (c, words, top, masks))
        at, found, local = torch.tensor(offsets), torch.empty_like(c), torch.empty_like(c)
        numbers = bits, words.size(0), input_bits, rank
        self._inputs(c.numel(), len(offsets), at.data_ptr(), *numbers, *_addresses(c, words, top, masks, found, local))
        return found, local

    def reached(
        self,
        opened: torch.Tensor,
        masks: torch.Tensor,
        products: Sequence[torch.Tensor],
        selectors: tuple[torch.Tensor, torch.Tensor],
        local: torch.Tensor,
        *,
        n_thresholds: int,
        n_inputs: int,
        input_bits: int,
        product_bits: int,
        rank: int,
    ) -> torch.Tensor:
        """Do as `Comparisons.reached` does: a bit for each threshold.

        Args:
            opened, masks, local: (...), as there.
            products: words of products, each (...).
            selectors: what each value of the inputs selects.
            n_thresholds, n_inputs, input_bits, product_bits, rank: as there.
        """
        whole = products[0].contiguous() if len(products) == 1 else torch.stack(list(products))
        opened, masks, local = (x.contiguous() for x in (opened, masks, local))
        out = torch.empty_like(opened)
        numbers = opened.numel(), n_thresholds, n_inputs, input_bits, product_bits, 64 // product_bits, rank
        self._reached(*numbers, *_addresses(opened, masks, whole, *selectors, local, out))
        return out

    def pick(
        self, c: torch.Tensor, words: torch.Tensor, tables: dict[str, torch.Tensor], **numbers: int
    ) -> list[torch.Tensor]:
        """Do as the functions' `picked` does.

        Args:
            c: the opened number (...).
            words: (2, ...).
            tables: values, and slopes for lines or fine and coarse for an exponential.
            numbers: rank, bits, log_width, bin_bits and down, as `Pick` has them.
        """
        c, words = c.contiguous(), words.contiguous()
        found = [torch.empty_like(c) for _ in range(2 if "slopes" in tables else 1)]
        out = dict(zip(("value", "slope"), (x.data_ptr() for x in found), strict=False))
        pointers = {name: table.data_ptr() for name, table in tables.items()}
        halves = {"low_words": words[0].data_ptr(), "high_words": words[1].data_ptr()}
        self._pick(ctypes.byref(Pick(n=c.numel(), c=c.data_ptr(), **halves, **pointers, **out, **numbers)))
        return found

    def sum(
        self,
        lines: tuple[list[torch.Tensor], list[torch.Tensor]],
        arrays: dict[str, torch.Tensor],
        **numbers: int,
    ) -> torch.Tensor:
        """Do as `Evaluation._combine` does.

        Args:
            lines: the dealer's products for the window, without and with the mask of its bit.
            arrays: the other arrays by the names in `Sum`.
            numbers: those in `Sum`, modulo 2^64.
        """
        kept = {name: array.contiguous() for name, array in arrays.items()}
        whole = [[x.contiguous() for x in line] for line in lines]
        out = torch.empty_like(kept["c"])
        always, masked = ((ctypes.c_void_p * N_LINE)(*_addresses(*line)) for line in whole)
        pointers = {name: array.data_ptr() for name, array in kept.items()}
        signed = {name: _signed(number) for name, number in numbers.items()}
        self._sum(
            ctypes.byref(Sum(n=out.numel(), always=always, masked=masked, out=out.data_ptr(), **pointers, **signed))
        )
        return out

    def correct(
        self,
        share_0: list[torch.Tensor],
        share_1: list[torch.Tensor],
        tables: dict[str, torch.Tensor],
        **numbers: int,
    ) -> list[torch.Tensor]:
        """Do as `Window.correct` does.

        Args:
            share_0, share_1: both draws.
            tables: mask_products, and fine and coarse for an exponential.
            numbers: those in `Correct`.
        """
        share_0, share_1 = ([x.contiguous() for x in shares] for shares in (share_0, share_1))
        out = [torch.empty_like(x) for x in share_1[len(share_0) :]]
        drawn = (ctypes.c_void_p * N_LINE)(*_addresses(*share_0))
        shares, results = (
            (ctypes.c_void_p * N_SHARES)(*_addresses(*share_1)),
            (ctypes.c_void_p * N_OUT)(*_addresses(*out)),
        )
        pointers = {name: table.data_ptr() for name, table in tables.items()}
        arguments = Correct(n=share_0[0].numel(), share_0=drawn, share_1=shares, out=results, **pointers, **numbers)
        self._correct(ctypes.byref(arguments))
        return out


def _addresses(*tensors: torch.Tensor) -> list[int]:
    return [x.data_ptr() for x in tensors]
