"""Is a shared number zero: one bit, whatever else the number could tell."""

import torch

from mpcformer.correlations import Request
from mpcformer.correlations.zero_test import bytes_of

WORD = 64


def request() -> Request:
    """The correlation."""
    return Request("zero_test", ((1,),))


def verdict(tensors: list[torch.Tensor], c: torch.Tensor) -> torch.Tensor:
    """[d] over Z_2^64 from the opened c = x + r: zero where x is, else uniform.

    Ideal function: 0 if x = 0, else a fresh uniform number.
    Shapes: x, c, result (1,). Scale: none.
    Range and error: all of Z_2^64; a number that is not zero escapes with probability 2^-64.
    Cost: 1 round and 8 bytes each way for c, the same again to open the result; 16384 dealer bytes.
    Source: equality by tables of the mask's bytes, after Ishai et al., TCC 2013; ours.
    """
    marks = tensors[1]
    if c.device.type == "meta":
        return c
    return marks[torch.arange(marks.size(0)), bytes_of(c)].sum().reshape(1)
