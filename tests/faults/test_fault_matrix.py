"""When any party is struck at any stage in any way, all others end in time, name it, and leave no result.

There are 109 cases, of which several run at a time, because most of their time is waiting:
pytest -m slow tests/faults/test_fault_matrix.py
"""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest

from parties.settings.config import TlsFiles
from parties.settings.job import JobDescription
from parties.settings.public_files import export_public
from parties.wire.tls import make_certificates
from tests.faults import canaries
from tests.faults.cast import PARTIES, Cast, Gate

ENDS = ("first", "last")
STAGES = ("hello", "offline", "linear", "softmax", "reveal", "writing")
WAYS = ("kill", "stop", "cut")
MOMENTS = [f"{stage} {moment}" for stage in ("offline", "softmax", "reveal", "writing", "dealing") for moment in ENDS]
# When the coordinator writes the last batch, the others are done: the run is whole without them.
DONE = {(party, "writing last", "kill") for party in PARTIES if party != "coordinator"}
AT_ONCE = 4
JOIN_TIMEOUT_S = 15.0
LIMIT_S = 20.0
# The default suite contains each party, stage and way at least once.
FEW = {("dealer", "offline", "kill"), ("model-owner", "softmax", "cut"), ("data-owner", "reveal", "stop")}
FEW |= {("coordinator", "writing", "kill"), ("model-owner", "hello", "kill"), ("data-owner", "linear", "cut")}
CASES = [
    pytest.param(*case, id="-".join(case).replace(" ", "-"), marks=[] if case in FEW else pytest.mark.slow)
    for case in (*product(PARTIES, STAGES, WAYS), *product(PARTIES, MOMENTS, ("kill",)))
    if case not in DONE
]


class Matrix:
    """The files that all cases need, and the threads that run the cases."""

    def __init__(self, folder: Path, student: Path, data_dir: Path) -> None:
        self.folder, self.student, self.data_dir = folder, student, data_dir
        self.public = export_public(student, folder / "public")
        self.tls: dict[str, TlsFiles] = make_certificates(folder / "tls", list(PARTIES))
        self.pool = ThreadPoolExecutor(AT_ONCE)
        self.running: dict[tuple[str, str, str], Future[float]] = {}
        self.seconds: dict[tuple[str, str, str], float] = {}

    def run(self, victim: str, stage: str, way: str) -> float:
        """Run one case; return the seconds from the strike until all others had ended."""
        folder = self.folder / f"{victim}-{stage}-{way}".replace(" ", "-")
        folder.mkdir()
        # The coordinator waits for a party that never joins, and so notices it; the others wait for the coordinator.
        early = stage == "hello"
        patient = JOIN_TIMEOUT_S + 15 if early and victim != "coordinator" else JOIN_TIMEOUT_S if early else 60.0
        waits = dict.fromkeys(PARTIES, patient) | ({"coordinator": JOIN_TIMEOUT_S} if early else {})
        if early:
            waits[victim] = JOIN_TIMEOUT_S
        cast = Cast(
            folder,
            student=self.student,
            public=self.public,
            data_dir=self.data_dir,
            tls=self.tls,
            job=JobDescription(task="sst2", batch_size=1, limit=6),
            join_timeout_s=waits,
        )
        halted = {"writing": "coordinator", "dealing": "dealer"}.get(stage.split()[0], "data-owner")
        halted = victim if early else halted
        point = f"hello {victim}" if early else stage
        if stage == "offline" and victim == "dealer":
            halted, point = "dealer", "dealing"
        gate = Gate(folder, point)
        try:
            cast.start(*PARTIES, gates={halted: gate})
            gate.reached()
            struck_at = time.monotonic()
            self._strike(cast, victim, way)
            gate.open()
            limit = LIMIT_S + (JOIN_TIMEOUT_S if early else 0)
            statuses = {
                name: cast.wait(name, max(0.1, struck_at + limit - time.monotonic()))
                for name in PARTIES
                if name != victim or way == "cut"
            }
            took = time.monotonic() - struck_at
            self._check(cast, victim, way, statuses)
            assert canaries.found(folder, self.student) == []
            return took
        finally:
            cast.end()

    @staticmethod
    def _strike(cast: Cast, victim: str, way: str) -> None:
        pid = cast.processes[victim].pid
        assert pid is not None
        if way == "cut":
            cast.cut_off(victim)
        else:
            os.kill(pid, signal.SIGKILL if way == "kill" else signal.SIGSTOP)

    @staticmethod
    def _check(cast: Cast, victim: str, way: str, statuses: dict[str, int]) -> None:
        said = {name: cast.said(name) for name in PARTIES}
        for name, status in statuses.items():
            assert status > 0, f"{name} ended with {status}: {said[name]}"
            if name != victim:
                blamed = [line for line in said[name].splitlines() if "ERROR" in line or line.startswith("error ")]
                assert blamed, f"{name} says nothing: {said[name]}"
                assert f" {victim}: " in blamed[-1].replace("error ", " ", 1), f"{name} blames another: {blamed}"
                assert "unexpected" not in said[name]
        assert not cast.out.exists(), "a result of a run that failed"
        partial = cast.out.with_name("run.partial")
        assert not (partial / "results.json").exists()
        assert not (partial / "manifest.json").exists()


@pytest.fixture(scope="module")
def matrix(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, student: Path, data_dir: Path
) -> Iterator[Matrix]:
    made = Matrix(tmp_path_factory.mktemp("matrix"), student, data_dir)
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.originalname == "test_a_struck_party_is_named":
            case = tuple(item.callspec.params[name] for name in ("victim", "stage", "way"))
            made.running[case] = made.pool.submit(made.run, *case)
    yield made
    made.pool.shutdown(cancel_futures=True)
    for way, early in product(WAYS, (False, True)):
        cases = [case for case in made.seconds if case[2] == way and (case[1] == "hello") == early]
        found = sorted(made.seconds[case] for case in cases)
        if found:
            when = "before hello" if early else "later"
            print(f"\n{way}, {when}: all others ended after {found[0]:.1f} to {found[-1]:.1f} s, {len(found)} cases")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("victim", "stage", "way"), CASES)
def test_a_struck_party_is_named(matrix: Matrix, record_property: object, victim: str, stage: str, way: str) -> None:
    took = matrix.running[victim, stage, way].result()
    matrix.seconds[victim, stage, way] = took
    assert callable(record_property)
    record_property("seconds until all others had ended", round(took, 1))
