"""Hundreds of sessions mixed with kills, aborts, floods and wrong callers: nothing hangs, is lost or grows.

It takes ten minutes on two cores: pytest -m slow tests/faults/test_soak.py -s
"""

import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import psutil
import pytest

from mpcformer.errors import MPCFormerError, PartyError
from parties.roles.coordinator import Coordinator
from parties.roles.journal import Journal
from parties.roles.start_party import _take_part
from parties.session.evidence import Weight
from parties.settings.config import UNLIMITED, CoordinatorConfig, DataOwnerConfig, PeerAddress, TlsFiles
from parties.settings.config_file import to_toml
from parties.settings.job import JobDescription
from parties.settings.public_files import export_public
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire.frame import Frame
from parties.wire.frames import open_channel
from parties.wire.tls import make_certificates
from tests.faults.cast import PARTIES, Cast, _child, _party
from tests.forked import context
from tests.parties.test_guard import Flood
from tests.parties.test_service import N_SILENT
from tests.ports import free_port

SERVICES = ("dealer", "model-owner")
N_SESSIONS, N_EXAMPLES = 300, 4
# How often each way comes, of a hundred.
WAYS = {
    "good": 45,
    "flood": 10,
    "idle": 5,
    "stranger": 10,
    "garbled": 5,
    "abort": 8,
    "data-owner": 9,
    "dealer": 4,
    "model-owner": 4,
}
HUNG_S, RESTART_S = 40.0, 60.0
# What a service may grow after its fifth session: bytes, files and threads.
MOST, MOST_FILES, SETTLED, SETTLE_S = (100 << 20, 16, 32), 16, 5, 20.0


class Soak:
    """The services as processes, and coordinators and data owners of this process, one after the other."""

    def __init__(self, cast: Cast, files: dict[str, TlsFiles], seed: int) -> None:
        self.cast, self.files, self.random = cast, files, random.Random(seed)
        self.ended: Counter[str] = Counter()
        self._n = 0
        self._first: dict[str, tuple[int, int, int]] = {}
        self._served: Counter[str] = Counter()
        for name in SERVICES:
            self.start(name)

    def start(self, name: str) -> None:
        """Start a service, again if it was killed, and wait until it listens."""
        self._first.pop(name, None)
        self._served[name] = 0
        said = self.cast.said(name).count("listens on")
        self.cast.start(name, once=False)
        deadline = time.monotonic() + RESTART_S
        while self.cast.said(name).count("listens on") == said:
            assert time.monotonic() < deadline, self.cast.said(name)
            time.sleep(0.05)
        # The threads of its calls stay, up to a limit; what grows later is something else.
        flood = Flood(self.cast.configs[name].listen, name, self.files["stranger"])  # type: ignore[union-attr]
        flood.add("/grpc.health.v1.Health/Check", 2 * N_SILENT)
        time.sleep(1.0)
        flood.end()

    def check_size(self, name: str) -> None:
        """Check that a service has not grown since its fifth session. Connections take a while to end."""
        one, deadline = psutil.Process(self.cast.processes[name].pid), time.monotonic() + SETTLE_S
        self._served[name] += 1
        while True:
            used = one.memory_info().rss, one.num_fds(), one.num_threads()
            first = self._first.get(name, used)
            grown = [now - then for now, then in zip(used, first, strict=True)]
            if all(now <= most for now, most in zip(grown, MOST, strict=True)):
                break
            assert time.monotonic() < deadline, (
                f"{name} has grown by {grown} (bytes, files, threads) in {self._served[name]} sessions: {self.ended}"
            )
            time.sleep(0.2)
        if self._served[name] == SETTLED:
            self._first[name] = used

    def run(self, way: str) -> None:
        """Run one session in one of the ways, and check how it ended."""
        started = time.monotonic()
        with ExitStack() as around:
            self._surround(way, around)
            culprit = {"abort": "coordinator"}.get(way, way if way in PARTIES else "")
            found = self._session(way)
            assert found == culprit, f"{way}: {found or 'nobody'} was blamed"
        for name in SERVICES:
            if way == name:
                self.cast.processes[name].join(10)
                self.start(name)
            assert self.cast.processes[name].exitcode is None, f"{name} ended by itself: {self.cast.said(name)[-2000:]}"
            self.check_size(name)
        assert time.monotonic() - started < HUNG_S + RESTART_S * (way in SERVICES), f"{way} hung"
        self.ended[way] += 1

    def _surround(self, way: str, around: ExitStack) -> None:
        """Let others do what they like around a session that is to go well."""
        address, name = self.cast.configs["dealer"].listen, "dealer"  # type: ignore[union-attr]
        if self.random.random() < 0.5:
            address, name = self.cast.configs["model-owner"].listen, "model-owner"  # type: ignore[union-attr]
        if way == "flood":
            flood = Flood(address, name, self.files["stranger"])
            around.callback(flood.end)
            for method in ("/grpc.health.v1.Health/Check", "/mpcformer.v1.Party/Serve"):
                flood.add(method)
        elif way == "idle":
            host, _, port = address.rpartition(":")
            for _ in range(100):
                around.enter_context(socket.create_connection((host, int(port)), timeout=5))
        elif way in ("stranger", "garbled"):
            who = "stranger" if way == "stranger" else "data-owner"
            with open_channel(address, name, self.files[who]) as channel:
                stub, peer = rpc.PartyStub(channel), rpc.PeerStub(channel)
                job = pb.Command(job=pb.Job(session_id=self.random.randbytes(16), data_owner="data-owner"))
                calls: list[Callable[[], object]] = [
                    lambda: list(stub.Serve(iter([job]), timeout=5)),
                    lambda: list(peer.Exchange(iter([Frame(pb.Frame(), self.random.randbytes(999))]), timeout=5)),
                ]
                for call in calls:
                    with pytest.raises(grpc.RpcError):
                        call()

    def _session(self, way: str) -> str:
        """Run a session; return who was blamed for its end, or nothing if all examples were answered."""
        self._n += 1
        before, owner = self.cast.configs["coordinator"], self.cast.configs["data-owner"]
        assert isinstance(before, CoordinatorConfig)
        assert isinstance(owner, DataOwnerConfig)
        listen = f"127.0.0.1:{free_port()}"
        addresses = {
            name: PeerAddress(id=name, address=self.cast.configs[name].listen)  # type: ignore[union-attr]
            for name in SERVICES
        }
        config = before.model_copy(
            update={"listen": listen, "dealer": addresses["dealer"], "model_owner": addresses["model-owner"]}
        )
        data_owner = owner.model_copy(update={"coordinator": PeerAddress(id="coordinator", address=listen)})
        strike_at, struck = self.random.randrange(1, 4), threading.Event()

        def progress(now: pb.Progress) -> None:
            if now.batch >= strike_at and not struck.is_set():
                struck.set()
                if way == "abort":
                    coordinator.blame(Weight.VANISHED, PartyError("coordinator", "it was interrupted"))
                elif way in PARTIES:
                    self.cast.processes[way].kill()

        journal = Journal(self.cast.folder / "journals" / f"{self._n}.jsonl", {})
        coordinator = Coordinator(config, journal=journal, on_progress=progress)
        if way == "data-owner":
            path = self.cast.folder / "data-owner.toml"
            path.write_text(to_toml(data_owner))
            process = context.Process(target=_child, args=(self.cast.log_of(way), None, _party, path, True))
            process.start()
            self.cast.processes[way] = process
            end: Callable[[float], None] = process.join
        else:
            thread = threading.Thread(target=_take_part, args=(data_owner,), daemon=True)
            thread.start()
            end = thread.join
        try:
            results = coordinator.run_job()
        except MPCFormerError as error:
            return error.party if isinstance(error, PartyError) else f"nobody: {error}"
        finally:
            coordinator.stop()
            end(20)
            journal.close()
        assert sorted(results.predictions.rows) == list(range(N_EXAMPLES)), "an answer was lost"
        return ""


