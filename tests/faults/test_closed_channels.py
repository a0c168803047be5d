"""A channel may be closed at any moment: no stub that is made on it, and no call, ends the process."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpcformer.errors import PartyError
from parties.session.membership import Membership
from parties.session.owner_session import OwnerSession
from parties.settings.config import DataOwnerConfig, ModelOwnerConfig, TlsFiles
from parties.settings.job import JobDescription
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire.frames import open_channel, start_server
from parties.wire.peer_channel import PeerChannel
from parties.wire.tls import make_certificates
from tests.faults.cast import PARTIES, Cast, cast_of
from tests.forked import context, leave, redirect
from tests.parties.test_service import wait_for

FEW, ALL = 20, 200
TIMES = [FEW, pytest.param(ALL, marks=pytest.mark.slow)]
SESSION = bytes(range(16))
JOB = pb.Job(session_id=SESSION, dealer="dealer", dealer_address="127.0.0.1:1", data_owner="data-owner")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TlsFiles]:
    return make_certificates(tmp_path_factory.mktemp("tls"), list(PARTIES))


@pytest.fixture
def cast(files: dict[str, TlsFiles], student: Path, data_dir: Path, tmp_path: Path) -> Iterator[Cast]:
    with cast_of(tmp_path, student, data_dir, JobDescription("sst2", batch_size=1), tls=files) as made:
        yield made


def ended_by(way: str, membership: Membership) -> None:
    """End a session as a coordinator does that dismisses, aborts or vanishes."""
    commands: dict[str, list[pb.Command]] = {
        "finish": [pb.Command(job=JOB), pb.Command(finish=pb.Finish())],
        "abort": [pb.Command(job=JOB), pb.Command(abort=pb.Abort(culprit="dealer", reason="its connection ended"))],
        "end": [pb.Command(job=JOB)],
    }
    membership.listen(iter(commands[way]))


def try_often(log: Path, config: DataOwnerConfig | ModelOwnerConfig, way: str, times: int, *, before: bool) -> None:
    """Begin the part of an owner in sessions that end before, or just while, its connection to the dealer is made."""
    redirect(log)
    rank, peer = (0, "data-owner") if isinstance(config, ModelOwnerConfig) else (1, "model-owner")
    for _ in range(times):
        membership = Membership(config, role=config.role, coordinator_id="coordinator")
        ended = threading.Event()
        membership.on_abort(lambda error, ended=ended: ended.set())  # type: ignore[misc]
        ended_by(way, membership)
        if before:
            assert ended.wait(10)
        channels = [PeerChannel(party_id=config.id, peer_id=peer, session_id=SESSION) for _ in range(2)]
        try:
            OwnerSession(
                rank=rank, config=config, job=JOB, asking=channels[0], dealing=channels[1], membership=membership
            )
        except PartyError:
            continue
        finally:
            membership.leave()
        raise AssertionError("a session without a dealer began")
    print("all tried", file=sys.stderr)
    leave(0)


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("before", [True, False], ids=["before", "meanwhile"])
@pytest.mark.parametrize("way", ["finish", "abort", "end"])
@pytest.mark.parametrize("owner", ["model-owner", "data-owner"])
def test_an_abort_before_the_stub_kills_no_owner(
    cast: Cast, tmp_path: Path, owner: str, way: str, before: bool, times: int
) -> None:
    config = cast.configs[owner].model_copy(update={"join_timeout_s": 5})
    log = tmp_path / "log"
    process = context.Process(target=try_often, args=(log, config, way, times), kwargs={"before": before})
    process.start()
    process.join(200)
    process.kill()
    assert process.exitcode == 0, f"it ended with {process.exitcode}: {log.read_text()}"
    assert "all tried" in log.read_text()


@pytest.mark.parametrize("times", TIMES)
def test_a_coordinator_that_dismisses_at_once_kills_no_model_owner(
    cast: Cast, files: dict[str, TlsFiles], times: int
) -> None:
    config = cast.configs["model-owner"]
    assert isinstance(config, ModelOwnerConfig)
    cast.start("model-owner", once=False)
    for number in range(times):
        job = pb.Job(
            session_id=number.to_bytes(16, "big"),
            dealer="dealer",
            dealer_address="127.0.0.1:1",
            model_owner="model-owner",
            data_owner="data-owner",
            engine="lift",
            embeddings="private_table",
        )
        commands = [pb.Command(job=job), pb.Command(finish=pb.Finish())]
        with open_channel(config.listen, "model-owner", files["coordinator"]) as channel:
            events = rpc.PartyStub(channel).Serve(iter(commands), wait_for_ready=True, timeout=60)
            assert wait_for(events, "failure").failure.culprit == "coordinator"
        assert cast.processes["model-owner"].exitcode is None, cast.said("model-owner")


def test_a_closed_channel_says_whose_it_was(files: dict[str, TlsFiles]) -> None:
    server, address = start_server(lambda server: None, "127.0.0.1:0", files["dealer"])
    channel = open_channel(address, "dealer", files["model-owner"])
    stub = rpc.DealerStub(channel)
    channel.close()
    for use in (lambda: rpc.DealerStub(channel), lambda: stub.Deal(iter([])), lambda: stub.OpenSession(iter([]))):
        with pytest.raises(PartyError, match="dealer: its connection ended"):
            use()
    channel.close()
    server.stop(0)
