"""The correlation for a test whether one shared number of Z_2^64 is zero; see `protocols.zero_test`."""

import torch

from mpcformer.correlations.base import Kind
from mpcformer.correlations.requests import Request, Shape
from mpcformer.errors import ProtocolError
from mpcformer.ring.random import Stream, fresh_key

N_BYTES, BYTE = 8, 256


def bytes_of(x: torch.Tensor) -> torch.Tensor:
    """Return the eight bytes of one number (1,), lowest first: (8,)."""
    return (x >> (8 * torch.arange(N_BYTES, device=x.device))) & (BYTE - 1)


class ZeroTest(Kind):
    """[r] over Z_2^64 and, for each byte of a number, [marks]* (8, 256): zero at r's byte, random elsewhere.

    The request has the shape (1,). Dealer bytes: 16384.
    """

    def check(self, request: Request) -> None:
        """Require a single number."""
        super().check(request)
        if request.shapes != ((1,),):
            raise ProtocolError(f"a zero test takes one number, not shape {request.shapes[0]}")

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """Return the layout of the marks."""
        return [((N_BYTES, BYTE), 64)]

    def draw(self, request: Request, stream: Stream, rank: int) -> list[torch.Tensor]:
        """Draw [r] and, at rank 1, the marks."""
        return [stream.int64((1,)), *self.draw_corrected(request, stream, rank)]

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the marks minus rank 1's share of them."""
        # The marks come from a key of the moment, because neither owner may know them.
        marks = Stream(fresh_key()).int64((N_BYTES, BYTE))
        marks[torch.arange(N_BYTES), bytes_of(share_0[0] + share_1[0])] = 0
        return [marks.sub_(share_1[1])]
