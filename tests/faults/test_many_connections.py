"""Idle connections without a certificate keep nobody out, and a process that has used up its files says so."""

import errno
import queue
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from mpcformer import machine
from mpcformer.errors import MORE_FILES, UserInputError
from parties.settings.config import DealerConfig, TlsFiles
from parties.settings.job import JobDescription
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import frames, identity
from parties.wire.frames import open_channel, start_server
from parties.wire.tls import make_certificates
from tests.faults.cast import PARTIES, Cast, Gate
from tests.parties.test_service import wait_for

USUAL_FILES, N_IDLE = 1024, 1200
JOB = JobDescription("sst2")


@dataclass(frozen=True)
class UsualLimit(Gate):
    """Gives the process the usual limits of a unit: 1,024 files, and more if it asks."""

    def install(self) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (USUAL_FILES, hard))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TlsFiles]:
    return make_certificates(tmp_path_factory.mktemp("tls"), list(PARTIES))


@pytest.fixture
def many_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if machine.open_many_files() < 3 * N_IDLE:
        pytest.skip("this machine allows too few open files")
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_idle_connections_keep_nobody_out(
    many_files: None, files: dict[str, TlsFiles], student: Path, data_dir: Path, tmp_path: Path
) -> None:
    cast = Cast(tmp_path, student=student, public=student, data_dir=data_dir, tls=files, job=JOB)
    config = cast.configs["dealer"]
    assert isinstance(config, DealerConfig)
    host, _, port = config.listen.rpartition(":")
    with ExitStack() as idle:
        idle.callback(cast.end)
        cast.start("dealer", gates={"dealer": UsualLimit(tmp_path, "")}, once=False)
        while "listens on" not in cast.said("dealer"):
            time.sleep(0.05)
        assert "it may open" in cast.said("dealer")
        for _ in range(N_IDLE):
            idle.enter_context(socket.create_connection((host, int(port)), timeout=5))
        for number in range(2):
            job = pb.Job(
                session_id=number.to_bytes(16, "big"),
                dealer="dealer",
                model_owner="model-owner",
                data_owner="data-owner",
            )
            with open_channel(config.listen, "dealer", files["coordinator"]) as channel:
                commands: queue.SimpleQueue[pb.Command] = queue.SimpleQueue()
                commands.put(pb.Command(job=job))
                events = rpc.PartyStub(channel).Serve(iter(commands.get, None), wait_for_ready=True, timeout=20)
                wait_for(events, "ready")
                commands.put(pb.Command(finish=pb.Finish()))
                wait_for(events, "report")
        assert "unexpected" not in cast.said("dealer")


def test_connections_that_never_finish_their_handshake_are_shed(
    files: dict[str, TlsFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dict(frames.SERVER_OPTIONS) | {"grpc.server_handshake_timeout_ms": 1000}
    assert dict(frames.SERVER_OPTIONS)["grpc.server_handshake_timeout_ms"] <= 10_000
    monkeypatch.setattr(frames, "SERVER_OPTIONS", list(options.items()))
    server, address = start_server(lambda server: None, "127.0.0.1:0", files["dealer"])
    host, _, port = address.rpartition(":")
    with ExitStack() as idle:
        connections = [idle.enter_context(socket.create_connection((host, int(port)), timeout=5)) for _ in range(20)]
        started = time.monotonic()
        assert {connection.recv(1) for connection in connections} == {b""}
        assert time.monotonic() - started < 5
    server.stop(0)


def test_running_out_of_files_names_itself(files: dict[str, TlsFiles], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the owner of a certificate's file who is to look after it."""

    def full(path: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    monkeypatch.setattr(Path, "read_bytes", full)
    with pytest.raises(UserInputError, match="Too many open files") as caught:
        identity.read(files["dealer"])
    assert caught.value.remedy == MORE_FILES


def test_a_server_raises_its_own_limit() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (USUAL_FILES, before[1]))
        found = machine.open_many_files()
        assert found == resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(before[1], machine.MOST_FILES)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
