"""The kinds of correlation: one dataclass, one generator each. All from seeds.

A kind has two halves that run in three places. `draw` expands one party's key into that party's random shares: in the
party itself, and at the dealer, who holds both keys. `correct` computes, from both draws, what party 0 must add so that
the shares multiply out. Party 1 never receives anything: all its shares come from its seed.
Source for all: Beaver, Efficient Multiparty Protocols Using Circuit Randomization, CRYPTO 1991; the seed compression is
Boyle et al., Efficient Pseudorandom Correlation Generators, CRYPTO 2019, section 1.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mpcformer.channel import Spec
from mpcformer.correlations.requests import Request, Shape
from mpcformer.errors import ProtocolError
from mpcformer.ring.packing import pack, packed_bytes, unpack
from mpcformer.ring.random import KEY_BYTES, Stream

SIGN_SHIFT = 63
ADDITIVE_OPS = ("mul", "matmul")
# Of all tensors of one correlation: some 21 bytes each at the dealer while it is made.
MAX_ELEMENTS = 1 << 28
# Far above what any engine asks for; so that what a stranger asks for is refused in no time and in few words.
MAX_NAME, MAX_OPERANDS, MAX_RANK, MAX_PARAMS = 1024, 16, 16, 32


def logical_shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """x >> bits with zeros shifted in; int64 of any shape, 1 <= bits <= 63."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


class Kind(ABC):
    """A kind of correlation. Tensors are int64 ring elements; every list has a fixed order, given in each docstring."""

    n_operands = 1

    def check(self, request: Request) -> None:
        """Refuse a malformed request."""
        if len(request.shapes) != self.n_operands:
            raise ProtocolError(f"{request.kind} takes {self.n_operands} shapes, got {len(request.shapes)}")

    @abstractmethod
    def draw(self, request: Request, stream: Stream, party: int) -> list[torch.Tensor]:
        """One party's shares before correction. The correctable ones are zero at party 0 and come last."""

    @abstractmethod
    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Party 0's correctable shares, from both draws. Dealer only."""

    def n_corrections(self) -> int:
        """How many tensors the dealer sends."""
        return 1

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """Shape and ring width in bits of each of party 0's corrections."""
        return [(request.result_shape, 64)] * self.n_corrections()

    def weight_masks(self, request: Request, key: bytes) -> list[torch.Tensor]:
        """Masks that belong to the model owner's weights, for the whole session: the dealer adds them to `share_0`."""
        return []

    def correction_specs(self, request: Request) -> list[Spec]:
        """What the dealer sends to party 0."""
        return [
            Spec(torch.int64, shape) if bits == 64 else Spec(torch.uint8, (packed_bytes(math.prod(shape), bits),))
            for shape, bits in self.layout(request)
        ]

    def _last(self, request: Request, stream: Stream, party: int) -> list[torch.Tensor]:
        return [stream.int64(shape) for shape, _ in self.layout(request)] if party == 1 else []


class AdditiveTriple(Kind):
    """[a], [b], [c] with c = a op b over Z_2^64, op in {mul, matmul}. Dealer bytes: 8 per element of c."""

    n_operands = 2

    def check(self, request: Request) -> None:
        """Two shapes and a known product."""
        super().check(request)
        if request.op not in ADDITIVE_OPS:
            raise ProtocolError(f"triple op {request.op!r} is unknown; known: {', '.join(ADDITIVE_OPS)}")

    def draw(self, request: Request, stream: Stream, party: int) -> list[torch.Tensor]:
        """[a, b] and, at party 1, c."""
        return [stream.int64(shape) for shape in request.shapes] + self._last(request, stream, party)

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """c_0 = (a_0 + a_1) op (b_0 + b_1) - c_1."""
        product = getattr(torch, request.op)(share_0[0] + share_1[0], share_0[1] + share_1[1])
        return [product.sub_(share_1[2])]


class SquarePair(Kind):
    """[r], [r^2] over Z_2^64. Dealer bytes: 8 per element."""

    def draw(self, request: Request, stream: Stream, party: int) -> list[torch.Tensor]:
        """[r] and, at party 1, r^2."""
        return [stream.int64(request.shapes[0]), *self._last(request, stream, party)]

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """(r_0 + r_1)^2 minus party 1's share of it."""
        r = share_0[0] + share_1[0]
        return [(r * r).sub_(share_1[1])]


class Truncation(Kind):
    """[r], [r >> bits], [msb r], r uniform on 64 bits, shifts logical. Dealer bytes: 16 per element."""

    def check(self, request: Request) -> None:
        """A shift that leaves something on either side."""
        super().check(request)
        if not 1 <= request.bits <= 61:
            raise ProtocolError(f"truncation by {request.bits} bits must lie in 1..61")

    def n_corrections(self) -> int:
        """r >> bits, and the top bit."""
        return 2

    def draw(self, request: Request, stream: Stream, party: int) -> list[torch.Tensor]:
        """[r] and, at party 1, r >> bits and msb r."""
        return [stream.int64(request.shapes[0]), *self._last(request, stream, party)]

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Party 0's shares of the shifted mask and of its top bit."""
        r = share_0[0] + share_1[0]
        return [
            logical_shift(r, request.bits).sub_(share_1[1]),
            logical_shift(r, SIGN_SHIFT).sub_(share_1[2]),
        ]


