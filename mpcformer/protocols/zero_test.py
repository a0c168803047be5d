"""A test whether shared numbers are zero. Its shared result is zero or a key that neither owner knows."""

import torch

from mpcformer.correlations import Request
from mpcformer.correlations.zero_test import RESULT_WORDS, bytes_of
from mpcformer.protocols.cost import ProtocolCost, dealt, opening

WORD = 64


def request(n: int) -> Request:
    """Return the request for n numbers."""
    return Request("zero_test", ((n,),))


def cost(n: int) -> ProtocolCost:
    """Return the cost of testing n numbers with the opening of c, as `verdict` states it."""
    return opening(((n,), WORD)) + dealt(request(n))


def verdict(tensors: list[torch.Tensor], c: torch.Tensor) -> torch.Tensor:
    """Compute [d] over Z_2^64, two words each, from the opened c = x + r. Each d is zero if its x is, else uniform.

    Nothing opens d. Its shares are equal but for the sign if it is zero, so both owners derive the same key from them;
    `protocols.sealed` uses that.

    Ideal function: 0 where x = 0, elsewhere a fresh uniform block of 128 bits.
    Shapes: x (n,), c (n,), result (n, 2).
    Scale: none.
    Range and error: all of Z_2^64; a number that is not zero escapes with probability 2^-128.
    Cost with the opening of c: 1 round; 8 n bytes each way; 32768 n dealer bytes.
    Source: equality by tables of the bytes of the mask, after Ishai et al., TCC 2013; ours.
    """
    marks = tensors[-1]
    if c.device.type == "meta":
        return c[:, None].expand(-1, RESULT_WORDS)
    at = bytes_of(c)[..., None, None].expand(-1, -1, 1, RESULT_WORDS)
    return marks.gather(2, at).sum((1, 2))
