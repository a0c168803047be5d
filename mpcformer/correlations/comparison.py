"""What comparisons of an opened value with public thresholds take from the dealer; see `protocols.comparison`.

A comparison of the opened c with a threshold needs one borrow: whether a public d is below the low bits of the mask r.
Both are cut into chunks of CHUNK_BITS bits. For each chunk of r the dealer shares one word whose bit i tells whether
i < chunk. At its public d an owner reads its shares of "less" and "equal" from these words, for any number of
thresholds. The "less" bits of all chunks and the "equal" bits of all but the lowest give the borrow by one polynomial
over GF(2). All inputs of it but one are opened under masks, and the dealer shares the products of these masks that the
polynomial needs.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import torch

from mpcformer.ring.packing import WORD

CHUNK_BITS = 6
CHUNK_SIZE = 1 << CHUNK_BITS


@dataclass(frozen=True)
class Borrow:
    """The borrow of numbers of so many chunks.

    Args:
        n_chunks: 3 or 4.
    """

    n_chunks: int

    @property
    def n_inputs(self) -> int:
        """The number of opened inputs, in the order equal_n .. equal_1, less_(n - 1) .. less_0, for chunks 0 to n."""
        return 2 * (self.n_chunks - 1)

    @property
    def input_bits(self) -> int:
        """How many bits of a message, and of a mask, the inputs of one threshold take."""
        return {3: 4, 4: 8}[self.n_chunks]

    @property
    def product_bits(self) -> int:
        """How many bits of a word the products of one threshold's masks take."""
        return {3: 8, 4: 16}[self.n_chunks]

    @property
    def per_word(self) -> int:
        """For how many thresholds a word has products."""
        return WORD // self.product_bits

    @property
    def compared_bits(self) -> int:
        """How many bits are compared."""
        return self.n_chunks * CHUNK_BITS

    def early(self, bits: int) -> int:
        """Return up to how far below a threshold a value over Z_2^bits may count as having reached it."""
        return 1 << max(0, bits - 1 - self.compared_bits)

    @cached_property
    def terms(self) -> tuple[frozenset[int], ...]:
        """The inputs of each product of the polynomial: all higher chunks are equal, and this one is less."""
        n = self.n_chunks - 1
        return tuple(frozenset({*range(1 + i), n + i}) for i in range(n))

    @cached_property
    def monomials(self) -> list[frozenset[int]]:
        """The products of input masks that the borrow needs, smaller ones first."""
        found = {
            frozenset(part)
            for term in self.terms
            for size in range(2, len(term) + 1)
            for part in combinations(sorted(term), size)
        }
        return sorted(found, key=lambda part: (len(part), sorted(part)))

    @cached_property
    def mask_products(self) -> torch.Tensor:
        """The monomials, as bits, of each value of the input masks: (2^n_inputs,)."""
        values = range(1 << self.n_inputs)
        return torch.tensor(
            [sum(_contains(value, part) << n for n, part in enumerate(self.monomials)) for value in values]
        )

    @cached_property
    def selectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What each value of the opened inputs selects.

        (2^n_inputs,), with a bit for each mask (low bits) and each monomial that counts; and (2^n_inputs,), the
        constant.
        """
        parts = [frozenset({index}) for index in range(self.n_inputs)] + self.monomials
        chosen, constant = [], []
        for opened in range(1 << self.n_inputs):
            word = 0
            for n, part in enumerate(parts):
                # A monomial's coefficient: the sum over the terms that contain it of the other factors' opened bits.
                word |= (sum(_contains(opened, term - part) for term in self.terms if part <= term) & 1) << n
            chosen.append(word)
            constant.append(sum(_contains(opened, term) for term in self.terms) & 1)
        return torch.tensor(chosen), torch.tensor(constant)

    def low_bits(self, x: torch.Tensor, bits: int) -> torch.Tensor:
        """Return the bits of x below the top bit of Z_2^bits, cut or filled up to those that are compared."""
        spare = bits - 1 - self.compared_bits
        low = x & ((1 << (bits - 1)) - 1)
        return low >> spare if spare >= 0 else low << -spare

    def chunks(self, x: torch.Tensor, bits: int) -> torch.Tensor:
        """Return the chunks of x over Z_2^bits, the lowest first: (n_chunks, ...)."""
        low = self.low_bits(x, bits)
        return torch.stack([(low >> (CHUNK_BITS * j)) & (CHUNK_SIZE - 1) for j in range(self.n_chunks)])

    def words(self, r: torch.Tensor, bits: int) -> torch.Tensor:
        """Return for each chunk of a mask the word whose bit i tells whether i < chunk: (n_chunks, ...)."""
        chunks = self.chunks(r, bits)
        return torch.bitwise_left_shift(torch.ones_like(chunks), chunks) - 1

    def products(self, masks: torch.Tensor, n_thresholds: int) -> list[torch.Tensor]:
        """Return words with the products of the thresholds' input masks, `per_word` thresholds to a word."""
        found = []
        for first in range(0, n_thresholds, self.per_word):
            word = torch.zeros_like(masks)
            for i in range(first, min(first + self.per_word, n_thresholds)):
                inputs = (masks >> (self.input_bits * i)) & ((1 << self.n_inputs) - 1)
                word |= self.mask_products[inputs] << (self.product_bits * (i - first))
            found.append(word)
        return found

    def product_widths(self, n_thresholds: int) -> list[int]:
        """Return the width in bits of each of these words."""
        starts = range(0, n_thresholds, self.per_word)
        return [self.product_bits * min(self.per_word, n_thresholds - first) for first in starts]


def _contains(value: int, part: frozenset[int]) -> bool:
    return all(value >> index & 1 for index in part)
