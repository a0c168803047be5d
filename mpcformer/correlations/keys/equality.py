"""Keys of equality: short keys with which the owners get shares of whether a value is zero, from it under a mask.

The mask r is uniform on 64 bits and known to the dealer alone. The value x is zero where c = x + r equals r. So the
keys are those of a point function of 2^64 places that is 1 at r, and each owner follows its key to the one place c.

An owner's root and the corrections look like uniform bits, whatever mask they are for.
Source: Boyle, Gilboa, Ishai, Secure Computation with Preprocessing via Function Secret Sharing, TCC 2019, section 4.1;
the keys are those of `point_function`.

Shapes: R values.
"""

import math

import torch

from mpcformer.correlations.keys import point_function
from mpcformer.correlations.keys.sign import MaskedKeys
from mpcformer.correlations.requests import Request, Shape
from mpcformer.ring.packing import WORD
from mpcformer.ring.random import BLOCK_WORDS


class Equality(MaskedKeys):
    """Keys of equality.

    Corrections: a block for each level (R, 64, 2), and the number of the leaf (R, 1).
    Dealer bytes: 1,032 for each value, which rank 0 passes on.
    """

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """Return the layouts of the corrections."""
        n = math.prod(request.shapes[0])
        return [((n, WORD, BLOCK_WORDS), WORD), ((n, 1), WORD)]

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the corrections of point functions that are 1 at r."""
        r = (share_0[0] + share_1[0]).view(-1)
        return list(point_function.corrections((share_0[1], share_1[1]), r, torch.ones_like(r)[:, None], WORD))
