"""A job gives the same logits, bit for bit, in a simulation, in separate processes and in separate networks.

This holds if all keys follow from a number. Everything that such a run writes says INSECURE.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mpcformer.ring.random import fixed_keys, fresh_key
from parties.runs import local_run
from parties.runs.simulation import LocalRunOptions
from parties.settings.config import Insecure
from parties.settings.job import JobDescription
from tests.parties import separate

FIXED = Insecure(fixed_seed=7)
TOLERANCE = 0.01
slow = pytest.mark.slow
# These tests start many processes and may run on shared machines.
pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True)
class Outcome:
    """The logits and labels of a run by example, and the texts that it wrote by their place."""

    logits: dict[int, list[float]]
    labels: dict[int, int]
    written: dict[str, str]


def outcome(folder: Path, said: dict[str, str]) -> Outcome:
    table = pq.read_table(folder / "predictions.parquet").to_pydict()
    written = said | {name: (folder / name).read_text() for name in ("results.json", "report.html")}
    logits = dict(zip(table["id"], table["private_logits"], strict=True))
    return Outcome(logits, dict(zip(table["id"], table["private_prediction"], strict=True)), written)


def job(engine: str) -> JobDescription:
    return JobDescription(task="sst2", limit=6, batch_size=4, engine=engine)


@pytest.fixture
def simulated(
    student: Path, data_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    def run(engine: str = "lift", insecure: Insecure | None = FIXED) -> Outcome:
        folder = tmp_path / f"simulated-{len(list(tmp_path.iterdir()))}"
        local_run.run(LocalRunOptions(student, None, job(engine), data_dir, insecure=insecure), folder)
        logs = {path.stem: path.read_text() for path in (folder / "logs").glob("*.log") if path.stem != "plaintext"}
        return outcome(folder, logs | {"terminal": capfd.readouterr().err})

    return run


@pytest.fixture
def separately(student: Path, data_dir: Path, tmp_path: Path) -> Callable[..., list[Outcome]]:
    def run(
        hosts: separate.Hosts, engine: str = "lift", insecure: Insecure | None = FIXED, n_jobs: int = 1
    ) -> list[Outcome]:
        folder = tmp_path / f"separate-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        done = separate.run(folder, hosts, student, data_dir, job(engine), insecure, n_jobs)
        return [outcome(each.folder, each.said) for each in done]

    return run


@pytest.fixture
def networks() -> Iterator[separate.Hosts]:
    with separate.namespaces() as hosts:
        yield hosts


def says_insecure(run: Outcome) -> set[str]:
    return {where for where, text in run.written.items() if "INSECURE" in text}


def test_a_simulation_and_separate_processes_agree_bit_for_bit(
    simulated: Callable[..., Outcome], separately: Callable[..., list[Outcome]]
) -> None:
    a, (b,) = simulated(), separately(separate.this_host())
    assert a.logits == b.logits
    assert len({tuple(row) for row in a.logits.values()}) > 1
    for run in (a, b):
        assert says_insecure(run) == set(run.written)
        assert json.loads(run.written["results.json"])["seeds"]["protocol"] == "INSECURE: all follow from 7"
    assert fresh_key() != fresh_key()
    with fixed_keys(FIXED.fixed_seed, separate.COORDINATOR):
        session = json.loads(a.written["results.json"])["session"]
        assert session == fresh_key().hex() != fresh_key().hex()
    assert fresh_key().hex() != session, "this process, which was the coordinator, has fresh keys again"


@slow
def test_separate_networks_agree_too_and_what_a_service_did_before_makes_no_difference(
    simulated: Callable[..., Outcome], separately: Callable[..., list[Outcome]], networks: separate.Hosts
) -> None:
    first, second = separately(networks, n_jobs=2)
    assert first.logits == second.logits == simulated().logits
    for run in (first, second):
        assert says_insecure(run) == set(run.written)


@slow
def test_crypten_too(simulated: Callable[..., Outcome], separately: Callable[..., list[Outcome]]) -> None:
    assert [run.logits for run in separately(separate.this_host(), "crypten")] == [simulated("crypten").logits]


@slow
def test_fresh_keys_agree_within_the_tolerance_and_nothing_says_insecure(
    simulated: Callable[..., Outcome], separately: Callable[..., list[Outcome]], networks: separate.Hosts
) -> None:
    hosts = (separate.this_host(), networks)
    runs = [simulated(insecure=None), *(run for where in hosts for run in separately(where, insecure=None))]
    assert len(runs) == 3
    for run in runs:
        assert not says_insecure(run)
        assert run.labels == runs[0].labels
        for row, logits in run.logits.items():
            assert logits == pytest.approx(runs[0].logits[row], abs=TOLERANCE)
    assert runs[0].logits != runs[1].logits, "fresh keys round otherwise"