class BinaryTriple(Kind):
    """XOR-shared words a, b, c = a & b, 64 bits each. Dealer bytes: 8 per element of c."""

    n_operands = 2

    def check(self, request: Request) -> None:
        """Two shapes; there is one product of words."""
        super().check(request)
        if request.op:
            raise ProtocolError(f"a binary triple takes no op, got {request.op!r}")

    def draw(self, request: Request, stream: Stream, party: int) -> list[torch.Tensor]:
        """[a, b] and, at party 1, c."""
        return [stream.int64(shape) for shape in request.shapes] + self._last(request, stream, party)

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """c_0 = (a & b) ^ c_1."""
        return [((share_0[0] ^ share_1[0]) & (share_0[1] ^ share_1[1])) ^ share_1[2]]


class BitPair(Kind):
    """A random bit, XOR-shared and shared over Z_2^64. Dealer bytes: 8 per element."""

    def draw(self, request: Request, stream: Stream, party: int) -> list[torch.Tensor]:
        """[bit, XOR-shared] and, at party 1, the arithmetic share."""
        return [stream.bits(request.shapes[0], 1), *self._last(request, stream, party)]

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """The bit minus party 1's arithmetic share."""
        return [(share_0[0] ^ share_1[0]) - share_1[1]]


KINDS: dict[str, Kind] = {  # `mpcformer.correlations` adds those of suite.py
    "additive_triple": AdditiveTriple(),
    "square_pair": SquarePair(),
    "truncation": Truncation(),
    "binary_triple": BinaryTriple(),
    "bit_pair": BitPair(),
}


def validate(request: Request) -> None:
    """Refuse what cannot be dealt, before memory is taken.

    Raises:
        ProtocolError: naming the field.
    """
    if request.kind not in KINDS:
        raise ProtocolError(f"correlation kind {request.kind[:40]!r} is unknown; known: {', '.join(KINDS)}")
    kind = KINDS[request.kind]
    if not request.shapes:
        raise ProtocolError(f"{request.kind} without a shape")
    limits = [
        ("operands", len(request.shapes), MAX_OPERANDS),
        ("dimensions", max(map(len, request.shapes)), MAX_RANK),
        ("parameters", len(request.params), MAX_PARAMS),
        ("characters of op", len(request.op), MAX_NAME),
    ]
    for what, n, limit in limits:
        if n > limit:
            raise ProtocolError(f"{request.kind} with {n} {what}, more than {limit}")
    _check_sizes(request.shapes)
    kind.check(request)
    made = [shape for shape, _ in kind.layout(request)]
    _check_sizes(made)
    total = sum(math.prod(shape) for shape in (*request.shapes, *made))
    if total > MAX_ELEMENTS:
        raise ProtocolError(
            f"{request.kind}: all its tensors exceed {MAX_ELEMENTS} elements, {total}", "use smaller batches"
        )


def _check_sizes(shapes: Sequence[Shape]) -> None:
    for shape in shapes:
        if any(size < 1 for size in shape) or math.prod(shape) > MAX_ELEMENTS:
            raise ProtocolError(f"correlation shape {shape} is empty or exceeds {MAX_ELEMENTS} elements")


def correction_specs(request: Request) -> list[Spec]:
    """Dtypes and shapes of what the dealer sends to party 0 for `request`."""
    return KINDS[request.kind].correction_specs(request)


@dataclass(frozen=True)
class Dealt:
    """One party's part of a correlation: the tensors in the order of its kind's docstring."""

    request: Request
    shares: list[torch.Tensor]

    def __repr__(self) -> str:
        return f"Dealt({self.request.kind}, <shares hidden>)"


def deal(request: Request, key_0: bytes, key_1: bytes, weight_key: bytes) -> list[torch.Tensor]:
    """The dealer's work for one request: the correction for party 0, from both parties' keys.

    Args:
        request: what is asked for.
        key_0, key_1: the parties' keys of this operation.
        weight_key: the model owner's key of this session for the masks of its weights.

    Raises:
        ProtocolError: a malformed request.
    """
    validate(request)
    kind = KINDS[request.kind]
    share_0 = kind.draw(request, Stream(key_0), party=0) + kind.weight_masks(request, weight_key)
    share_1 = kind.draw(request, Stream(key_1), party=1)
    corrections = kind.correct(request, share_0, share_1)
    layout = kind.layout(request)
    return [c if bits == 64 else pack(c, bits) for c, (_, bits) in zip(corrections, layout, strict=True)]


def unpacked(request: Request, correction: list[torch.Tensor]) -> list[torch.Tensor]:
    """int64 tensors from the dealer's packed ones."""
    layout = KINDS[request.kind].layout(request)
    return [unpack(c, shape, bits) for c, (shape, bits) in zip(correction, layout, strict=True)]


def expand(request: Request, key: bytes, party: int, correction: list[torch.Tensor]) -> Dealt:
    """One party's part: its seed expanded and, at party 0, the dealer's unpacked correction appended."""
    return Dealt(request, KINDS[request.kind].draw(request, Stream(key), party) + correction)


class _MetaStream(Stream):
    """Shapes only, for planning."""

    def __init__(self) -> None:
        super().__init__(bytes(KEY_BYTES))

    def int64(self, shape: Sequence[int]) -> torch.Tensor:
        """An int64 of `shape` without memory."""
        return torch.empty(tuple(shape), dtype=torch.int64, device="meta")


def sketch(request: Request, party: int) -> Dealt:
    """What `expand` gives, as meta tensors: for planning.

    Raises:
        ProtocolError: a malformed request.
    """
    validate(request)
    kind = KINDS[request.kind]
    shares = kind.draw(request, _MetaStream(), party)
    if party == 0:
        shares += [torch.empty(shape, dtype=torch.int64, device="meta") for shape, _ in kind.layout(request)]
    return Dealt(request, shares)
