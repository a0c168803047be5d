"""Every bad handshake is refused, keys are private, and both sides check the other's name."""

import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from mpcformer.correlations import MaskKeys, Request, correction_specs, deal, expand, session_key
from mpcformer.errors import ProtocolError, UserInputError
from mpcformer.ring.random import fresh_key
from parties.roles.dealer import DealerService
from parties.settings.config import TlsFiles
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import tls
from parties.wire.correlation_requests import to_wire
from parties.wire.frame import Frame
from parties.wire.frames import from_frames, open_channel, start_server

IDS = ["dealer", "model-owner", "data-owner", "stranger"]
TIMEOUT_S = 5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TlsFiles]:
    return tls.make_certificates(tmp_path_factory.mktemp("tls"), IDS)


@pytest.fixture
def service() -> DealerService:
    return DealerService("dealer", ["model-owner", "data-owner"])


@pytest.fixture
def order(service: DealerService) -> Iterator[Callable[[bytes], None]]:
    """Return a function that orders a session, as a coordinator does."""
    with ExitStack() as sessions:
        yield lambda session: sessions.enter_context(service.session(session, "model-owner", "data-owner"))


@pytest.fixture
def dealer(files: dict[str, TlsFiles], service: DealerService, order: Callable[[bytes], None]) -> Iterator[str]:
    """Return the address of a running dealer at which the session b"s" * 16 is ordered."""
    order(b"s" * 16)
    server, address = start_server(
        lambda s: rpc.add_DealerServicer_to_server(service, s), "127.0.0.1:0", files["dealer"]
    )
    yield address
    server.stop(None)


def call(address: str, files: TlsFiles, peer: str = "dealer", session: bytes = b"s" * 16) -> pb.OpenSessionReply:
    with open_channel(address, peer, files) as channel:
        return rpc.DealerStub(channel).OpenSession(iter([pb.OpenSessionRequest(session_id=session)]), timeout=TIMEOUT_S)


