"""Whatever is called at a service, with whatever message, by whomever and in whatever order, the service goes on.

The quick profile is in the default suite. The whole count: pytest -m slow tests/faults/test_fuzzed_calls.py
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from parties.roles.coordinator import Coordinator
from parties.roles.journal import Journal
from parties.settings.config import CoordinatorConfig, TlsFiles
from parties.settings.job import JobDescription
from parties.stubs import parties_pb2 as pb
from parties.wire.callers import SESSION_HEADER, STREAM_HEADER
from parties.wire.frames import SafeChannel, open_channel
from parties.wire.tls import make_certificates
from tests import fuzz
from tests.faults.cast import PARTIES, Cast, cast_of
from tests.parties.test_service import Sessions

# Calls at each service.
FEW, ALL, BURST = 60, 1700, 10
LIMIT_BYTES, LIMIT_S = 500 << 20, 5.0
CALLERS = ("coordinator", "data-owner", "model-owner", "dealer", "stranger")
SERVICES = (*pb.DESCRIPTOR.services_by_name.values(), *health_pb2.DESCRIPTOR.services_by_name.values())
METHODS: list[MethodDescriptor] = [method for service in SERVICES for method in service.methods]


@dataclass(frozen=True)
class Call:
    """A call: who makes it, of which method, with which messages and headers, and for how long it stays.

    Args:
        waits: whether the caller keeps its side of the stream open.
    """

    caller: str
    method: MethodDescriptor
    messages: list[Any]
    headers: list[tuple[str, Any]]
    waits: bool

    @property
    def path(self) -> str:
        return f"/{self.method.containing_service.full_name}/{self.method.name}"


@st.composite
def calls(draw: st.DrawFn) -> Call:
    method = draw(st.sampled_from(METHODS))
    headers = [
        (SESSION_HEADER, draw(st.sampled_from(fuzz.BYTES[:5]))),
        (STREAM_HEADER, draw(st.sampled_from(["", "asking"]))),
    ]
    return Call(
        draw(st.sampled_from(CALLERS)),
        method,
        draw(st.lists(fuzz.messages(method.input_type), max_size=3)),
        draw(st.sampled_from([[], headers])),
        draw(st.booleans()),
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TlsFiles]:
    return make_certificates(tmp_path_factory.mktemp("tls"), [*PARTIES, "stranger"])


@pytest.fixture
def cast(files: dict[str, TlsFiles], student: Path, data_dir: Path, tmp_path: Path) -> Iterator[Cast]:
    with cast_of(
        tmp_path,
        student,
        data_dir,
        JobDescription("sst2", batch_size=4, limit=4),
        tls=files,
        changes={name: {"join_timeout_s": 2.0} for name in ("dealer", "model-owner")},
    ) as made:
        yield made


def make(channels: dict[str, SafeChannel], call: Call) -> Any:
    """Begin a call, and return it."""
    method = channels[call.caller].stream_stream(
        call.path, request_serializer=lambda message: message.SerializeToString()
    )

    def sent() -> Iterator[Any]:
        yield from call.messages
        if call.waits:
            time.sleep(0.2)

    return method(sent(), metadata=call.headers, timeout=0.3, wait_for_ready=True)


def ends(begun: list[Any]) -> None:
    """Wait until calls have ended, in whatever way; a call that hangs fails by its own time limit."""
    started = time.monotonic()
    for call in begun:
        with contextlib.suppress(grpc.RpcError):
            for _ in call:
                pass
    assert time.monotonic() - started < LIMIT_S


def flood(address: str, peer: str, files: dict[str, TlsFiles], times: int) -> None:
    """Make calls in bursts, each in any order."""
    channels = {name: open_channel(address, peer, files[name]) for name in CALLERS}

    @settings(
        max_examples=max(1, times // BURST),
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.lists(calls(), min_size=BURST, max_size=BURST))
    def burst(made: list[Call]) -> None:
        ends([make(channels, call) for call in made])

    burst()
    for channel in channels.values():
        channel.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("times", [FEW, pytest.param(ALL, marks=pytest.mark.slow)])
def test_services_go_on_whatever_is_called(cast: Cast, files: dict[str, TlsFiles], times: int) -> None:
    sessions = Sessions(cast)
    assert len(sessions.run().predictions.ids) == 4
    before = {name: used[0] for name, used in sessions.used().items()}
    for name in ("dealer", "model-owner"):
        flood(cast.configs[name].listen, name, files, times)  # type: ignore[union-attr]
        assert cast.processes[name].exitcode is None, cast.said(name)
        assert "unexpected" not in cast.said(name), cast.said(name)
        assert "Traceback" not in cast.said(name)
        assert psutil.Process(cast.processes[name].pid).memory_info().rss - before[name] < LIMIT_BYTES
    # What was ordered among the calls ends within its time limit; then there is room.
    deadline = time.monotonic() + 30
    while True:
        try:
            assert len(sessions.run().predictions.ids) == 4
            break
        except Exception:
            assert time.monotonic() < deadline
            time.sleep(1.0)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("times", [FEW, pytest.param(ALL, marks=pytest.mark.slow)])
def test_a_coordinator_goes_on_whatever_is_called(
    cast: Cast, files: dict[str, TlsFiles], tmp_path: Path, caplog: pytest.LogCaptureFixture, times: int
) -> None:
    config = cast.configs["coordinator"]
    assert isinstance(config, CoordinatorConfig)
    coordinator = Coordinator(config, journal=Journal(tmp_path / "journal.jsonl", {}))
    before = psutil.Process().memory_info().rss
    flood(coordinator.address, "coordinator", files, times)
    assert psutil.Process().memory_info().rss - before < LIMIT_BYTES
    assert not [record for record in caplog.records if "unexpected" in record.getMessage()]
    with open_channel(coordinator.address, "coordinator", files["data-owner"]) as channel:
        method = channel.stream_unary(
            "/mpcformer.v1.Coordinator/Diagnose",
            request_serializer=pb.DiagnoseRequest.SerializeToString,
            response_deserializer=pb.DiagnoseReply.FromString,
        )
        assert method(iter([pb.DiagnoseRequest()]), timeout=5).id == "coordinator"
    coordinator.stop()
