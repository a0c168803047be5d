"""What a protocol asks the dealer for, how big it is, and how it is keyed.

A plan is a list of requests; both owners derive the same plan from public data alone, and a request's position in it
is its operation index. Each (session, operation, request) has its own AES-128-CTR key per party, and is used once:
whoever asks for another correlation at the same index gets other randomness, not the same in another meaning.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mpcformer.errors import ProtocolError
from mpcformer.ring.random import derive_key

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """One correlation of a kind in `mpcformer.correlations.kinds`.

    Args:
        kind: its name.
        shapes: the operands' shapes.
        op: the product, for a triple.
        bits: the shift, for a truncation; the ring's width, for the kinds of suite.py.
        params: public numbers of the kind, as a table's range.
    """

    kind: str
    shapes: tuple[Shape, ...]
    op: str = ""
    bits: int = 0
    params: tuple[float, ...] = ()

    def digest(self) -> bytes:
        """32 bytes that differ whenever two requests do; the same before and after it travelled."""
        fields = [self.kind, self.shapes, self.op, self.bits, [float(number) for number in self.params]]
        return hashlib.sha256(json.dumps(fields).encode()).digest()

    @property
    def result_shape(self) -> Shape:
        """The shape of the product, or of the operand."""
        if len(self.shapes) == 1:
            return self.shapes[0]
        return product_shape(self.op, *self.shapes)


def product_shape(op: str, left: Shape, right: Shape) -> Shape:
    """The shape of `left op right` under torch's broadcasting.

    Raises:
        ProtocolError: the shapes do not fit.
    """
    try:
        if op == "matmul":
            if len(left) < 2 or len(right) < 2 or left[-1] != right[-2]:
                raise RuntimeError
            return (*torch.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1])  # type: ignore[no-untyped-call]
        return tuple(torch.broadcast_shapes(left, right))  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise ProtocolError(f"{op or 'elementwise'} of shapes {left} and {right} is not defined") from None


def session_key(seed: bytes, session_id: bytes, operation: int, request: Request) -> bytes:
    """A party's 16-byte key for one operation of one session."""
    return derive_key(seed, "correlation", session_id, operation, request.digest())


def weight_mask_key(seed: bytes, session_id: bytes) -> bytes:
    """The model owner's 16-byte key for the masks of its weights, one for the whole session."""
    return derive_key(seed, "weight masks", session_id)


def plan_digest(plan: Sequence[Request]) -> bytes:
    """32 bytes that differ whenever two plans do."""
    return hashlib.sha256(b"".join(request.digest() for request in plan)).digest()
