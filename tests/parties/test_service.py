"""Services: admission and quotas, sessions that leave nothing behind, health, shutdown, metrics."""

import queue
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mpcformer.errors import PartyError, RangeError
from parties.roles.coordinator import Coordinator
from parties.roles.dealer import Dealer
from parties.roles.journal import Journal
from parties.roles.results import Results
from parties.roles.service import SessionHost
from parties.roles.start_party import _take_part
from parties.session.membership import Membership
from parties.settings import metrics
from parties.settings.config import CoordinatorConfig, DataOwnerConfig, DealerConfig, PeerAddress, TlsFiles
from parties.settings.job import JobDescription
from parties.settings.public_files import export_public
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire.frames import open_channel, start_server
from parties.wire.tls import make_certificates
from tests.faults.cast import PARTIES, Cast
from tests.ports import free_port

MIB = 1 << 20
N_SILENT = 40
IDS = ["dealer", "model-owner", "coordinator", "other-coordinator", "data-owner", "other-data-owner", "stranger"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TlsFiles]:
    return make_certificates(tmp_path_factory.mktemp("tls"), IDS)


class Service:
    """A dealer in this process, and coordinators that keep sessions at it open."""

    def __init__(self, files: dict[str, TlsFiles], **changes: object) -> None:
        settings: dict[str, object] = {
            "coordinators": ["coordinator", "other-coordinator"],
            "data_owners": ["data-owner", "other-data-owner"],
            "model_owners": ["model-owner"],
            "tls": files["dealer"],
        }
        config = DealerConfig(role="dealer", id="dealer", **(settings | changes))  # type: ignore[arg-type]
        self.files, self.config, self.dealer = files, config, Dealer(config)
        self.host = SessionHost(config, "dealer", self.dealer.run_session)
        self._open = ExitStack()
        self._kept: list[object] = []

        def add(server: grpc.Server) -> None:
            self.dealer.add_to(server)
            self.host.add_to(server)

        self.server, self.address = start_server(
            add, "127.0.0.1:0", files["dealer"], rules=self.dealer.rules | self.host.rules
        )

    def order(
        self, session: bytes, *, coordinator: str = "coordinator", **changes: str
    ) -> tuple[Iterator[pb.PartyEvent], Callable[[pb.Command | None], None]]:
        """Order a session; return its events, and a function that sends it commands."""
        channel = self._open.enter_context(open_channel(self.address, "dealer", self.files[coordinator]))
        commands: queue.SimpleQueue[pb.Command | None] = queue.SimpleQueue()
        named = {"dealer": "dealer", "model_owner": "model-owner", "data_owner": "data-owner"} | changes
        commands.put(pb.Command(job=pb.Job(session_id=session, **named)))
        events = rpc.PartyStub(channel).Serve(iter(commands.get, None))
        return events, commands.put

    def begin(self, session: bytes, **changes: str) -> Callable[[pb.Command | None], None]:
        """Order a session, wait until it is ready, and return a function that sends it commands."""
        events, send = self.order(session, **changes)
        wait_for(events, "ready")
        self._kept.append(events)  # A call is cancelled as soon as nothing refers to it.
        return send

    def refusal(self, session: bytes, **changes: str) -> tuple[grpc.StatusCode, str]:
        """Order a session that is refused; return the status and the reason."""
        events, _ = self.order(session, **changes)
        with pytest.raises(grpc.RpcError) as caught:
            list(events)
        return caught.value.code(), caught.value.details()

    def close(self) -> None:
        self._open.close()
        self.server.stop(None)


def wait_for(events: Iterator[pb.PartyEvent], kind: str) -> pb.PartyEvent:
    return next(event for event in events if event.WhichOneof("event") == kind)


def session(number: int) -> bytes:
    return number.to_bytes(16, "big")


def eventually(true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def service(files: dict[str, TlsFiles]) -> Iterator[Service]:
    made = Service(files, max_sessions=3, max_sessions_per_peer=2)
    yield made
    made.close()


def test_only_whom_the_configuration_names(service: Service) -> None:
    code, said = service.refusal(session(1), coordinator="stranger")
    assert code == grpc.StatusCode.PERMISSION_DENIED
    assert "stranger" in said
    code, said = service.refusal(session(1), data_owner="stranger")
    assert (code, "data owner 'stranger' is not in dealer's configuration" in said) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        True,
    )
    code, said = service.refusal(b"short")
    assert (code, said) == (grpc.StatusCode.INVALID_ARGUMENT, "session id of 5 bytes, expected 16")
    events, _ = service.order(session(2), model_owner="stranger")
    assert "names model owner 'stranger'" in wait_for(events, "failure").failure.what
    with pytest.raises(grpc.RpcError, match="no such session"):
        ask_for_seed(service, session(1), "model-owner")


