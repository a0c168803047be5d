"""Comparisons with public thresholds of a value that is opened under a mask.

The opened c = x + 2^(k-2) + r mod 2^k is public. A comparison of x with a threshold therefore compares public numbers
with r: it needs the top bit of r and one borrow, which the dealer's words make cheap (see `correlations.comparison`).
A comparison costs a few bits on the wire for each element instead of words of the ring, and all thresholds share the
dealer's words.
Source: the borrow of a masked comparison as in Damgard et al., TCC 2006, with a dealer; the tables of chunks, which all
thresholds share, are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mpcformer.correlations.comparison import CHUNK_BITS, CHUNK_SIZE, Borrow
from mpcformer.ring.kernels import load


@dataclass(repr=False)
class Comparisons:
    """This owner's part of the comparisons of one value with its thresholds.

    Args:
        borrow: how many chunks are compared.
        thresholds: integers at the scale of the value, in rising order.
        bits: the width k of the ring in which the value is opened.
        rank: of the owner.
        input_masks: the XOR shares of the masks of the inputs.
        words: the XOR shares of the words of the mask's chunks, (n_chunks, ...).
        products: the XOR shares of the products of input masks.
        top: its lowest bit is an XOR share of the top bit of the mask.
    """

    borrow: Borrow
    thresholds: Sequence[int]
    bits: int
    rank: int
    input_masks: torch.Tensor
    words: torch.Tensor
    products: Sequence[torch.Tensor]
    top: torch.Tensor

    def inputs(self, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return this owner's shares of the borrows' inputs under their masks, and the bits' local parts. Local.

        Args:
            c: the opened number, in [0, 2^bits).

        Returns:
            The inputs of all thresholds, `input_bits` for each; and a bit for each threshold.
        """
        kernels = load()[0] if c.device.type == "cpu" else None
        if kernels is None:
            return self.inputs_by_torch(c)
        offsets = [t + (1 << (self.bits - 2)) for t in self.thresholds]
        numbers = {"bits": self.bits, "input_bits": self.borrow.input_bits, "rank": self.rank}
        return kernels.windows.inputs(c, offsets, self.words, self.top, self.input_masks, **numbers)

    def inputs_by_torch(self, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Do as `inputs` does, without the compiled functions."""
        borrow, bits, first = self.borrow, self.bits, int(self.rank == 0)
        n, shifted = borrow.n_chunks, [(word << 1) | first for word in self.words]
        inputs, local = torch.zeros_like(c), torch.zeros_like(c)
        for i, t in enumerate(self.thresholds):
            d = (c - (t + (1 << (bits - 2)))) & ((1 << bits) - 1)
            low = borrow.low_bits(d, bits)
            less, equal = [], []
            for j in range(n):
                place = (low >> (CHUNK_BITS * j)) & (CHUNK_SIZE - 1)
                less.append((self.words[j] >> place) & 1)
                # [place = chunk] = [place - 1 < chunk] - [place < chunk]
                equal.append(((shifted[j] >> place) & 1) ^ less[j])
            for at, bit in enumerate((*equal[:0:-1], *less[-2::-1])):
                inputs |= bit << (borrow.input_bits * i + at)
            own = less[-1] ^ (self.top & 1)
            local |= (own ^ 1 ^ (d >> (bits - 1)) if first else own) << i
        return inputs ^ self.input_masks, local

    def reached(self, opened: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
        """Return this owner's XOR share of whether x reaches each threshold, a bit for each. Local.

        Args:
            opened: the opened inputs, in [0, 2^width).
            local: from `inputs`.
        """
        borrow = self.borrow
        kernels = load()[0] if opened.device.type == "cpu" else None
        if kernels is None:
            return self.reached_by_torch(opened, local)
        return kernels.windows.reached(
            opened,
            self.input_masks,
            self.products,
            borrow.selectors,
            local,
            n_thresholds=len(self.thresholds),
            n_inputs=borrow.n_inputs,
            input_bits=borrow.input_bits,
            product_bits=borrow.product_bits,
            rank=self.rank,
        )

    def reached_by_torch(self, opened: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
        """Do as `reached` does, without the compiled functions."""
        return sum((self._borrow(opened, i) << i for i in range(len(self.thresholds))), torch.zeros_like(local)) ^ local

    def _borrow(self, opened: torch.Tensor, i: int) -> torch.Tensor:
        """Compute this owner's share of the borrow's polynomial for threshold i."""
        borrow = self.borrow
        n, per_word = borrow.n_inputs, borrow.per_word
        value = (opened >> (borrow.input_bits * i)) & ((1 << n) - 1)
        masks = (self.input_masks >> (borrow.input_bits * i)) & ((1 << n) - 1)
        products = self.products[i // per_word] >> (borrow.product_bits * (i % per_word))
        if value.device.type == "meta":
            return value
        selected, constant = borrow.selectors
        word = (masks | ((products & ((1 << borrow.product_bits) - 1)) << n)) & selected[value]
        for shift in (16, 8, 4, 2, 1):
            word = word ^ (word >> shift)
        bit = word & 1
        return bit ^ constant[value] if self.rank == 0 else bit
