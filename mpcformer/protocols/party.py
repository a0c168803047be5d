"""One owner inside a protocol: its rank, its channel and its correlations; and how shares are opened and shifted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from mpcformer.channel import Channel, Spec
from mpcformer.correlations import Dealt, Request
from mpcformer.ring.fused import Fused
from mpcformer.ring.packing import Operand, PackedMatrix, pack, packed_bytes, reduce, unpack, unpack_onto

# The ranks of the two owners.
MODEL_OWNER, DATA_OWNER = 0, 1
# A share, or the computation of one that is carried out when it is sent or used.
Share = torch.Tensor | Fused
AnyShare = TypeVar("AnyShare", torch.Tensor, Fused)
# A half of an opening: an owner's masked share, and the width of the ring in bits.
Half = tuple[Share, int]
# A half whose numbers are here.
NumbersAndBits = tuple[torch.Tensor, int]
# The shape of a half, and the width of its ring in bits.
HalfShape = tuple[Sequence[int], int]


class Store(Protocol):
    """A source of correlations, such as `CorrelationStore`."""

    def take(self, request: Request) -> Dealt:
        """Return the next operation's correlation."""

    def take_packed(self, request: Request) -> Sequence[Operand]:
        """Do as `take`, where corrections that the protocol takes packed stay so."""

    def preview(self, operation: int, request: Request) -> Dealt:
        """Return the data owner's part of a later operation."""

    def skip(self, request: Request) -> None:
        """Count the next operation as used by the data owner, who looked at it ahead."""

    def input_mask(self, request: Request) -> torch.Tensor:
        """Do as `skip`, and return the mask A of a linear map's input, int64 (rows, in)."""

    def work_ahead(self) -> None:
        """Prepare what comes next, while the other owner is waited for."""


@dataclass
class Party:
    """The owner that runs a protocol, with all that the protocol needs from it.

    Args:
        rank: MODEL_OWNER or DATA_OWNER.
        channel: the channel to the other owner.
        store: the correlations, which are used in order.
    """

    rank: int
    channel: Channel
    store: Store

    def take(self, request: Request) -> list[torch.Tensor]:
        """Return this owner's tensors of the next correlation."""
        return self.store.take(request).shares

    def take_packed(self, request: Request) -> Sequence[Operand]:
        """Do as `take`, for a protocol that takes corrections packed: such tensors stay as the dealer sent them."""
        return self.store.take_packed(request)

    def only(self, rank: int, value: torch.Tensor | int) -> torch.Tensor | int:
        """Return `value` at the owner with this rank and 0 at the other, so that a public number joins a sharing."""
        return value if self.rank == rank else 0

    def send(self, halves: Sequence[Half]) -> torch.Tensor:
        """Pack the halves, send them as one message, and return the message."""
        packed = [x.packed(bits) if isinstance(x, Fused) else pack(x, bits) for x, bits in halves]
        return self._send_packed(packed)

    def _send_packed(self, packed: Sequence[torch.Tensor]) -> torch.Tensor:
        message = packed[0] if len(packed) == 1 else torch.cat(list(packed))
        self.channel.send([message])
        return message

    def send_onto(self, halves: Sequence[Half], theirs: torch.Tensor) -> list[torch.Tensor]:
        """Do as `send`, and add the halves in the other owner's message, which was here before.

        Returns:
            The opened numbers, in [0, 2^bits).
        """
        both = [
            fused(x).packed_and_opened(bits, part)
            for (x, bits), part in zip(halves, _parts(theirs, shapes_of(halves)), strict=True)
        ]
        self._send_packed([packed for packed, _ in both])
        return [opened for _, opened in both]

    def receive(self, shapes: Sequence[HalfShape]) -> torch.Tensor:
        """Receive the other owner's message with halves of these shapes. It stays packed; see `split`."""
        n_bytes = sum(half_bytes(shape) for shape in shapes)
        return self.channel.receive([Spec(torch.uint8, (n_bytes,))])[0]

    def open(self, halves: Sequence[Half]) -> list[torch.Tensor]:
        """Exchange halves and add them up: public numbers in [0, 2^bits).

        Cost for n bytes of packed halves: 1 round; n bytes each way.
        """
        both = [x.packed_and_computed(bits) if isinstance(x, Fused) else (pack(x, bits), x) for x, bits in halves]
        self._send_packed([packed for packed, _ in both])
        mine = [(x, bits) for (_, x), (_, bits) in zip(both, halves, strict=True)]
        self.store.work_ahead()
        return add_message(mine, self.receive(shapes_of(halves)))

    def open_bits(self, share: torch.Tensor, bits: int) -> torch.Tensor:
        """Exchange XOR shares of `bits` bits an element, where `bits` is a packing width, and return their XOR.

        Cost for n bytes of packed shares: 1 round; n bytes each way.
        """
        self.send([(share, bits)])
        shape = tuple(share.shape)
        return reduce(share, bits) ^ unpack(self.receive([(shape, bits)]), shape, bits)


