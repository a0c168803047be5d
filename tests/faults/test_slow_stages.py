"""While a party is slow, whatever it does, it hears within 5 s that its session is over, and so do all others.

A stage is made slow by halting one process in it and not letting it go on, as a disk that hangs does, or by a link that
does not come about. Then another party is killed. Most cases are slow; they print the table of docs/threat-model.md:
pytest -m 'slow or not slow' tests/faults/test_slow_stages.py -s
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from parties.settings.config import TlsFiles
from parties.settings.job import JobDescription
from parties.settings.public_files import export_public
from parties.wire.tls import make_certificates
from tests.faults import canaries
from tests.faults.cast import PARTIES, Cast, Gate

# The stage -> who is slow in it.
STAGES = {
    "reading": "data-owner",
    "tokenising": "data-owner",
    "comparing": "data-owner",
    "linking": "data-owner",
    "encoding": "model-owner",
    "setting up": "model-owner",
    "dealing": "dealer",
    "offline": "data-owner",
    "linear": "model-owner",
    "softmax": "model-owner",
    "reveal": "data-owner",
    "writing": "coordinator",
}
WHAT = {
    "reading": "reads its texts",
    "tokenising": "tokenises them",
    "comparing": "compares them with an earlier run",
    "linking": "waits for the model owner's link",
    "encoding": "encodes its weights",
    "setting up": "sends its weights, masked",
    "dealing": "deals",
    "offline": "prepares a batch",
    "linear": "computes a linear map",
    "softmax": "computes a softmax",
    "reveal": "plans a batch",
    "writing": "writes to its journal",
}
LIMIT_S = 5.0
AT_ONCE = 3
CASES = [(stage, victim) for stage, slow in STAGES.items() for victim in PARTIES if victim != slow]
FEW = {("reading", "dealer"), ("linking", "coordinator"), ("writing", "data-owner"), ("softmax", "coordinator")}


class Slow:
    """The files that all cases need, and the threads that run the cases."""

    def __init__(self, folder: Path, student: Path, data_dir: Path) -> None:
        self.folder, self.student, self.data_dir = folder, student, data_dir
        self.public = export_public(student, folder / "public")
        self.tls: dict[str, TlsFiles] = make_certificates(folder / "tls", list(PARTIES))
        self.pool = ThreadPoolExecutor(AT_ONCE)
        self.running: dict[tuple[str, str], Future[dict[str, float]]] = {}
        self.seconds: dict[tuple[str, str], dict[str, float]] = {}

    def run(self, stage: str, victim: str) -> dict[str, float]:
        """Kill a party in a stage; return by party the seconds until it had ended."""
        folder, slow = self.folder / f"{stage}-{victim}".replace(" ", "-"), STAGES[stage]
        folder.mkdir()
        cast = Cast(
            folder,
            student=self.student,
            public=self.public,
            data_dir=self.data_dir,
            tls=self.tls,
            job=JobDescription(task="sst2", batch_size=1, limit=6, engine="crypten" if stage == "encoding" else "lift"),
        )
        gate = Gate(folder, stage)
        try:
            if stage == "linking":
                cast.relays["data-owner->model-owner"].close()
                cast.start(*PARTIES)
                self._until_linking(cast)
            else:
                cast.start(*PARTIES, gates={slow: gate})
                gate.reached()
            pid = cast.processes[victim].pid
            assert pid is not None
            struck_at = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            took = self._times(cast, [name for name in PARTIES if name != victim], struck_at)
            self._check(cast, victim)
            assert canaries.found(folder, self.student) == []
            return took
        finally:
            gate.open()
            cast.end()

    @staticmethod
    def _until_linking(cast: Cast) -> None:
        """Wait until the data owner has its job, and so waits for a link that does not come about."""
        deadline = time.monotonic() + 60
        while "session of data-owner begins" not in cast.said("model-owner"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1.0)

    @staticmethod
    def _times(cast: Cast, names: list[str], struck_at: float) -> dict[str, float]:
        took: dict[str, float] = {}

        def wait(name: str) -> None:
            cast.wait(name, 30.0)
            took[name] = time.monotonic() - struck_at

        threads = [threading.Thread(target=wait, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(took) == set(names), {name: cast.said(name) for name in names if name not in took}
        return took

    @staticmethod
    def _check(cast: Cast, victim: str) -> None:
        for name in PARTIES:
            if name == victim:
                continue
            said = cast.said(name)
            blamed = [line for line in said.splitlines() if "ERROR" in line or line.startswith("error ")]
            assert cast.processes[name].exitcode == 3, (name, said)
            assert blamed, f"{name} says nothing: {said}"
            assert f" {victim}: " in blamed[-1].replace("error ", " ", 1), f"{name} blames another: {blamed}"
            assert "unexpected" not in said
        assert not cast.out.exists(), "a result of a run that failed"


@pytest.fixture(scope="module")
def slow(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, student: Path, data_dir: Path
) -> Iterator[Slow]:
    made = Slow(tmp_path_factory.mktemp("slow"), student, data_dir)
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.originalname == "test_a_slow_party_hears_of_the_end":
            case = item.callspec.params["stage"], item.callspec.params["victim"]
            made.running[case] = made.pool.submit(made.run, *case)
    yield made
    made.pool.shutdown(cancel_futures=True)
    print("\n" + table(made.seconds))


def table(seconds: dict[tuple[str, str], dict[str, float]]) -> str:
    """Return for each stage after how many seconds each party had ended, whoever of the others was killed."""
    lines = ["| while | " + " | ".join(PARTIES) + " |", "|---|" + "---|" * len(PARTIES)]
    for stage, party in STAGES.items():
        found = {
            name: max((took[name] for (at, _), took in seconds.items() if at == stage and name in took), default=None)
            for name in PARTIES
        }
        if any(found.values()):
            shown = [f"{value:.1f} s" if value is not None else "-" for value in found.values()]
            lines.append(f"| the {party.replace('-', ' ')} {WHAT[stage]} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("stage", "victim"),
    [
        pytest.param(*case, id="-".join(case).replace(" ", "-"), marks=[] if case in FEW else pytest.mark.slow)
        for case in CASES
    ],
)
def test_a_slow_party_hears_of_the_end(slow: Slow, stage: str, victim: str) -> None:
    took = slow.running[stage, victim].result()
    slow.seconds[stage, victim] = took
    assert max(took.values()) < LIMIT_S, took
