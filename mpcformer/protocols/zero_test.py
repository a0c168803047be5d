"""A test whether a shared number is zero. It tells this one bit and nothing else of the number."""

import torch

from mpcformer.correlations import Request
from mpcformer.correlations.zero_test import bytes_of
from mpcformer.protocols.cost import ProtocolCost, dealt, opening

WORD = 64


def request() -> Request:
    """Return the request for one number."""
    return Request("zero_test", ((1,),))


def cost() -> ProtocolCost:
    """Return the cost of a test with both openings, as `verdict` states it."""
    word = (1,), WORD
    return opening(word) + opening(word) + dealt(request())


def verdict(tensors: list[torch.Tensor], c: torch.Tensor) -> torch.Tensor:
    """Compute [d] over Z_2^64 from the opened c = x + r. d is zero if x is, else uniform.

    Ideal function: 0 if x = 0, else a fresh uniform number.
    Shapes: x (1,), c (1,), result (1,).
    Scale: none.
    Range and error: all of Z_2^64; a number that is not zero escapes with probability 2^-64.
    Cost with the openings of c and of the result: 2 rounds; 16 bytes each way; 16384 dealer bytes.
    Source: equality by tables of the bytes of the mask, after Ishai et al., TCC 2013; ours.
    """
    marks = tensors[1]
    if c.device.type == "meta":
        return c
    return marks[torch.arange(marks.size(0)), bytes_of(c)].sum().reshape(1)
