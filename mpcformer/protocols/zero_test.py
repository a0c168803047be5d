"""A test whether shared numbers are zero. It tells this one bit of each number and nothing else."""

import torch

from mpcformer.correlations import Request
from mpcformer.correlations.zero_test import bytes_of
from mpcformer.protocols.cost import ProtocolCost, dealt, opening

WORD = 64


def request(n: int) -> Request:
    """Return the request for n numbers."""
    return Request("zero_test", ((n,),))


def cost(n: int) -> ProtocolCost:
    """Return the cost of testing n numbers with both openings, as `verdict` states it."""
    words = (n,), WORD
    return opening(words) + opening(words) + dealt(request(n))


def verdict(tensors: list[torch.Tensor], c: torch.Tensor) -> torch.Tensor:
    """Compute [d] over Z_2^64 from the opened c = x + r. Each d is zero if its x is, else uniform.

    Ideal function: 0 where x = 0, elsewhere a fresh uniform number.
    Shapes: x (n,), c (n,), result (n,).
    Scale: none.
    Range and error: all of Z_2^64; a number that is not zero escapes with probability 2^-64.
    Cost with the openings of c and of the result: 2 rounds; 16 n bytes each way; 16384 n dealer bytes.
    Source: equality by tables of the bytes of the mask, after Ishai et al., TCC 2013; ours.
    """
    marks = tensors[1]
    if c.device.type == "meta":
        return c
    return marks.gather(2, bytes_of(c)[..., None]).sum((1, 2))
