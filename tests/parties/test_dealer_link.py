"""A dealer that does not do as it was asked is named by the error, in sessions and in programs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpcformer.channel import memory_pair
from mpcformer.correlations import Request
from mpcformer.engines.base import MODEL_OWNER
from mpcformer.errors import PartyError
from mpcformer.ring.random import fresh_key
from parties.program_process.store import ProgramStore
from parties.roles.dealer import DealerService
from parties.session.audit import Audit
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire.dealer_link import DealerLink
from parties.wire.frame import Frame
from parties.wire.frames import start_server
from parties.wire.tls import make_certificates

PLAN = [Request("square_pair", ((16, 64),)), Request("truncation", ((9, 9),), bits=16)]
SESSION = fresh_key()
# What a dealer makes of the frames that it should send.
Spoil = Callable[[list[Frame]], list[Frame]]


SPOILS = [
    pytest.param(lambda frames: frames[:-1], "dealer: it dealt less than the plan", id="less"),
    pytest.param(lambda frames: [*frames, frames[-1]], "dealer: it dealt more than the plan", id="more"),
    pytest.param(lambda frames: frames[::-1], "operation is 1, expected 0", id="another order"),
]


class WrongDealer(DealerService):
    """A dealer that sends something else than it should."""

    spoil: Spoil

    def Deal(self, request_iterator: Iterator[Any], context: Any) -> Iterator[Frame]:  # noqa: N802 (gRPC's name)
        yield from self.spoil(list(super().Deal(request_iterator, context)))


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Callable[[Spoil], DealerLink]]:
    """Return a model owner's connection to a dealer that spoils what it sends."""
    files = make_certificates(tmp_path / "tls", ["dealer", "model-owner", "data-owner"], keep_authority=False)
    service = WrongDealer("dealer", ["model-owner", "data-owner"])
    server, address = start_server(
        lambda s: rpc.add_DealerServicer_to_server(service, s), "127.0.0.1:0", files["dealer"]
    )
    opened: list[DealerLink] = []

    def connect(spoil: Spoil) -> DealerLink:
        service.spoil = spoil
        opened.extend(DealerLink("dealer", address, files[name], SESSION) for name in ("model-owner", "data-owner"))
        opened[-1].open(5)
        return opened[-2]

    with service.session(SESSION, "model-owner", "data-owner"):
        yield connect
    for each in opened:
        each.close()
    server.stop(0)


def store_of(dealer: DealerLink, pool_bytes: int) -> ProgramStore:
    seed, channel = bytes(dealer.open(5).seed), memory_pair(5)[0]
    audit = Audit(rank=MODEL_OWNER, rate=0.0, channel=channel, session_id=SESSION, dealer="dealer")
    return ProgramStore(
        rank=MODEL_OWNER,
        seed=seed,
        drawn_id=SESSION,
        plan=PLAN,
        dealer=dealer,
        channel=channel,
        pool_bytes=pool_bytes,
        audit=audit,
    )


def use(store: ProgramStore) -> None:
    store.deal()
    for request in PLAN:
        store.take(request)
    store.end()


@pytest.mark.parametrize(("spoil", "message"), SPOILS)
def test_a_session_blames_the_dealer(link: Callable[[Spoil], DealerLink], spoil: Spoil, message: str) -> None:
    dealer = link(spoil)
    dealer.open(5)
    with (
        pytest.raises(PartyError, match=message),
        dealer.dealing(PLAN, drawn_id=SESSION, batch_operation=0, first=0) as frames,
    ):
        dealer.receive(frames, PLAN, 0, lambda *_: None)
    assert dealer.waited_s() == 0


@pytest.mark.parametrize("pool_bytes", [1 << 20, 1])
@pytest.mark.parametrize(("spoil", "message"), SPOILS)
def test_a_program_blames_the_dealer(
    link: Callable[[Spoil], DealerLink], spoil: Spoil, message: str, pool_bytes: int
) -> None:
    """Whether its plan waits in the pool or is dealt while it runs."""
    dealer = link(spoil)
    with pytest.raises(PartyError, match=message):
        use(store_of(dealer, pool_bytes))
    assert dealer.waited_s() == 0


@pytest.mark.parametrize("pool_bytes", [1 << 20, 1])
def test_what_a_right_dealer_sends_is_counted(link: Callable[[Spoil], DealerLink], pool_bytes: int) -> None:
    store = store_of(link(lambda frames: frames), pool_bytes)
    use(store)
    assert store.n_left == 0
    assert store.bytes_from_dealer > 8 * (16 * 64 + 2 * 9 * 9)
