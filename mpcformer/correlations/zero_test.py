"""What the dealer makes to tell whether one shared number of Z_2^64 is zero, and nothing else of it."""

import torch

from mpcformer.correlations.kinds import KINDS, Kind
from mpcformer.correlations.requests import Request, Shape
from mpcformer.errors import ProtocolError
from mpcformer.ring.random import Stream, fresh_key

N_BYTES, BYTE = 8, 256


def bytes_of(x: torch.Tensor) -> torch.Tensor:
    """The eight bytes of one number (1,), lowest first: (8,)."""
    return (x >> (8 * torch.arange(N_BYTES, device=x.device))) & (BYTE - 1)


class ZeroTest(Kind):
    """[r] over Z_2^64 and, for each byte of a number, [marks]* (8, 256): zero at r's byte, else random.

    shapes: (1,). Dealer bytes: 16384.
    """

    def check(self, request: Request) -> None:
        """One number."""
        super().check(request)
        if request.shapes != ((1,),):
            raise ProtocolError(f"a zero test takes one number, not shape {request.shapes[0]}")

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """The marks."""
        return [((N_BYTES, BYTE), 64)]

    def draw(self, request: Request, stream: Stream, party: int) -> list[torch.Tensor]:
        """[r] and at party 1 the marks."""
        return [stream.int64((1,)), *self._last(request, stream, party)]

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """The marks minus party 1's share."""
        # From a key of the moment: unknown to both owners.
        marks = Stream(fresh_key()).int64((N_BYTES, BYTE))
        marks[torch.arange(N_BYTES), bytes_of(share_0[0] + share_1[0])] = 0
        return [marks.sub_(share_1[1])]


KINDS["zero_test"] = ZeroTest()
