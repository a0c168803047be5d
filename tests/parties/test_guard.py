"""Every method of every server goes through one guard: who sends nothing, or calls often, hinders nobody else."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mpcformer.correlations import Request
from parties.roles.coordinator import Coordinator
from parties.roles.journal import Journal
from parties.roles.model_owner import ModelOwner
from parties.roles.service import SessionHost
from parties.settings.config import CoordinatorConfig, ModelOwnerConfig, PeerAddress, TlsFiles
from parties.settings.job import JobDescription
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import callers, causes
from parties.wire.correlation_requests import to_wire
from parties.wire.frames import open_channel, start_server
from parties.wire.guard import MAX_CALLS, Guard, Rule
from parties.wire.tls import make_certificates
from tests.parties.test_service import IDS, N_SILENT, Service, ask_for_seed, eventually, session

SERVERS = ("dealer", "model-owner", "coordinator")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TlsFiles]:
    return make_certificates(tmp_path_factory.mktemp("tls"), IDS)


class Flood:
    """Calls of one caller that send nothing."""

    def __init__(self, address: str, peer: str, files: TlsFiles) -> None:
        self._channel = open_channel(address, peer, files)
        self._silent: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.calls: list[Any] = []

    def add(self, method: str, n: int = N_SILENT) -> list[Any]:
        """Open calls of a method, and return them."""
        made = [self._channel.stream_stream(method)(iter(self._silent.get, None)) for _ in range(n)]
        self.calls += made
        return made

    def end(self) -> None:
        for call in self.calls:
            call.cancel()
            self._silent.put(None)
        self._channel.close()


@pytest.fixture
def service(files: dict[str, TlsFiles]) -> Iterator[Service]:
    made = Service(files, max_sessions=3, max_sessions_per_peer=2)
    yield made
    made.close()


def guard_of(server: Any) -> Guard:
    guard = server._state.interceptor_pipeline.interceptors[0]
    assert isinstance(guard, Guard)
    return guard


def methods_of(server: Any) -> list[str]:
    """Return the full names of all methods that a server has."""
    return sorted(server._state.registered_method_handlers)


def is_healthy(address: str, peer: str, files: TlsFiles) -> bool:
    with open_channel(address, peer, files) as channel:
        request = health_pb2.HealthCheckRequest()
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def test_silent_health_checks_keep_nobody_out(service: Service) -> None:
    """A certificate that no list names opens 40 checks and sends nothing; a session that runs goes on, others begin."""
    service.begin(session(1))
    seeds = [ask_for_seed(service, session(1), owner) for owner in ("model-owner", "data-owner")]
    flood = Flood(service.address, "dealer", service.files["stranger"])
    flood.add("/grpc.health.v1.Health/Check")
    time.sleep(0.5)
    assert is_healthy(service.address, "dealer", service.files["data-owner"])
    service.begin(session(2), coordinator="other-coordinator", data_owner="other-data-owner")
    plan = [to_wire(Request("square_pair", ((4, 4),)))]
    with open_channel(service.address, "dealer", service.files["model-owner"]) as channel:
        request = pb.DealRequest(session_id=session(1), first_operation=0, plan=plan, drawn_id=bytes(16))
        assert len(list(rpc.DealerStub(channel).Deal(iter([request]), timeout=5))) == len(plan)
    assert len(set(seeds)) == 2
    flood.end()


@pytest.mark.parametrize("role", SERVERS)
def test_no_method_lets_a_caller_keep_others_out(
    files: dict[str, TlsFiles], student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    """Walk the server's own list of methods. Each turns most silent calls away at once, and the rest in time."""
    monkeypatch.setattr(callers, "FIRST_MESSAGE_TIMEOUT_S", 1.0)
    server, address, close = server_of(role, files, student, tmp_path)
    guard, methods = guard_of(server), methods_of(server)
    assert len(methods) >= 2
    flood = Flood(address, role, files["stranger"])
    by_method = {method: flood.add(method) for method in methods}
    for method, calls in by_method.items():
        eventually(lambda calls=calls: sum(map(ended, calls)) >= N_SILENT - MAX_CALLS)  # type: ignore[misc]
        codes = {call.code() for call in calls if ended(call)}
        allowed = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.PERMISSION_DENIED}
        assert codes & allowed, (method, codes)
        assert not [call for call in calls if ended(call) and "Concurrent RPC limit" in (call.details() or "")]
    assert guard.n_open("data-owner") == 0
    with open_channel(address, role, files["data-owner"]) as channel:
        stub = rpc.CoordinatorStub(channel) if role == "coordinator" else rpc.PartyStub(channel)
        assert stub.Diagnose(iter([pb.DiagnoseRequest()]), timeout=5).id == role
    eventually(lambda: guard.n_open("stranger") == 0)
    flood.end()
    close()