def ask_for_seed(service: Service, number: bytes, owner: str) -> bytes:
    with open_channel(service.address, "dealer", service.files[owner]) as channel:
        reply = rpc.DealerStub(channel).OpenSession(iter([pb.OpenSessionRequest(session_id=number)]), timeout=5)
        return bytes(reply.seed)


def test_quotas_by_peer_and_in_all(service: Service) -> None:
    ends = [service.begin(session(1)), service.begin(session(2))]
    code, said = service.refusal(session(3))
    assert (code, said) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "dealer serves 2 sessions of coordinator already; try again when one has ended",
    )
    code, said = service.refusal(session(3), coordinator="other-coordinator")
    assert "2 sessions of data-owner already" in said
    others = {"coordinator": "other-coordinator", "data_owner": "other-data-owner"}
    ends.append(service.begin(session(3), **others))
    assert "serves 3 sessions already" in service.refusal(session(4), **others)[1]
    assert "this session runs already" in service.refusal(session(1))[1]
    ends[0](pb.Command(finish=pb.Finish()))
    eventually(lambda: service.host.n_done == 1)
    service.begin(session(4))
    with pytest.raises(grpc.RpcError, match="no such session"):
        ask_for_seed(service, session(1), "model-owner")


def test_sessions_are_apart(service: Service) -> None:
    service.begin(session(1))
    service.begin(session(2), coordinator="other-coordinator", data_owner="other-data-owner")
    assert ask_for_seed(service, session(1), "data-owner") != ask_for_seed(service, session(1), "model-owner")
    ask_for_seed(service, session(2), "model-owner")
    with pytest.raises(grpc.RpcError) as caught:
        ask_for_seed(service, session(2), "data-owner")
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED, "another session's data owner"


def test_a_coordinator_that_goes_away_ends_its_session_alone(service: Service) -> None:
    events, _ = service.order(session(1))
    wait_for(events, "ready")
    service.begin(session(2))
    events.cancel()  # type: ignore[attr-defined]
    eventually(lambda: service.host.n_done == 1)
    assert service.host.last_status == 3
    ask_for_seed(service, session(2), "model-owner")


def test_who_computes_cannot_be_dismissed_and_a_job_is_given_once(service: Service) -> None:
    """Otherwise nothing would end the session: neither silence nor a deadline nor the end of the coordinator."""
    config = service.config
    for command, what in (
        (pb.Command(finish=pb.Finish()), "dismissed this party before its part was done"),
        (pb.Command(job=pb.Job()), "gave a second job"),
    ):
        membership = Membership(config, role="model-owner", coordinator_id="coordinator")
        commands: queue.SimpleQueue[pb.Command | None] = queue.SimpleQueue()
        membership.listen(iter(commands.get, None))
        commands.put(pb.Command(job=pb.Job(task="sst2")))
        assert membership.job(5) is not None
        commands.put(command)
        with pytest.raises(PartyError, match=what):
            membership.job(5)
        assert membership.error is not None
        commands.put(None)


def test_figures_of_the_weights_stay_with_their_owner(service: Service) -> None:
    """The others are told which model is refused; only the owner's own log says how large its values are."""
    membership = Membership(service.config, role="model-owner", coordinator_id="coordinator")
    error = RangeError("layer.0.output may reach 2.3e+05", "distil again", told="layer.0.output may reach too far")
    membership.abort(error)
    failure = next(event for event in membership.events() if event.HasField("failure")).failure
    assert (failure.what, failure.remedy, failure.exit_code) == (error.told, "distil again", 5)
    assert membership.error is error
    assert "2.3e+05" in str(error)


def test_callers_that_send_nothing_keep_nobody_out(service: Service) -> None:
    """A caller with a certificate that no list names is refused before the service waits for its message."""
    silent: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    methods = ("Dealer/OpenSession", "Dealer/Deal", "Party/Diagnose", "grpc.health.v1.Health/Watch")
    with open_channel(service.address, "dealer", service.files["stranger"]) as channel:
        calls = []
        for method in methods:
            path = f"/{method}" if method.startswith("grpc") else f"/mpcformer.v1.{method}"
            calls += [channel.stream_stream(path)(iter(silent.get, None)) for _ in range(N_SILENT)]
        time.sleep(0.5)
        service.begin(session(1))
        assert ask_for_seed(service, session(1), "model-owner")
        for call in calls:
            call.cancel()
        silent.put(None)


def test_calls_without_a_job_keep_nobody_else_out(service: Service) -> None:
    silent: queue.SimpleQueue[pb.Command | None] = queue.SimpleQueue()
    with open_channel(service.address, "dealer", service.files["coordinator"]) as channel:
        calls = [rpc.PartyStub(channel).Serve(iter(silent.get, None)) for _ in range(N_SILENT)]
        time.sleep(0.5)
        service.begin(session(1), coordinator="other-coordinator")
        with pytest.raises(grpc.RpcError, match="coordinator has 6 calls open already"):
            list(calls[-1])
        for call in calls:
            call.cancel()
            silent.put(None)
    service.begin(session(2))


