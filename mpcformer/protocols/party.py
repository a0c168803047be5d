"""One owner inside a protocol: its rank, its channel, its correlations; and how shares are opened and shifted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from mpcformer.channel import Channel, Spec
from mpcformer.correlations import Dealt, Request
from mpcformer.ring.packing import pack, packed_bytes, reduce, unpack

MODEL_OWNER, DATA_OWNER = 0, 1
# A half of an opening: this party's masked share, and the ring's width in bits.
Half = tuple[torch.Tensor, int]


class Store(Protocol):
    """Where correlations come from."""

    def take(self, request: Request) -> Dealt:
        """The next operation's correlation."""

    def preview(self, operation: int, request: Request) -> Dealt:
        """Party 1 only: the part of a later operation."""

    def skip(self, request: Request) -> None:
        """Party 1 only: the next operation was looked at ahead."""


@dataclass
class Party:
    """What a protocol runs on.

    Args:
        rank: 0 model owner, 1 data owner.
        channel: to the other owner.
        store: correlations, used in order.
    """

    rank: int
    channel: Channel
    store: Store

    def take(self, request: Request) -> list[torch.Tensor]:
        """This party's tensors of the next correlation."""
        return self.store.take(request).shares

    def only(self, rank: int, value: torch.Tensor | int) -> torch.Tensor | int:
        """`value` at party `rank`, 0 at the other: how a public number joins a sharing."""
        return value if self.rank == rank else 0

    def send(self, halves: Sequence[Half]) -> torch.Tensor:
        """Send packed halves as one message; the message."""
        packed = [pack(x, bits) for x, bits in halves]
        message = packed[0] if len(packed) == 1 else torch.cat(packed)
        self.channel.send([message])
        return message

    def receive(self, shapes: Sequence[tuple[Sequence[int], int]]) -> torch.Tensor:
        """The other party's message of the given shapes and widths, still packed."""
        return self.channel.receive([Spec(torch.uint8, (_n_bytes(shapes),))])[0]

    def open(self, halves: Sequence[Half]) -> list[torch.Tensor]:
        """Exchange halves and add them: public numbers, in [0, 2^bits). One round, both ways."""
        self.send(halves)
        shapes = [(tuple(x.shape), bits) for x, bits in halves]
        return add_halves(halves, self.receive(shapes))

    def open_bits(self, share: torch.Tensor, bits: int) -> torch.Tensor:
        """Exchange XOR shares of `bits` bits an element, a packing width: their XOR. One round, both ways."""
        shape = tuple(share.shape)
        self.send([(share, bits)])
        return reduce(share, bits) ^ unpack(self.receive([(shape, bits)]), shape, bits)


def add_halves(halves: Sequence[Half], theirs: torch.Tensor) -> list[torch.Tensor]:
    """One's own halves and the other's packed ones, added up."""
    opened, at = [], 0
    for x, bits in halves:
        end = at + packed_bytes(x.numel(), bits)
        opened.append(reduce(x + unpack(theirs[at:end], tuple(x.shape), bits), bits))
        at = end
    return opened


def combine(
    mine: torch.Tensor, theirs: torch.Tensor, shapes: Sequence[tuple[Sequence[int], int]]
) -> list[torch.Tensor]:
    """Two packed messages of halves, added up."""
    opened, at = [], 0
    for shape, bits in shapes:
        end = at + _n_bytes([(shape, bits)])
        total = unpack(mine[at:end], shape, bits) + unpack(theirs[at:end], shape, bits)
        opened.append(reduce(total, bits))
        at = end
    return opened


def shift(share: torch.Tensor, bits: int, rank: int) -> torch.Tensor:
    """[x / 2^bits] over Z_2^(k - bits) from [x] over Z_2^k, without a message.

    Ideal function: floor(x / 2^bits), plus one with the probability of the fraction cut off plus 2^-bits.
    Shapes: any; result the same.
    Scale: f -> f - bits, and the ring loses as many bits; a negative `bits` shifts up.
    Range and error: all of the ring; 1 ulp.
    Cost: 0 rounds, 0 bytes.
    Source: local truncation without lifting, Cheetah (Huang et al., USENIX Security 2022), section 5.1.
    """
    if bits <= 0:
        return share << -bits
    return (share >> bits) + (1 if rank == 0 else 0)


def _n_bytes(shapes: Sequence[tuple[Sequence[int], int]]) -> int:
    total = 0
    for shape, bits in shapes:
        n_elements = 1
        for size in shape:
            n_elements *= size
        total += packed_bytes(n_elements, bits)
    return total