def ended(call: Any) -> bool:
    return not call.is_active()


def server_of(
    role: str, files: dict[str, TlsFiles], student: Path, folder: Path
) -> tuple[grpc.Server, str, Callable[[], object]]:
    """Start the server of a role as its party does."""
    known: dict[str, Any] = {"coordinators": ["coordinator"], "data_owners": ["data-owner"], "tls": files[role]}
    if role == "dealer":
        made = Service(files)
        return made.server, made.address, made.close
    if role == "coordinator":
        config = CoordinatorConfig(
            listen="127.0.0.1:0",
            dealer=PeerAddress(id="dealer", address="127.0.0.1:1"),
            model_owner=PeerAddress(id="model-owner", address="127.0.0.1:1"),
            data_owner="data-owner",
            job=JobDescription("sst2"),
            tls=files[role],
        )
        coordinator = Coordinator(config, journal=Journal(folder / "journal.jsonl", {}))
        return coordinator._server, coordinator.address, coordinator.stop
    settings = ModelOwnerConfig(role="model-owner", id=role, student=student, dealers=["dealer"], **known)
    party = ModelOwner(settings)
    host = SessionHost(settings, "model-owner", party.run_session, models=party.models)

    def add(server: grpc.Server) -> None:
        party.add_to(server)
        host.add_to(server)

    server, address = start_server(add, "127.0.0.1:0", files[role], rules=party.rules | host.rules)
    return server, address, lambda: server.stop(0)


def test_a_callers_calls_count_against_no_stream_of_its_own_session(service: Service) -> None:
    flood = Flood(service.address, "dealer", service.files["model-owner"])
    for method in ("/grpc.health.v1.Health/Check", "/mpcformer.v1.Party/Diagnose", "/mpcformer.v1.Party/Serve"):
        flood.add(method)
    service.begin(session(1))
    assert ask_for_seed(service, session(1), "data-owner")
    assert ask_for_seed(service, session(1), "model-owner")
    flood.end()


def test_a_method_that_is_added_one_day_has_limits_too(files: dict[str, TlsFiles]) -> None:
    """A method that declares one message is read by gRPC before anybody looks at the caller; the guard reads it."""

    def add(server: grpc.Server) -> None:
        handlers = {
            "Fail": grpc.unary_unary_rpc_method_handler(fail),
            "Echo": grpc.unary_stream_rpc_method_handler(lambda request, context: iter([request, request])),
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("some.Service", handlers)])

    def fail(request: bytes, context: grpc.ServicerContext) -> bytes:
        raise ValueError("the text of somebody")

    server, address = start_server(
        add, "127.0.0.1:0", files["dealer"], rules={"/some.Service/Echo": Rule(["data-owner"])}
    )
    flood = Flood(address, "dealer", files["stranger"])
    calls = flood.add("/some.Service/Fail")
    eventually(lambda: sum(map(ended, calls)) == N_SILENT - MAX_CALLS)
    with open_channel(address, "dealer", files["data-owner"]) as channel:
        assert list(channel.unary_stream("/some.Service/Echo")(b"x", timeout=5)) == [b"x", b"x"]
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/some.Service/Fail")(b"x", timeout=5)
    assert "text of somebody" not in caught.value.details()
    said = str(causes.of_call("dealer", caught.value))
    assert "dealer: it failed: unexpected ValueError at test_guard.py" in said
    with (
        open_channel(address, "dealer", files["stranger"]) as channel,
        pytest.raises(grpc.RpcError, match="names \\['stranger'\\], which is not served here"),
    ):
        list(channel.unary_stream("/some.Service/Echo")(b"x", timeout=5))
    flood.end()
    server.stop(0)


def test_a_server_without_threads_goes_on(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may refuse another thread: the call waits for one, or is refused, and the next one is served."""
    assert is_healthy(service.address, "dealer", service.files["data-owner"])
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith(("rpc", "session-")):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    code, said = service.refusal(session(1))
    assert (code, "dealer cannot start another thread" in said) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    monkeypatch.undo()
    service.begin(session(1))
