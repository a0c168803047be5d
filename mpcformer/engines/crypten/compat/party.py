"""The party of one session that CrypTen's globals stand for in a thread: its channel, correlations and random streams.

A party's state belongs to a thread, because tests run both parties in one process.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from mpcformer.channel import Channel, Spec
from mpcformer.engines.crypten.compat.library import crypten
from mpcformer.engines.crypten.compat.settings import fresh_settings
from mpcformer.errors import ProtocolError
from mpcformer.ring.random import Stream, derive_key, fresh_key

# How values are compared: by CrypTen's adder of bits, or by keys of signs.
BITS, KEYS = "bits", "keys"
_local = threading.local()


class PartyState:
    """The party of one session that CrypTen's globals stand for in this thread.

    Args:
        rank: 0 or 1.
        channel: the channel to the other party; None while planning.
        store: the correlations, an object with `take(request) -> Dealt`.
        zero_key: 16 bytes that both parties and nobody else know, for pseudo-random sharings of zero.
        watch: called with the name of an operation before it makes a shared value or a message of its own known; it
            raises if that is not allowed. What protocols open is masked, and is not reported.

    Attributes:
        comparisons: how values are compared, BITS or KEYS.
    """

    def __init__(
        self,
        *,
        rank: int,
        channel: Channel | None,
        store: Any,
        zero_key: bytes,
        watch: Callable[[str], None] | None = None,
    ) -> None:
        self.rank = rank
        self.channel = channel
        self.store = store
        self.n_openings = 0
        self.comparisons = BITS
        self.watch = watch or (lambda operation: None)
        streams = [Stream(derive_key(zero_key, "zero sharing", i)) for i in range(2)]
        # In a ring of two, "prev" and "next" are the same neighbour: party 0's next is party 1's prev. "local" is known
        # to this party alone, "global" to both.
        self.generators = {
            "prev": streams[rank],
            "next": streams[1 - rank],
            "local": Stream(fresh_key()),
            "global": Stream(derive_key(zero_key, "known to both")),
        }
        self.communicator: Any = crypten.communicator.DistributedCommunicator(self)

    def use(self, channel: Channel, store: Any) -> None:
        """Go on with another channel to the same party, and with other correlations."""
        self.channel, self.store = channel, store

    def open(self, mine: Sequence[torch.Tensor], *, xor: bool = False, dst: int | None = None) -> list[Any]:
        """Exchange shares and combine them, in one round for all tensors.

        Args:
            mine: this party's shares, which must not change afterwards; tensors without elements take no message.
            xor: combine by XOR instead of by sum.
            dst: the one party that learns the values; the other one gets a list of None.
        """
        combine = torch.bitwise_xor if xor else torch.add
        self.n_openings += 1
        if self.channel is None:
            return [torch.empty_like(tensor) for tensor in mine]
        sent = [tensor for tensor in mine if tensor.numel()]
        theirs: list[torch.Tensor] = []
        if sent and self.rank != dst:
            self.channel.send(sent)
        if self.rank == dst or dst is None:
            if sent:
                theirs = self.channel.receive([Spec.of(tensor) for tensor in sent])
        else:
            return [None] * len(mine)
        arrived = iter(theirs)
        return [combine(tensor, next(arrived)) if tensor.numel() else tensor for tensor in mine]


def agree_on_zero_key(channel: Channel, rank: int) -> bytes:
    """Return a key for sharings of zero: half of it is from each party, and the dealer does not know it. One round."""
    mine = fresh_key()
    channel.send([torch.frombuffer(bytearray(mine), dtype=torch.uint8)])
    theirs = bytes(channel.receive([Spec(torch.uint8, (len(mine),))])[0].tolist())
    halves = (theirs, mine) if rank else (mine, theirs)
    return derive_key(halves[0], "zero sharing", halves[1])


def current() -> PartyState:
    """Return this thread's party.

    Raises:
        ProtocolError: no party is active, so CrypTen has nobody to talk to.
    """
    state: PartyState | None = getattr(_local, "state", None)
    if state is None:
        raise ProtocolError("CrypTen was called outside `active(party)`")
    return state


def has_party() -> bool:
    """Return whether this thread has a party."""
    return getattr(_local, "state", None) is not None


@contextmanager
def active(state: PartyState, *, gradients: bool = False) -> Iterator[None]:
    """Make `state` this thread's party, with CrypTen's settings as this release has them.

    Args:
        state: the party.
        gradients: whether CrypTen records what gradients need.
    """
    before = getattr(_local, "state", None)
    _local.state = state
    try:
        with fresh_settings(), crypten.enable_grad() if gradients else crypten.no_grad():
            yield
    finally:
        _local.state = before
