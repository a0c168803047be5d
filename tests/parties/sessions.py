"""Small and fast sessions over real connections: both ends in this process, mutual TLS, a relay between them."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import grpc
import torch

from mpcformer.channel import Spec
from mpcformer.correlations import MaskKeys, Request, correction_specs, deal, session_key
from mpcformer.errors import MPCFormerError, PartyError
from mpcformer.ring.random import fresh_key
from parties.roles.dealer import DealerService
from parties.runs.network import NetworkProfile, Relay, Side
from parties.settings.config import TlsFiles
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire.callers import require_caller
from parties.wire.correlation_requests import to_wire
from parties.wire.frame import Frame
from parties.wire.frames import from_frames, open_channel, start_server
from parties.wire.peer_channel import PeerChannel
from tests.faults.injector import Fault, attacked

FAST = NetworkProfile("x", 0.0, 1e9)
# The messages that an owner sends, such as openings, headers, packed words and products: about 60 kB each way.
MESSAGES: list[list[tuple[torch.dtype, tuple[int, ...]]]] = [
    [(torch.int64, (3,))],
    [(torch.int64, (16, 128)), (torch.uint8, (4000,))],
    [(torch.uint8, (32,))],
    [(torch.int64, (2, 4, 16, 16)), (torch.int64, (16, 8)), (torch.uint8, (999,))],
    [(torch.uint8, (16_000,))],
    [(torch.uint8, (1,))],
]
# About 60 kB of corrections, all of kinds whose result follows from the seeds alone.
PLAN = [
    Request("square_pair", ((16, 64),)),
    Request("matmul_masks", ((4, 32, 8), (4, 32, 8)), bits=40),
    Request("truncation", ((9, 9),), bits=16),
    Request("lifted", ((16, 64),), op="square", bits=32),
]
# How long an owner waits for a message before it ends the session, and how long a session may last.
DEADLINE_S, LIMIT_S, POLL_S = 2.5, 15.0, 0.01


@dataclass
class Outcome:
    """How a session ended at both ends.

    Args:
        errors: the error of each end that did not receive all its values.
        wrong: the ends that received other values than were sent.
        n_seen: the bytes that passed the relay in each direction.
        seconds: how long the session took.
    """

    errors: dict[str, BaseException] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    n_seen: dict[Side, int] = field(default_factory=dict)
    seconds: float = 0.0

    def check(self) -> None:
        """Assert that each end received the right values, or raised a typed error, in time."""
        assert not self.wrong, self.wrong
        untyped = {name: repr(error) for name, error in self.errors.items() if not isinstance(error, MPCFormerError)}
        assert not untyped, untyped
        assert self.seconds < LIMIT_S


def message(sender: str, index: int) -> list[torch.Tensor]:
    """Return what `sender` sends at a turn; the values differ for each sender and turn."""
    start = 1 + index + 100 * (sender == "model-owner")
    tensors = []
    for dtype, shape in MESSAGES[index]:
        n = int(torch.tensor(shape).prod())
        tensors.append((torch.arange(start, start + n) * 0x9E3779B97F4A7C15).to(dtype).view(shape))
    return tensors


class PeerService(rpc.PeerServicer):
    """Hands its one stream to a channel, as the model owner does."""

    def __init__(self, channel: PeerChannel) -> None:
        self._channel = channel

    def Exchange(self, request_iterator: Iterator[Frame], context: grpc.ServicerContext) -> Iterator[Frame]:  # noqa: N802
        require_caller(context, "data-owner")
        self._channel.attach(request_iterator, context.cancel)
        yield from self._channel.outgoing()


def owners_session(
    files: dict[str, TlsFiles], fault: Fault | None, strike: Callable[[Relay], None] | None = None
) -> Outcome:
    """Let both owners exchange MESSAGES through a relay with a fault; each waits for the other at every turn.

    An end that fails leaves the stream, as if its process ended; nobody else tells the other end. `strike` is called
    with the relay after the third turn.
    """
    outcome, session = Outcome(), fresh_key()
    channels = {
        "model-owner": PeerChannel(party_id="model-owner", peer_id="data-owner", session_id=session),
        "data-owner": PeerChannel(party_id="data-owner", peer_id="model-owner", session_id=session),
    }
    service = PeerService(channels["model-owner"])
    server, address = start_server(
        lambda s: rpc.add_PeerServicer_to_server(service, s), "127.0.0.1:0", files["model-owner"]
    )
    relay = attacked(address, FAST, fault)
    link = open_channel(relay.address, "model-owner", files["data-owner"])
    stream = rpc.PeerStub(link).Exchange(channels["data-owner"].outgoing(), wait_for_ready=True)
    channels["data-owner"].attach(stream, stream.cancel)

    def run(me: str, peer: str) -> None:
        channel = channels[me]
        try:
            for index in range(len(MESSAGES)):
                channel.send(message(me, index))
                expected = message(peer, index)
                received = channel.receive([Spec.of(t) for t in expected])
                if not all(torch.equal(a, b) for a, b in zip(received, expected, strict=True)):
                    outcome.wrong.append(me)
                if strike and me == "data-owner" and index == 2:
                    strike(relay)
        except BaseException as error:
            outcome.errors[me] = error
            channel.abort(PartyError(me, "it left"))

    owners = ("model-owner", "data-owner"), ("data-owner", "model-owner")
    started = time.monotonic()
    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in owners]
    for thread in threads:
        thread.start()
    _watch(threads, channels)
    outcome.seconds = time.monotonic() - started
    outcome.n_seen = {side: relay.n_seen(side) for side in ("party", "caller")}
    for channel in channels.values():
        channel.close()
    relay.close()
    link.close()
    server.stop(0)  # The test does not wait for the server, because it must end.
    return outcome


def _watch(threads: list[threading.Thread], channels: dict[str, PeerChannel]) -> None:
    """End a session in which an end waits too long, as the heartbeat of a party does."""
    ends_at = time.monotonic() + LIMIT_S
    while any(thread.is_alive() for thread in threads) and time.monotonic() < ends_at:
        for me, channel in channels.items():
            if channel.waited_s() > DEADLINE_S:
                channel.abort(PartyError(next(name for name in channels if name != me), "sent nothing"))
        threads[0].join(POLL_S)
        threads[1].join(POLL_S)


def dealer_session(files: dict[str, TlsFiles], fault: Fault | None) -> Outcome:
    """Let both owners open a session at the dealer, and the model owner fetch PLAN, through a relay with a fault."""
    outcome, session = Outcome(), fresh_key()
    service = DealerService("dealer", ["model-owner", "data-owner"])
    ordered = service.session(session, "model-owner", "data-owner")
    ordered.__enter__()
    server, address = start_server(
        lambda s: rpc.add_DealerServicer_to_server(service, s), "127.0.0.1:0", files["dealer"]
    )
    relay = attacked(address, FAST, fault)
    links = {name: open_channel(relay.address, "dealer", files[name]) for name in ("data-owner", "model-owner")}
    started, me = time.monotonic(), "data-owner"
    try:
        seeds = {}
        for me, link in links.items():
            request = pb.OpenSessionRequest(session_id=session)
            reply = rpc.DealerStub(link).OpenSession(iter([request]), timeout=DEADLINE_S, wait_for_ready=True)
            seeds[me] = bytes(reply.seed)
        deal_request = pb.DealRequest(
            session_id=session, drawn_id=session, first_operation=0, plan=[to_wire(item) for item in PLAN]
        )
        frames = rpc.DealerStub(links["model-owner"]).Deal(iter([deal_request]), timeout=DEADLINE_S)
        for operation, item in enumerate(PLAN):
            labels = {"session_id": session, "sender": "dealer", "operation": operation}
            received, _ = from_frames(frames, correction_specs(item), **labels)
            keys = [session_key(seeds[name], session, operation, item) for name in ("model-owner", "data-owner")]
            expected = deal(item, *keys, MaskKeys(fresh_key(), fresh_key()))
            if not all(torch.equal(a, b) for a, b in zip(received, expected, strict=True)):
                outcome.wrong.append(me)
    except grpc.RpcError as error:
        # An owner reports the error in this way.
        outcome.errors[me] = PartyError("dealer", f"it stopped: {error.details()}")  # type: ignore[attr-defined]
    except BaseException as error:
        outcome.errors[me] = error
    outcome.seconds = time.monotonic() - started
    outcome.n_seen = {side: relay.n_seen(side) for side in ("party", "caller")}
    relay.close()
    for link in links.values():
        link.close()
    server.stop(0)  # The test does not wait for the server, because it must end.
    return outcome