def status(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    code: grpc.StatusCode = error.value.code()
    return code


def test_keys_are_private(files: dict[str, TlsFiles]) -> None:
    for party in files.values():
        assert stat.S_IMODE(party.key.stat().st_mode) == 0o600


def test_owners_get_different_seeds_each_once(
    dealer: str, files: dict[str, TlsFiles], order: Callable[[bytes], None]
) -> None:
    seeds = {call(dealer, files[owner]).seed for owner in ("model-owner", "data-owner")}
    assert len(seeds) == 2
    assert {len(seed) for seed in seeds} == {16}
    with pytest.raises(grpc.RpcError, match="has the seed of this session already") as caught:
        call(dealer, files["model-owner"])
    assert status(caught) == grpc.StatusCode.ALREADY_EXISTS
    with pytest.raises(grpc.RpcError, match="no such session") as caught:
        call(dealer, files["model-owner"], session=b"t" * 16)
    assert status(caught) == grpc.StatusCode.NOT_FOUND
    order(b"t" * 16)
    assert call(dealer, files["model-owner"], session=b"t" * 16).seed not in seeds


def test_another_partys_certificate_is_refused_by_name(dealer: str, files: dict[str, TlsFiles]) -> None:
    with pytest.raises(grpc.RpcError, match=r"stranger.*not served here") as caught:
        call(dealer, files["stranger"])
    assert status(caught) == grpc.StatusCode.PERMISSION_DENIED


def test_no_certificate(dealer: str, files: dict[str, TlsFiles]) -> None:
    credentials = grpc.ssl_channel_credentials(files["dealer"].authority.read_bytes())
    options = [("grpc.ssl_target_name_override", "dealer")]
    with grpc.secure_channel(dealer, credentials, options=options) as channel, pytest.raises(grpc.RpcError):
        rpc.DealerStub(channel).OpenSession(iter([pb.OpenSessionRequest(session_id=b"s" * 16)]), timeout=TIMEOUT_S)


def test_plaintext(dealer: str) -> None:
    with grpc.insecure_channel(dealer) as channel, pytest.raises(grpc.RpcError):
        rpc.DealerStub(channel).OpenSession(iter([pb.OpenSessionRequest(session_id=b"s" * 16)]), timeout=TIMEOUT_S)


def test_another_authority(dealer: str, tmp_path: Path) -> None:
    foreign = tls.make_certificates(tmp_path / "foreign", ["model-owner"])
    with pytest.raises(grpc.RpcError) as caught:
        call(dealer, foreign["model-owner"])
    assert status(caught) == grpc.StatusCode.UNAVAILABLE


def test_the_server_must_be_who_was_meant(dealer: str, files: dict[str, TlsFiles]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(dealer, files["data-owner"], peer="model-owner")
    assert status(caught) == grpc.StatusCode.UNAVAILABLE


def test_a_port_in_use(dealer: str, files: dict[str, TlsFiles]) -> None:
    with pytest.raises(UserInputError, match=f"cannot listen on {dealer}"):
        start_server(lambda server: None, dealer, files["dealer"])


def open_session(address: str, files: dict[str, TlsFiles], session: bytes) -> tuple[bytes, bytes]:
    return tuple(call(address, files[name], session=session).seed for name in ("model-owner", "data-owner"))  # type: ignore[return-value]


def deal_over_wire(address: str, files: TlsFiles, request: pb.DealRequest) -> Iterator[Frame]:
    with open_channel(address, "dealer", files) as channel:
        yield from rpc.DealerStub(channel).Deal(iter([request]), timeout=TIMEOUT_S)


def test_what_is_dealt_is_what_the_seeds_give(
    dealer: str, files: dict[str, TlsFiles], order: Callable[[bytes], None]
) -> None:
    session = fresh_key()
    order(session)
    seeds = open_session(dealer, files, session)
    plan = [Request("additive_triple", ((3, 4), (4, 2)), op="matmul"), Request("truncation", ((5,),), bits=16)]
    message = pb.DealRequest(
        session_id=session, drawn_id=session, first_operation=0, plan=[to_wire(item) for item in plan]
    )
    frames = deal_over_wire(dealer, files["model-owner"], message)
    for operation, item in enumerate(plan):
        correction, _ = from_frames(
            frames, correction_specs(item), session_id=session, sender="dealer", operation=operation
        )
        keys = [session_key(seed, session, operation, item) for seed in seeds]
        assert [t.tolist() for t in correction] == [
            t.tolist() for t in deal(item, *keys, MaskKeys(fresh_key(), fresh_key()))
        ]
        a_0, a_1 = (expand(item, keys[p], p, correction if p == 0 else []).shares for p in (0, 1))
        if item.op == "matmul":
            a, b, c = (x + y for x, y in zip(a_0, a_1, strict=True))
            assert c.tolist() == (a @ b).tolist()


def test_an_operation_is_dealt_once(dealer: str, files: dict[str, TlsFiles], order: Callable[[bytes], None]) -> None:
    session = fresh_key()
    order(session)
    open_session(dealer, files, session)
    plan = [to_wire(Request("square_pair", ((2,),)))]
    message = pb.DealRequest(session_id=session, drawn_id=session, first_operation=0, plan=plan)
    assert len(list(deal_over_wire(dealer, files["model-owner"], message))) == 1
    for first in (0, 2):
        with pytest.raises(grpc.RpcError, match="each is dealt once") as caught:
            list(
                deal_over_wire(
                    dealer,
                    files["model-owner"],
                    pb.DealRequest(session_id=session, drawn_id=session, first_operation=first, plan=plan),
                )
            )
        assert status(caught) == grpc.StatusCode.ALREADY_EXISTS


def test_a_batch_begins_no_later_than_its_parts(
    dealer: str, files: dict[str, TlsFiles], order: Callable[[bytes], None]
) -> None:
    session = fresh_key()
    order(session)
    open_session(dealer, files, session)
    plan = [to_wire(Request("square_pair", ((2,),)))]
    message = pb.DealRequest(session_id=session, drawn_id=session, batch_operation=1, plan=plan)
    with pytest.raises(grpc.RpcError, match="a batch that begins with operation 1, after its part from 0 on") as caught:
        list(deal_over_wire(dealer, files["model-owner"], message))
    assert status(caught) == grpc.StatusCode.INVALID_ARGUMENT


def test_the_dealer_deals_to_the_model_owner_only_and_after_both_opened(
    dealer: str, files: dict[str, TlsFiles], order: Callable[[bytes], None]
) -> None:
    session, plan = fresh_key(), [to_wire(Request("square_pair", ((2,),)))]
    order(session)
    message = pb.DealRequest(session_id=session, drawn_id=session, first_operation=0, plan=plan)
    call(dealer, files["model-owner"], session=session)
    with pytest.raises(grpc.RpcError, match="both owners must open"):
        list(deal_over_wire(dealer, files["model-owner"], message))
    with pytest.raises(grpc.RpcError, match="corrections are for model-owner, not data-owner"):
        list(deal_over_wire(dealer, files["data-owner"], message))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([], r"a plan of 0 operations"),
        ([Request("os.system", ((1,),))], "unknown"),
        ([Request("square_pair", ((1 << 40,),))], "exceeds"),
        ([Request("additive_triple", ((2, 3), (2, 3)), op="matmul")], "not defined"),
    ],
)
def test_impossible_plans_take_no_memory(
    dealer: str, files: dict[str, TlsFiles], order: Callable[[bytes], None], plan: list[Request], message: str
) -> None:
    session = fresh_key()
    order(session)
    open_session(dealer, files, session)
    request = pb.DealRequest(
        session_id=session, drawn_id=session, first_operation=0, plan=[to_wire(item) for item in plan]
    )
    with pytest.raises(grpc.RpcError, match=message) as caught:
        list(deal_over_wire(dealer, files["model-owner"], request))
    assert status(caught) == grpc.StatusCode.INVALID_ARGUMENT


def test_protocol_errors_are_typed() -> None:
    assert issubclass(ProtocolError, Exception)
    assert ProtocolError("x").exit_code == 4
