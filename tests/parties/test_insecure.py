"""Parties whose insecure settings differ from the coordinator's are refused; so is resuming a run with other ones."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mpcformer import __version__
from mpcformer.errors import UserInputError
from parties.roles.coordinator import Coordinator
from parties.roles.journal import FILE_NAME, Journal
from parties.runs import deployed_run
from parties.settings.config import PROTOCOL_VERSION, CoordinatorConfig, Insecure, PeerAddress
from parties.settings.insecure import text
from parties.settings.job import JobDescription
from parties.stubs import parties_pb2 as pb
from parties.wire.tls import make_certificates

JOB = JobDescription(task="sst2")
FIXED = Insecure(fixed_seed=7)


@pytest.fixture
def config(tmp_path: Path) -> CoordinatorConfig:
    return CoordinatorConfig(
        tls=make_certificates(tmp_path / "tls", ["coordinator"])["coordinator"],
        listen="127.0.0.1:0",
        dealer=PeerAddress(id="dealer", address="127.0.0.1:1"),
        model_owner=PeerAddress(id="model-owner", address="127.0.0.1:2"),
        data_owner="data-owner",
        job=JOB,
    )


@pytest.fixture
def coordinator(config: CoordinatorConfig, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Coordinator]:
    config.insecure = request.param
    made = Coordinator(config, journal=Journal(tmp_path / FILE_NAME, {}))
    yield made
    made.stop()


@pytest.mark.parametrize("coordinator", [None, FIXED], indirect=True)
@pytest.mark.parametrize("insecure", [None, FIXED, Insecure(fixed_seed=8)])
def test_a_party_whose_file_differs_is_refused(
    coordinator: Coordinator, config: CoordinatorConfig, insecure: Insecure | None
) -> None:
    said = text(insecure)
    hello = pb.Hello(protocol_version=PROTOCOL_VERSION, role="dealer", release=__version__, insecure=said)
    coordinator._handle("dealer", pb.PartyEvent(hello=hello))
    assert bool(coordinator._evidence) == (insecure != config.insecure)
    if coordinator._evidence:
        own = text(config.insecure) or "nothing insecure"
        what = f"dealer: its file says: {said or 'nothing insecure'}; the coordinator's: {own}"
        assert coordinator._evidence.verdict().what == what


@pytest.mark.parametrize(("before", "now"), [(FIXED, None), (None, FIXED)])
def test_a_run_is_resumed_as_it_began(
    config: CoordinatorConfig, tmp_path: Path, before: Insecure | None, now: Insecure | None
) -> None:
    Journal(tmp_path / "run.partial" / FILE_NAME, JOB.to_json() | {"insecure": text(before)})
    config.insecure = now
    with pytest.raises(UserInputError, match="belongs to another job: insecure"):
        deployed_run.run(config, tmp_path / "run", resume=True)
