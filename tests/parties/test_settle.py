"""An end of the owners' stream can wait until little of what it sends is queued, and no such wait is without end."""

import threading
import weakref

import pytest
import torch

from mpcformer.channel import memory_pair
from mpcformer.engines.dry_run import SilentChannel
from mpcformer.errors import PartyError
from parties.wire.peer_channel import PeerChannel


def channel() -> PeerChannel:
    return PeerChannel(party_id="model-owner", peer_id="data-owner", session_id=b"s" * 16)


def test_it_waits_until_messages_have_left() -> None:
    end = channel()
    for _ in range(3):
        end.send([torch.zeros(1000, dtype=torch.uint8)])
    end.settle(3000)
    outgoing, done = end.outgoing(), threading.Event()
    next(outgoing)

    def wait() -> None:
        end.settle(1500)
        done.set()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    next(outgoing)
    assert not done.wait(0.3), "two messages are queued, or their last frame is with gRPC"
    assert end.waited_s() > 0
    next(outgoing)
    assert done.wait(5)
    waiting.join(5)
    assert end.waited_s() == 0


def test_what_has_left_is_not_kept() -> None:
    end, message = channel(), torch.zeros(1000, dtype=torch.uint8)
    sent, outgoing = weakref.ref(message), end.outgoing()
    end.send([message])
    del message
    waiting = threading.Thread(target=lambda: list(outgoing), daemon=True)
    waiting.start()
    end.settle(0)
    assert sent() is None
    end.close()
    waiting.join(5)


def test_an_aborted_or_ended_stream_ends_the_wait() -> None:
    aborted, ended = channel(), channel()
    for end in (aborted, ended):
        end.send([torch.zeros(1000, dtype=torch.uint8)])
    aborted.abort(PartyError("data-owner", "it left"))
    with pytest.raises(PartyError, match="it left"):
        aborted.settle(10)
    frames = ended.outgoing()
    next(frames)
    frames.close()
    with pytest.raises(PartyError, match="ended"):
        ended.settle(10)


def test_channels_without_a_queue_never_wait() -> None:
    left, _ = memory_pair()
    left.send([torch.zeros(1000)])
    left.settle(0)
    SilentChannel().settle(0)
