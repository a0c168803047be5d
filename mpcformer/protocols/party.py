"""One owner inside a protocol: its rank, its channel and its correlations; and how shares are opened and shifted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from mpcformer.channel import Channel, Spec
from mpcformer.correlations import Dealt, Request
from mpcformer.ring.packing import pack, packed_bytes, reduce, unpack, unpack_onto

# The ranks of the two owners.
MODEL_OWNER, DATA_OWNER = 0, 1
# A half of an opening: an owner's masked share, and the width of the ring in bits.
Half = tuple[torch.Tensor, int]
# The shape of a half, and the width of its ring in bits.
HalfShape = tuple[Sequence[int], int]


class Store(Protocol):
    """A source of correlations, such as `CorrelationStore`."""

    def take(self, request: Request) -> Dealt:
        """Return the next operation's correlation."""

    def preview(self, operation: int, request: Request) -> Dealt:
        """Return the data owner's part of a later operation."""

    def skip(self, request: Request) -> None:
        """Count the next operation as used by the data owner, who looked at it ahead."""

    def input_mask(self, request: Request) -> torch.Tensor:
        """Do as `skip`, and return the mask A of a linear map's input, int64 (rows, in)."""


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

    def only(self, rank: int, value: torch.Tensor | int) -> torch.Tensor | int:
        """Return `value` at the owner with this rank and 0 at the other, so that a public number joins a sharing."""
        return value if self.rank == rank else 0

    def send(self, halves: Sequence[Half]) -> torch.Tensor:
        """Pack the halves, send them as one message, and return the message."""
        packed = [pack(x, bits) for x, bits in halves]
        message = packed[0] if len(packed) == 1 else torch.cat(packed)
        self.channel.send([message])
        return message

    def receive(self, shapes: Sequence[HalfShape]) -> torch.Tensor:
        """Receive the other owner's message with halves of these shapes. It stays packed; see `split`."""
        n_bytes = sum(half_bytes(shape) for shape in shapes)
        return self.channel.receive([Spec(torch.uint8, (n_bytes,))])[0]

    def open(self, halves: Sequence[Half]) -> list[torch.Tensor]:
        """Exchange halves and add them up: public numbers in [0, 2^bits).

        Cost for n bytes of packed halves: 1 round; n bytes each way.
        """
        self.send(halves)
        return add_message(halves, self.receive(shapes_of(halves)))

    def open_bits(self, share: torch.Tensor, bits: int) -> torch.Tensor:
        """Exchange XOR shares of `bits` bits an element, where `bits` is a packing width, and return their XOR.

        Cost for n bytes of packed shares: 1 round; n bytes each way.
        """
        self.send([(share, bits)])
        shape = tuple(share.shape)
        return reduce(share, bits) ^ unpack(self.receive([(shape, bits)]), shape, bits)


def shapes_of(halves: Sequence[Half]) -> list[HalfShape]:
    """Return the shapes of halves."""
    return [(tuple(x.shape), bits) for x, bits in halves]


def half_bytes(shape: HalfShape) -> int:
    """Return the bytes of a packed half."""
    sizes, bits = shape
    return packed_bytes(math.prod(sizes), bits)


def split(message: torch.Tensor, shapes: Sequence[HalfShape]) -> list[Half]:
    """Unpack a message of halves of the given shapes."""
    halves, at = [], 0
    for sizes, bits in shapes:
        end = at + half_bytes((sizes, bits))
        halves.append((unpack(message[at:end], sizes, bits), bits))
        at = end
    return halves


def add_message(mine: Sequence[Half], message: torch.Tensor) -> list[torch.Tensor]:
    """Add the halves in the other owner's message: the opened numbers, in [0, 2^bits)."""
    opened, at = [], 0
    for x, bits in mine:
        end = at + half_bytes((tuple(x.shape), bits))
        opened.append(unpack_onto(message[at:end], x, bits))
        at = end
    return opened


def add_halves(mine: Sequence[Half], theirs: Sequence[Half]) -> list[torch.Tensor]:
    """Add up both owners' halves: the opened numbers, in [0, 2^bits)."""
    return [reduce(x + y, bits) for (x, bits), (y, _) in zip(mine, theirs, strict=True)]


def shift(share: torch.Tensor, bits: int, rank: int) -> torch.Tensor:
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
    return (share >> bits) + (1 if rank == 0 else 0)