def test_health_and_a_graceful_end(service: Service) -> None:
    def health() -> int:
        with open_channel(service.address, "dealer", service.files["stranger"]) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status)

    assert health() == health_pb2.HealthCheckResponse.SERVING
    events, _ = service.order(session(1))
    wait_for(events, "ready")
    finish = service.begin(session(2))
    drained = threading.Thread(target=service.host.drain, args=(1.0,))
    drained.start()
    eventually(lambda: health() == health_pb2.HealthCheckResponse.NOT_SERVING)
    assert service.refusal(session(3))[1] == "dealer is shutting down"
    finish(pb.Command(finish=pb.Finish()))
    failure = wait_for(events, "failure").failure
    assert (failure.culprit, failure.what) == ("dealer", "it is shutting down")
    drained.join(10)
    assert not drained.is_alive()


def test_metrics_are_numbers_on_a_loopback_port(files: dict[str, TlsFiles], service: Service) -> None:
    port = free_port()
    config = DealerConfig(
        role="dealer",
        id="dealer",
        tls=files["dealer"],
        coordinators=["c"],
        data_owners=["o"],
        model_owners=["m"],
        metrics=f"127.0.0.1:{port}",
    )
    metrics.serve(config)
    finish = service.begin(session(1))
    finish(pb.Command(finish=pb.Finish()))
    eventually(lambda: service.host.n_done == 1)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    for name in ("mpcformer_sessions_ended_total", "mpcformer_dealt_operations_total", "mpcformer_session_seconds_sum"):
        assert name in text
    assert 'mpcformer_sessions_ended_total{how="well"}' in text


class Sessions:
    """Services as processes, and whole sessions whose coordinator and data owner are threads of this process."""

    def __init__(self, cast: Cast) -> None:
        self.cast = cast
        cast.start("dealer", "model-owner", once=False)
        self._n = 0

    def run(self) -> Results:
        """Run one session and return its results."""
        self._n += 1
        before = self.cast.configs["coordinator"]
        assert isinstance(before, CoordinatorConfig)
        port = free_port()
        config = before.model_copy(
            update={
                "listen": f"127.0.0.1:{port}",
                "dealer": PeerAddress(id="dealer", address=self.cast.relays["owners->dealer"].address),
                "model_owner": PeerAddress(
                    id="model-owner", address=self.cast.relays["data-owner->model-owner"].address
                ),
            }
        )
        owner = self.cast.configs["data-owner"]
        assert isinstance(owner, DataOwnerConfig)
        data_owner = owner.model_copy(
            update={"coordinator": PeerAddress(id="coordinator", address=f"127.0.0.1:{port}")}
        )
        journal = Journal(self.cast.folder / f"{self._n}-{port}.jsonl", {})
        coordinator = Coordinator(config, journal=journal)
        thread = threading.Thread(target=_take_part, args=(data_owner,))
        thread.start()
        try:
            return coordinator.run_job()
        finally:
            thread.join(20)
            coordinator.stop()

    def used(self) -> dict[str, tuple[int, int, int]]:
        """Return (resident bytes, threads, file handles) of each service."""
        found = {}
        for name, process in self.cast.processes.items():
            one = psutil.Process(process.pid)
            found[name] = one.memory_info().rss, one.num_threads(), one.num_fds()
        return found


@pytest.fixture
def sessions(files: dict[str, TlsFiles], student: Path, data_dir: Path, tmp_path: Path) -> Iterator[Sessions]:
    cast = Cast(
        tmp_path,
        student=student,
        public=export_public(student, tmp_path / "public"),
        data_dir=data_dir,
        tls={name: files[name] for name in PARTIES},
        job=JobDescription(task="sst2", batch_size=4, limit=4),
        changes={name: {"max_sessions_per_peer": 4} for name in ("dealer", "model-owner")},
    )
    yield Sessions(cast)
    cast.end()


@pytest.mark.parametrize("n", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_sessions_in_a_row_and_at_once_leave_nothing_behind(sessions: Sessions, n: int) -> None:
    for _ in range(4):
        sessions.run()
    before = sessions.used()
    for _ in range(n - 4):
        assert len(sessions.run().predictions.ids) == 4
    eventually(lambda: all(now[1] <= before[name][1] + 2 for name, now in sessions.used().items()))
    after = sessions.used()
    at_once = [threading.Thread(target=lambda: results.append(sessions.run())) for _ in range(4)]
    results: list[Results] = []
    for thread in at_once:
        thread.start()
    for thread in at_once:
        thread.join(120)
    assert len(results) == 4
    assert len({result.session_id for result in results}) == 4
    assert {tuple(result.predictions.ids) for result in results} == {tuple(results[0].predictions.ids)}
    for name, (rss, _, handles) in after.items():
        assert rss - before[name][0] < 24 * MIB, f"{name} grew by {(rss - before[name][0]) / MIB:.0f} MiB"
        assert handles <= before[name][2] + 2, name