def shapes_of(halves: Sequence[tuple[Share, int]]) -> list[HalfShape]:
    """Return the shapes of halves."""
    return [(tuple(x.shape), bits) for x, bits in halves]


def half_bytes(shape: HalfShape) -> int:
    """Return the bytes of a packed half."""
    sizes, bits = shape
    return packed_bytes(math.prod(sizes), bits)


def split(message: torch.Tensor, shapes: Sequence[HalfShape]) -> list[NumbersAndBits]:
    """Unpack a message of halves of the given shapes."""
    parts = zip(_parts(message, shapes), shapes, strict=True)
    return [(unpack(part, sizes, bits), bits) for part, (sizes, bits) in parts]


def without_message(shapes: Sequence[HalfShape], device: torch.device) -> torch.Tensor:
    """Return a message with nothing in it, for a plan."""
    return torch.empty(sum(half_bytes(shape) for shape in shapes), dtype=torch.uint8, device=device)


def _parts(message: torch.Tensor, shapes: Sequence[HalfShape]) -> list[torch.Tensor]:
    parts, at = [], 0
    for shape in shapes:
        end = at + half_bytes(shape)
        parts.append(message[at:end])
        at = end
    return parts


def add_message(mine: Sequence[NumbersAndBits], message: torch.Tensor) -> list[torch.Tensor]:
    """Add the halves in the other owner's message: the opened numbers, in [0, 2^bits)."""
    parts = zip(mine, _parts(message, shapes_of(mine)), strict=True)
    return [unpack_onto(part, x, bits) for (x, bits), part in parts]


def add_messages(first: torch.Tensor, second: torch.Tensor, shapes: Sequence[HalfShape]) -> list[torch.Tensor]:
    """Add both owners' messages of halves of these shapes: the opened numbers, in [0, 2^bits)."""
    parts = zip(_parts(first, shapes), _parts(second, shapes), shapes, strict=True)
    return [Fused(PackedMatrix(mine, tuple(sizes), bits)).opened(bits, theirs) for mine, theirs, (sizes, bits) in parts]


def add_halves(mine: Sequence[Half], theirs: Sequence[Half]) -> list[torch.Tensor]:
    """Add up both owners' halves: the opened numbers, in [0, 2^bits)."""
    return [reduce(computed(x) + computed(y), bits) for (x, bits), (y, _) in zip(mine, theirs, strict=True)]


def fused(share: Share) -> Fused:
    """Return a computation that begins with the share, or goes on with it."""
    return share if isinstance(share, Fused) else Fused(share)


def computed(share: Share) -> torch.Tensor:
    """Return the share's numbers."""
    return share.computed() if isinstance(share, Fused) else share


def shift(share: AnyShare, bits: int, rank: int) -> AnyShare:
    """Compute [x / 2^bits] over Z_2^(k - bits) from [x] over Z_2^k, without a message.

    Ideal function: floor(x / 2^bits), plus one with a probability of the fraction cut off plus 2^-bits.
    Shapes: x (...), result (...).
    Scale: f -> f - bits, and the ring loses as many bits. A negative `bits` shifts up.
    Range and error: all of the ring; 1 unit in the last place.
    Cost: 0 rounds; 0 bytes each way.
    Source: local truncation without lifting, Cheetah (Huang et al., USENIX Security 2022), section 5.1.
    """
    if bits <= 0:
        return share << -bits
    return (share >> bits) + shift_rounding(bits, rank)


def shift_rounding(bits: int, rank: int) -> int:
    """Return what `shift` adds to an owner's share after it was shifted."""
    return 1 if bits > 0 and rank == 0 else 0