@pytest.fixture
def soak(student: Path, data_dir: Path, tmp_path: Path) -> Iterator[Soak]:
    files = make_certificates(tmp_path / "tls", [*PARTIES, "stranger"])
    cast = Cast(
        tmp_path,
        student=student,
        public=export_public(student, tmp_path / "public"),
        data_dir=data_dir,
        tls=files,
        job=JobDescription("sst2", batch_size=1, limit=N_EXAMPLES),
        changes={
            "dealer": {"max_sessions": 8, "max_sessions_per_peer": 8},
            "model-owner": {"max_sessions": 8, "max_sessions_per_peer": 8} | UNLIMITED,
        },
    )
    yield Soak(cast, files, seed=0)
    cast.end()


@pytest.mark.timeout(2400)
@pytest.mark.slow
def test_nothing_hangs_is_lost_or_grows(soak: Soak) -> None:
    own = psutil.Process()
    started, files = time.monotonic(), 0
    ways = [*WAYS, *soak.random.choices(list(WAYS), list(WAYS.values()), k=N_SESSIONS - len(WAYS))]
    soak.random.shuffle(ways)
    for number, way in enumerate(ways):
        soak.run(way)
        if number == SETTLED:
            files = own.num_fds()
    assert own.num_fds() - files <= 2 * MOST_FILES, "coordinators and data owners left files open"
    for name in SERVICES:
        assert "unexpected" not in soak.cast.said(name)
        assert "Traceback" not in soak.cast.said(name)
    shown = ", ".join(f"{way} {count}" for way, count in sorted(soak.ended.items()))
    print(f"\n{sum(soak.ended.values())} sessions in {time.monotonic() - started:.0f} s: {shown}")
