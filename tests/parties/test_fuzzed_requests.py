"""Requests that break the dealer's rules are refused by a ProtocolError; all others are dealt as specified."""

import math
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator

import grpc
import pytest
import torch
from google.protobuf.message import DecodeError

from mpcformer.correlations import MaskKeys, Request, correction_specs, deal, validate
from mpcformer.correlations.kinds import KINDS
from mpcformer.correlations.table import TableSpec
from mpcformer.errors import ProtocolError
from parties.roles.dealer import DealerService
from parties.settings.config import TlsFiles
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import tls
from parties.wire.correlation_requests import from_wire, to_wire
from parties.wire.frames import open_channel, start_server
from tests.parties.test_fuzzed_frames import garble

N_REQUESTS, N_CALLS = 10_000, 300
SESSION = b"s" * 16
SMALL = 1 << 16
TABLE = TableSpec("rsqrt", 4, 10, 2.0**-12, 0.01, 100.0, 13).request(3)
HONEST = [
    Request("additive_triple", ((2, 3), (3, 4)), op="matmul"),
    Request("additive_triple", ((2, 3), (3,)), op="mul"),
    Request("square_pair", ((2, 3),)),
    Request("truncation", ((5,),), bits=16),
    Request("binary_triple", ((3, 1), (2,))),
    Request("bit_pair", ((4,),)),
    Request("sign", ((2, 2),)),
    Request("linear", ((2, 3), (3, 4), (3,)), op="query,diagonal", bits=32),
    Request("matmul_masks", ((2, 3, 4), (2, 5, 4)), bits=40),
    Request("lifted", ((2, 3),), op="square", bits=32),
    Request("lifted", ((2, 3),), op="length", bits=32),
    Request("lifted", ((2, 3), (2, 1)), op="norm", bits=24),
    Request("lifted", ((2, 3), (2, 1)), op="scale", bits=56),
    Request("piecewise", ((3,),), op="square", bits=32, params=(2.0, 0.0, 1.0, 2.0)),
    TABLE,
    TableSpec("guard", 3, 0, 1.0, 1.0, 2.0, 0).request(2),
    Request("zero_test", ((1,),)),
]
SIZES = (0, 1, 2, 3, 4, 5, 7, 64, 1 << 16, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
PARAMS = (0.0, 1.0, 2.0, 3.0, 8.0, 12.0, 48.0, -1.0, 0.5, 1e-320, 1e300, -1e300, math.inf, math.nan)
OPS = (
    "",
    "mul",
    "matmul",
    "plain",
    "square",
    "length",
    "norm",
    "scale",
    "tanh",
    "reciprocal",
    "guard",
    "a,b",
    ",",
    "é\0",
    "x" * 9,
)


def change(message: pb.CorrelationRequest, generator: random.Random) -> None:
    """Change one field to a value that may be right for other requests, or for none."""
    shape = generator.choice(message.shapes) if message.shapes else message.shapes.add()
    size, param = generator.choice(SIZES), generator.choice(PARAMS)
    place = generator.randrange(8)
    changes: list[Callable[[], object]] = [
        lambda: setattr(message, "kind", generator.choice((*KINDS, "", "os.system", "k" * 5000))),
        lambda: setattr(message, "op", generator.choice((*OPS, "o" * 5000))),
        lambda: setattr(message, "bits", generator.choice((0, 1, 8, 24, 32, 56, 61, 63, 64, 65, (1 << 32) - 1))),
        lambda: shape.sizes.append(size),
        lambda: shape.sizes.__setitem__(slice(place % 3, place % 3 + 1), [size]),
        lambda: shape.sizes.__setitem__(slice(None), [1] * generator.choice((0, 1, 2, 3, 20, 70))),
        lambda: shape.sizes.__setitem__(slice(None), [generator.randint(1, 4) for _ in range(place)]),
        lambda: message.shapes.add(sizes=list(shape.sizes)),
        lambda: message.shapes.extend(list(message.shapes) * place),
        lambda: message.shapes.pop(),
        lambda: message.params.append(param),
        lambda: message.params.__setitem__(slice(place, place + 1), [param]),
        lambda: message.params.__setitem__(slice(place, None), []),
    ]
    generator.choice(changes)()


def fuzzed(index: int) -> pb.CorrelationRequest:
    """Return an honest request with one to three changed fields, or every third time with changed bytes."""
    generator = random.Random(index)
    message = to_wire(generator.choice(HONEST))
    if index % 3:
        for _ in range(generator.randint(1, 3)):
            change(message, generator)
        return message
    while True:
        try:
            return pb.CorrelationRequest.FromString(garble(message.SerializeToString(), generator))
        except DecodeError:
            continue


def is_small(request: Request) -> bool:
    """Return whether a request is small enough to be dealt in a test."""
    sizes = [math.prod(shape) for shape in request.shapes]
    return sum(sizes) + sum(spec.n_bytes for spec in correction_specs(request)) < SMALL


def refusal(request: Request) -> str:
    """Return why a request is refused, or an empty string."""
    try:
        validate(request)
    except ProtocolError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("request_", HONEST, ids=[f"{r.kind}-{r.op}" for r in HONEST])
def test_the_honest_ones_are_valid(request_: Request) -> None:
    assert from_wire(to_wire(request_)) == request_
    assert not refusal(request_)
    assert is_small(request_)


def test_fuzzed_requests_are_refused_or_dealt_as_specified() -> None:
    n_valid = n_dealt = 0
    for index in range(N_REQUESTS):
        request = from_wire(fuzzed(index))
        if reason := refusal(request):
            assert len(reason) < 3000, "it travels, too"
            continue
        n_valid += 1
        if is_small(request):
            n_dealt += 1
            dealt = deal(request, b"a" * 16, b"b" * 16, MaskKeys(b"c" * 16, b"d" * 16))
            specs = [(spec.dtype, spec.shape) for spec in correction_specs(request)]
            assert [(tensor.dtype, tuple(tensor.shape)) for tensor in dealt] == specs, request
    assert N_REQUESTS / 20 < n_dealt <= n_valid < N_REQUESTS / 2


def test_validation_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [from_wire(fuzzed(index)) for index in range(N_REQUESTS // 4)]
    for request in requests:
        refusal(request)  # The first use makes torch import modules, which is not to be counted.

    def refuse(*args: object, **kwargs: object) -> torch.Tensor:
        raise AssertionError("a tensor was made")

    for name in ("empty", "zeros", "ones", "arange", "tensor"):
        monkeypatch.setattr(torch, name, refuse)
    tracemalloc.start()
    for request in requests:
        refusal(request)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 18


@pytest.mark.parametrize(
    "request_",
    [
        Request("square_pair", ((127,) * 1_000_000,)),
        Request("square_pair", ((2,),) * 1_000_000),
        Request("k" * 1_000_000, ((2,),)),
        Request("additive_triple", ((2,), (2,)), op="o" * 1_000_000),
        Request("piecewise", ((2,),), op="plain", bits=32, params=(1.0,) * 500_000),
    ],
    ids=["dimensions", "operands", "kind", "op", "params"],
)
def test_a_message_full_of_claims_is_refused_at_once_and_in_few_words(request_: Request) -> None:
    started = time.monotonic()
    with pytest.raises(ProtocolError) as caught:
        validate(request_)
    assert time.monotonic() - started < 0.5
    assert len(str(caught.value)) < 500


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TlsFiles]:
    return tls.make_certificates(tmp_path_factory.mktemp("tls"), ["dealer", "model-owner", "data-owner"])


@pytest.fixture
def stubs(files: dict[str, TlsFiles]) -> Iterator[list[rpc.DealerStub]]:
    """Return the stubs with which model owner and data owner call a running dealer."""
    service = DealerService("dealer", ["model-owner", "data-owner"])
    server, address = start_server(
        lambda s: rpc.add_DealerServicer_to_server(service, s), "127.0.0.1:0", files["dealer"]
    )
    links = [open_channel(address, "dealer", files[name]) for name in ("model-owner", "data-owner")]
    with service.session(SESSION, "model-owner", "data-owner"):
        yield [rpc.DealerStub(link) for link in links]
    for link in links:
        link.close()
    server.stop(0)


def test_fuzzed_calls_of_the_dealer(stubs: list[rpc.DealerStub]) -> None:
    """The service answers or says why it refuses: no call ends with an exception inside the dealer."""
    generator, refused, n_dealt = random.Random(0), set(), 0
    session, first = SESSION, 0
    for stub in stubs:
        stub.OpenSession(iter([pb.OpenSessionRequest(session_id=session)]), timeout=5)
    for index in range(N_CALLS):
        plan = [fuzzed(index + N_REQUESTS)] * generator.choice((0, 1, 1, 1, 2))
        requests = [from_wire(item) for item in plan]
        if any(not refusal(request) and not is_small(request) for request in requests):
            continue
        message = pb.DealRequest(session_id=session, drawn_id=session, first_operation=first, plan=plan)
        if index % 9 == 0:
            message.first_operation = generator.choice(SIZES)
        if index % 11 == 0:
            message.session_id = generator.randbytes(generator.choice((0, 16, 17)))
        try:
            n_frames = len(list(stubs[0].Deal(iter([message]), timeout=5)))
            assert n_frames == len(plan), "small ones take a frame each"
            first += len(plan)
            n_dealt += 1
        except grpc.RpcError as error:
            refused.add(error.code())  # type: ignore[attr-defined]
    codes = grpc.StatusCode
    assert refused == {codes.INVALID_ARGUMENT, codes.NOT_FOUND, codes.ALREADY_EXISTS}
    assert n_dealt > N_CALLS / 20


def test_fuzzed_sessions_of_the_dealer(stubs: list[rpc.DealerStub]) -> None:
    generator = random.Random(0)
    for _ in range(N_CALLS // 3):
        length = generator.choice((0, 1, 15, 16, 16, 16, 17, 4096))
        request = pb.OpenSessionRequest(session_id=generator.randbytes(length))
        with pytest.raises(grpc.RpcError, match="no such session") as caught:
            stubs[0].OpenSession(iter([request]), timeout=5)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert len(stubs[0].OpenSession(iter([pb.OpenSessionRequest(session_id=SESSION)]), timeout=5).seed) == 16
