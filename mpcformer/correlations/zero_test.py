"""The correlation for tests whether shared numbers of Z_2^64 are zero; see `protocols.zero_test`."""

import torch

from mpcformer.correlations.base import Kind
from mpcformer.correlations.requests import Request, Shape
from mpcformer.errors import ProtocolError
from mpcformer.ring.random import Stream, fresh_key

N_BYTES, BYTE = 8, 256


def bytes_of(x: torch.Tensor) -> torch.Tensor:
    """Return the eight bytes of each number (n,), lowest first: (n, 8)."""
    return (x[:, None] >> (8 * torch.arange(N_BYTES, device=x.device))) & (BYTE - 1)


class ZeroTest(Kind):
    """[r] (n,) over Z_2^64 and, for each byte of a number, [marks]* (n, 8, 256): zero at r's byte, random elsewhere.

    Dealer bytes for each of the n numbers: 16384.
    """

    def check(self, request: Request) -> None:
        """Require one shape of numbers."""
        super().check(request)
        if len(request.shapes[0]) != 1:
            raise ProtocolError(f"a zero test takes numbers of shape (n,), not {request.shapes[0]}")

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """Return the layout of the marks."""
        return [((*request.shapes[0], N_BYTES, BYTE), 64)]

    def draw(self, request: Request, stream: Stream, rank: int) -> list[torch.Tensor]:
        """Draw [r] and, at rank 1, the marks."""
        return [stream.int64(request.shapes[0]), *self.draw_corrected(request, stream, rank)]

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the marks minus rank 1's share of them."""
        # The marks come from a key of the moment, because neither owner may know them.
        marks = Stream(fresh_key()).int64(tuple(share_1[1].shape))
        return [marks.scatter_(2, bytes_of(share_0[0] + share_1[0])[..., None], 0).sub_(share_1[1])]
