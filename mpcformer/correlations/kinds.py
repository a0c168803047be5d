"""The dictionary of all kinds of correlation, and what dealer and owners do with a request of any kind."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from mpcformer.channel import Spec
from mpcformer.correlations.base import MAX_ELEMENTS, Kind
from mpcformer.correlations.beaver import AdditiveTriple, BinaryTriple, BitPair, SquarePair, Truncation
from mpcformer.correlations.keys.equality import Equality
from mpcformer.correlations.keys.sign import Sign
from mpcformer.correlations.lifted import Lifted
from mpcformer.correlations.linear import Linear
from mpcformer.correlations.matmul import MatmulMasks
from mpcformer.correlations.piecewise import Piecewise
from mpcformer.correlations.requests import KEPT_REQUESTS, MaskKeys, Request, Shape
from mpcformer.correlations.row_lookup import RowLookup
from mpcformer.correlations.table import Table
from mpcformer.correlations.window import Window
from mpcformer.correlations.zero_test import ZeroTest
from mpcformer.errors import ProtocolError
from mpcformer.ring.packing import Operand, PackedMatrix, pack
from mpcformer.ring.random import Stream

KINDS: dict[str, Kind] = {
    "additive_triple": AdditiveTriple(),
    "square_pair": SquarePair(),
    "truncation": Truncation(),
    "binary_triple": BinaryTriple(),
    "bit_pair": BitPair(),
    "sign": Sign(),
    "equality": Equality(),
    "linear": Linear(),
    "matmul_masks": MatmulMasks(),
    "lifted": Lifted(),
    "table": Table(),
    "piecewise": Piecewise(),
    "window": Window(),
    "row_lookup": RowLookup(),
    "zero_test": ZeroTest(),
}
# These limits are far above what any engine asks for. They let a stranger's request be refused at once and briefly.
MAX_NAME, MAX_OPERANDS, MAX_DIMENSIONS, MAX_PARAMS = 1024, 16, 16, 32


@lru_cache(KEPT_REQUESTS)
def validate(request: Request) -> None:
    """Refuse a request that cannot be dealt, before any memory is taken for it.

    Raises:
        ProtocolError: the message names the field.
    """
    if request.kind not in KINDS:
        raise ProtocolError(f"correlation kind {request.kind[:40]!r} is unknown; known: {', '.join(KINDS)}")
    kind = KINDS[request.kind]
    if not request.shapes:
        raise ProtocolError(f"{request.kind} without a shape")
    limits = [
        ("operands", len(request.shapes), MAX_OPERANDS),
        ("dimensions", max(map(len, request.shapes)), MAX_DIMENSIONS),
        ("parameters", len(request.params), MAX_PARAMS),
        ("characters of op", len(request.op), MAX_NAME),
    ]
    for what, n, limit in limits:
        if n > limit:
            raise ProtocolError(f"{request.kind} with {n} {what}, more than {limit}")
    _check_sizes(request.shapes)
    kind.check(request)
    _check_sizes([shape for shape, _ in _layout(request)])
    total = n_elements(request)
    if total > MAX_ELEMENTS:
        raise ProtocolError(
            f"{request.kind}: all its tensors exceed {MAX_ELEMENTS} elements, {total}", "use smaller batches"
        )


@lru_cache(KEPT_REQUESTS)
def _layout(request: Request) -> tuple[tuple[Shape, int], ...]:
    return tuple(KINDS[request.kind].layout(request))


@lru_cache(KEPT_REQUESTS)
def n_elements(request: Request) -> int:
    """Return the number of elements of all tensors of a correlation."""
    made = [shape for shape, _ in _layout(request)]
    return sum(math.prod(shape) for shape in (*request.shapes, *made))


def _check_sizes(shapes: Sequence[Shape]) -> None:
    for shape in shapes:
        if any(size < 1 for size in shape) or math.prod(shape) > MAX_ELEMENTS:
            raise ProtocolError(f"correlation shape {shape} is empty or exceeds {MAX_ELEMENTS} elements")


@lru_cache(KEPT_REQUESTS)
def correction_specs(request: Request) -> tuple[Spec, ...]:
    """Return the dtypes and shapes of the tensors that the dealer sends to rank 0 for `request`."""
    return tuple(KINDS[request.kind].correction_specs(request))


@dataclass(frozen=True)
class Dealt:
    """One owner's part of a correlation.

    Args:
        request: what was asked for.
        shares: the tensors, in the order that the docstring of the kind gives.
    """

    request: Request
    shares: list[torch.Tensor]

    def __repr__(self) -> str:
        return f"Dealt({self.request.kind}, <shares hidden>)"


def deal(request: Request, key_0: bytes, key_1: bytes, masks: MaskKeys) -> list[torch.Tensor]:
    """Compute the correction for rank 0 from both owners' keys. This is the dealer's work for one request.

    Args:
        request: what is asked for.
        key_0, key_1: the owners' keys of this operation.
        masks: the model owner's keys for what serves more than one operation.

    Raises:
        ProtocolError: the request is malformed.
    """
    validate(request)
    kind = KINDS[request.kind]
    share_0 = kind.draw(request, Stream(key_0), 0) + kind.weight_masks(request, masks)
    share_1 = kind.draw(request, Stream(key_1), 1)
    corrections = kind.correct(request, share_0, share_1)
    layout = _layout(request)
    return [c if bits == 64 else pack(c, bits) for c, (_, bits) in zip(corrections, layout, strict=True)]


def unpacked(request: Request, correction: list[torch.Tensor]) -> list[torch.Tensor]:
    """Turn the dealer's packed tensors into int64 tensors."""
    return [packed.unpacked() for packed in as_packed(request, correction)]


