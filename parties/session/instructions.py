"""What the data owner tells the model owner to do next, on the two streams of a session.

Correlations are dealt on one stream and used on the other, so that a batch can be dealt while another is computed. Each
step begins with an instruction of the data owner; the model owner checks it against its own limits.
"""

from enum import IntEnum

import torch

from mpcformer.channel import Spec
from mpcformer.errors import ProtocolError
from parties.wire.peer_channel import PeerChannel

SPEC = Spec(torch.int64, (4,))
# The data owner tells of at most so many new shapes at once. Between two questions the model owner plans no more.
MOST_PLANNED = 8
# What the model owner answers when a batch may go on.
GRANTED = 0


class Verb(IntEnum):
    """What to do next, and the numbers that say with what.

    On the stream for dealing: DEAL (sentences, padded length) makes the correlations of one batch. FORGET (number of
    the batch) drops them. COMPUTE (sentences, padded length, sentences to tell) deals and computes a batch part by
    part, because its correlations are too large to wait. On the stream for asking: PLAN (sentences, padded length) says
    for which batches the data owner makes a plan now, so that the model owner makes it at the same time; it is a hint,
    which may be passed over. ASK (number of the batch, sentences to tell) computes a batch that was dealt, or is being
    dealt. END (on both) closes the stream. After COMPUTE and ASK the model owner answers whether its budget allows
    that, and if it does, the data owner sends the mask of the batch.
    """

    END = 0
    DEAL = 1
    FORGET = 2
    COMPUTE = 3
    ASK = 4
    PLAN = 5


def tell(channel: PeerChannel, verb: Verb, *numbers: int) -> None:
    """Send an instruction with up to three numbers."""
    channel.send([torch.tensor([verb, *numbers, *[0] * (3 - len(numbers))])])


def next_instruction(channel: PeerChannel, *allowed: Verb) -> tuple[Verb, list[int]]:
    """Wait, for as long as it takes, for the next instruction and return it.

    Raises:
        ProtocolError: it is none of `allowed` and not END.
    """
    verb, *numbers = channel.receive_at_leisure([SPEC])[0].tolist()
    if verb not in (*allowed, Verb.END):
        raise ProtocolError(
            f"the data owner sent instruction {verb} on a stream for {', '.join(v.name for v in allowed)}"
        )
    return Verb(verb), numbers


def answer(channel: PeerChannel, word: int) -> None:
    """Answer an instruction: GRANTED, or the seconds until the data owner may ask again, or -1 if it never may."""
    channel.send([torch.tensor([word])])


def receive_answer(channel: PeerChannel) -> int:
    """Return the model owner's answer to an instruction."""
    return int(channel.receive([Spec(torch.int64, (1,))])[0])
