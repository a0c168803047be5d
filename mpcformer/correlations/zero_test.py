"""The correlation for tests whether shared numbers of Z_2^64 are zero; see `protocols.zero_test`."""

import torch

from mpcformer.correlations.base import Kind
from mpcformer.correlations.requests import Request, Shape
from mpcformer.errors import ProtocolError
from mpcformer.ring.random import BLOCK_WORDS, Stream, derive_key, key_of

N_BYTES, BYTE = 8, 256
# A result is a key if the number is not zero, so it has the bits of one.
RESULT_WORDS = BLOCK_WORDS


def bytes_of(x: torch.Tensor) -> torch.Tensor:
    """Return the eight bytes of each number (n,), lowest first: (n, 8)."""
    return (x[:, None] >> (8 * torch.arange(N_BYTES, device=x.device))) & (BYTE - 1)


class ZeroTest(Kind):
    """[r] (n,) over Z_2^64, a half of a key (2,), and for each byte of a number [marks]* (n, 8, 256, 2).

    A mark is zero at r's byte, and two random words elsewhere. All marks follow from the two halves of the key
    together, so that neither owner knows them. No protocol uses the halves.
    Dealer bytes for each of the n numbers: 32768.
    """

    def check(self, request: Request) -> None:
        """Require one shape of numbers."""
        super().check(request)
        if len(request.shapes[0]) != 1:
            raise ProtocolError(f"a zero test takes numbers of shape (n,), not {request.shapes[0]}")

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """Return the layout of the marks."""
        return [((*request.shapes[0], N_BYTES, BYTE, RESULT_WORDS), 64)]

    def draw(self, request: Request, stream: Stream, rank: int) -> list[torch.Tensor]:
        """Draw [r], the owner's half of the key and, at rank 1, its share of the marks."""
        own = [stream.int64(request.shapes[0]), stream.int64((BLOCK_WORDS,))]
        return [*own, *self.draw_corrected(request, stream, rank)]

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the marks minus rank 1's share of them."""
        marks = Stream(derive_key(key_of(share_0[1] ^ share_1[1]), "marks")).int64(tuple(share_1[2].shape))
        at = bytes_of(share_0[0] + share_1[0])[..., None, None].expand(-1, -1, 1, RESULT_WORDS)
        return [marks.scatter_(2, at, 0).sub_(share_1[2])]