def drawn(request: Request, key: bytes) -> list[torch.Tensor]:
    """Expand rank 0's key without the dealer's correction."""
    return KINDS[request.kind].draw(request, Stream(key), 0)


def with_packed(request: Request, shares: list[torch.Tensor], correction: list[torch.Tensor]) -> list[Operand]:
    """Return what `expand` gives at rank 0, of a kind whose corrections stay packed.

    Args:
        request: what was dealt.
        shares: what `drawn` gave.
        correction: the dealer's, as it came.
    """
    return [*shares, *(packed.operand for packed in as_packed(request, correction))]


def stays_packed(request: Request) -> bool:
    """Return whether the protocol takes rank 0's corrections packed."""
    return KINDS[request.kind].stays_packed


def as_packed(request: Request, correction: list[torch.Tensor]) -> list[PackedMatrix]:
    """Return the dealer's packed tensors with their shapes and widths."""
    layout = _layout(request)
    return [PackedMatrix(c, shape, bits) for c, (shape, bits) in zip(correction, layout, strict=True)]


def expand(request: Request, key: bytes, rank: int, correction: list[torch.Tensor]) -> Dealt:
    """Expand one owner's key into its part.

    Args:
        request: what was dealt.
        key: the owner's key of this operation.
        rank: of the owner.
        correction: the dealer's, unpacked, at rank 0 and wherever `is_shared` says so; else empty.
    """
    kind = KINDS[request.kind]
    return Dealt(request, kind.prepared(request, kind.draw(request, Stream(key), rank) + correction, rank))


def is_shared(request: Request) -> bool:
    """Return whether rank 1 needs the dealer's correction too, which rank 0 then passes on."""
    return KINDS[request.kind].is_shared(request)


@lru_cache(KEPT_REQUESTS)
def kept_bytes(request: Request) -> int:
    """Return the bytes that wait at an owner between dealing and use."""
    return KINDS[request.kind].kept_bytes(request)


class _MetaStream(Stream):
    """A stream that gives shapes only, for planning."""

    def __init__(self) -> None:
        pass  # it has no key

    def int64(self, shape: Sequence[int]) -> torch.Tensor:
        """Return an int64 tensor of `shape` that takes no memory."""
        return torch.empty(tuple(shape), dtype=torch.int64, device="meta")


def sketch(request: Request, rank: int) -> Dealt:
    """Return what `expand` would give, as meta tensors, for planning.

    Raises:
        ProtocolError: the request is malformed.
    """
    validate(request)
    kind = KINDS[request.kind]
    shares = kind.draw(request, _MetaStream(), rank)
    if rank == 0 or kind.is_shared(request):
        shares += [torch.empty(shape, dtype=torch.int64, device="meta") for shape, _ in _layout(request)]
    return Dealt(request, kind.prepared(request, shares, rank))
