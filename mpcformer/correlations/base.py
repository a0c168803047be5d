"""The base class of all kinds of correlation.

A kind works in three places. `draw` expands one owner's key into that owner's random shares; it runs at the owner
itself and at the dealer, which holds both keys. `correct` runs at the dealer only: from both draws it computes what
rank 0 must add so that the shares multiply out. Rank 1 receives nothing from the dealer. Nearly all its shares come
from its seed alone; for the kinds whose `is_shared` says so, rank 0 passes the corrections on.
Source for all kinds: Beaver, Efficient Multiparty Protocols Using Circuit Randomization, CRYPTO 1991; the compression
to seeds is that of Boyle et al., Efficient Pseudorandom Correlation Generators, CRYPTO 2019, section 1.
"""

import math
from abc import ABC, abstractmethod

import torch

from mpcformer.channel import Spec
from mpcformer.correlations.requests import MaskKeys, Request, Shape
from mpcformer.errors import ProtocolError
from mpcformer.ring.packing import WIDTHS, packed_bytes
from mpcformer.ring.random import Stream

# The most elements that one correlation may have in all its tensors; the dealer needs about 21 bytes for each.
MAX_ELEMENTS = 1 << 28


class Kind(ABC):
    """A kind of correlation. Its tensors are int64 ring elements, in the order that its docstring gives.

    A share of Z_2^k is an int64 whose bits from k up mean nothing. Each class lists its tensors in order. Tensors
    marked * are corrected: rank 1 draws its shares of them, and rank 0 receives its shares from the dealer, packed to
    the width of the ring.
    """

    n_operands = 1
    # Whether the protocol takes rank 0's corrections packed, as they came.
    stays_packed = False

    def check(self, request: Request) -> None:
        """Refuse a malformed request.

        Raises:
            ProtocolError: the request cannot be dealt.
        """
        if len(request.shapes) != self.n_operands:
            raise ProtocolError(f"{request.kind} takes {self.n_operands} shapes, got {len(request.shapes)}")

    @abstractmethod
    def draw(self, request: Request, stream: Stream, rank: int) -> list[torch.Tensor]:
        """Return one owner's shares before the correction. Corrected tensors come last, and only at rank 1."""

    @abstractmethod
    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute rank 0's shares of the corrected tensors from both draws. Only the dealer can do this."""

    @abstractmethod
    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """Return the shape, and the width of the ring in bits, of each of rank 0's corrections."""

    def weight_masks(self, request: Request, keys: MaskKeys) -> list[torch.Tensor]:
        """Derive masks of the model owner that other operations use too. The dealer appends them to `share_0`."""
        return []

    def is_shared(self, request: Request) -> bool:
        """Return whether rank 1 needs the corrections too. Then rank 0 passes them on before they are used."""
        return False

    def prepared(self, request: Request, tensors: list[torch.Tensor], rank: int) -> list[torch.Tensor]:
        """Return an owner's tensors as the protocol uses them; a kind with shared corrections expands them here."""
        return tensors

    def kept_bytes(self, request: Request) -> int:
        """Return the bytes that wait at an owner between dealing and use."""
        return sum(spec.n_bytes for spec in self.correction_specs(request))

    def correction_specs(self, request: Request) -> list[Spec]:
        """Describe the tensors that the dealer sends to rank 0."""
        return [
            Spec(torch.int64, shape) if bits == 64 else Spec(torch.uint8, (packed_bytes(math.prod(shape), bits),))
            for shape, bits in self.layout(request)
        ]

    def draw_corrected(self, request: Request, stream: Stream, rank: int) -> list[torch.Tensor]:
        """Draw rank 1's shares of the corrected tensors; rank 0 draws none of them."""
        return [stream.int64(shape) for shape, _ in self.layout(request)] if rank == 1 else []


def check_width(request: Request) -> None:
    """Refuse a ring whose elements do not pack into whole bytes.

    Raises:
        ProtocolError: the request's ring has such a width.
    """
    if request.bits not in WIDTHS:
        raise ProtocolError(f"{request.kind}: a ring of {request.bits} bits does not pack into bytes")
