"""Numbers that the data owner can read only if a shared block of 128 bits is zero; the model owner is told nothing.

The model owner encrypts under a key that it derives from its share of the block. The data owner derives its own key
from minus its share. If the block is zero, these are equal. If it is uniform, the model owner's key is uniform to the
data owner, and what it gets is pseudorandom.
"""

import torch

from mpcformer.protocols.cost import ProtocolCost, message
from mpcformer.protocols.party import DATA_OWNER, Half, HalfShape
from mpcformer.ring.random import BLOCK_WORDS, Stream, derive_key, key_of

# The words of a tag, by which the data owner knows whether it has the right key.
TAG_WORDS, WORD = BLOCK_WORDS, 64


def shapes(n: int, n_numbers: int, bits: int) -> list[HalfShape]:
    """Return the shapes of the message: a tag for each of n rows, and the encrypted numbers (n, n_numbers)."""
    return [((n, TAG_WORDS), WORD), ((n, n_numbers), bits)]


def cost(n: int, n_numbers: int, bits: int) -> ProtocolCost:
    """Return the cost of sealed numbers, as `seal` states it."""
    return message(DATA_OWNER, *shapes(n, n_numbers, bits))


def seal(block: torch.Tensor, numbers: torch.Tensor, bits: int) -> list[Half]:
    """Encrypt numbers at the model owner.

    Ideal function: the data owner learns whether the block is zero, and if it is, the numbers.
    Shapes: block (n, 2), this owner's shares over Z_2^64; numbers (n, m).
    Scale: any.
    Range and error: all of Z_2^k. A block that is not zero opens with probability 2^-128.
    Cost for n rows of m numbers over Z_2^k: 1 round; 16 n + k n m / 8 bytes to the data owner.
    Source: conditional disclosure of secrets (Gertner et al., STOC 1998) from the zero test; ours.
    """
    tags, pads = _derived(block, numbers.size(1))
    return [(tags, WORD), (numbers + pads, bits)]


def unseal(block: torch.Tensor, tags: torch.Tensor, sealed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Decrypt at the data owner. What is done does not depend on whether the key is right.

    Args:
        block: this owner's shares, (n, 2).
        tags, sealed: what `seal` sent.

    Returns:
        Bool (n,), where the key was right; and the numbers (n, m), random ones in all other rows. Bits of a number from
        the width of its ring up mean nothing.
    """
    expected, pads = _derived(-block, sealed.size(1))
    return (tags == expected).all(1), sealed - pads


def _derived(keys: torch.Tensor, n_numbers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tags (n, 2) and pads (n, n_numbers) of keys (n, 2)."""
    n = keys.size(0)
    if keys.device.type == "meta":
        return keys, keys[:, :1].expand(n, n_numbers)
    tags, pads = torch.empty(n, TAG_WORDS, dtype=torch.int64), torch.empty(n, n_numbers, dtype=torch.int64)
    for row, words in enumerate(keys):
        key = key_of(words)
        tags[row] = Stream(derive_key(key, "tag")).int64((TAG_WORDS,))
        pads[row] = Stream(derive_key(key, "numbers")).int64((n_numbers,))
    return tags, pads
