"""A party that dies or stops answering during a job is named, and all others end within 20 s."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from mpcformer.errors import PartyError
from parties.runs import simulation
from parties.runs.simulation import LocalRunOptions
from parties.session.pool import Pool
from parties.settings.job import JobDescription
from parties.stubs import parties_pb2 as pb
from tests.forked import ForkedProcesses, context

LIMIT_S = 20.0
STARTUP_LIMIT_S = 90.0


def job_for(student: Path, data_dir: Path) -> LocalRunOptions:
    # With one sentence per batch the job is long enough to be hit in its middle.
    return LocalRunOptions(student=student, teacher=None, job=JobDescription("sst2", batch_size=1), data_dir=data_dir)


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)], ids=["kill", "stop"]
)
@pytest.mark.parametrize(
    ("victim", "in_parts"),
    [("dealer", False), ("model-owner", False), ("data-owner", False), ("dealer", True)],
    ids=["dealer", "model-owner", "data-owner", "dealer in parts"],
)
def test_a_party_that_fails_is_named_and_ends_the_others(
    student: Path,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    victim: str,
    in_parts: bool,
    how: signal.Signals,
) -> None:
    """Batches that are dealt in parts come from the dealer in a thread of their own."""
    made: list[ForkedProcesses] = []
    hit: list[float] = []

    class Watched(ForkedProcesses):
        def __init__(self, logs: Path) -> None:
            super().__init__(logs)
            made.append(self)

    def strike(now: pb.Progress) -> None:
        if now.batch == 2 and not hit:
            hit.append(time.monotonic())
            os.kill(made[0].running[victim].pid, how)

    monkeypatch.setattr(simulation, "Processes", Watched)
    if in_parts:
        monkeypatch.setattr(Pool, "fits", lambda pool, shape: False)
    with pytest.raises(PartyError) as caught:
        simulation.simulate(job_for(student, data_dir), tmp_path, on_progress=strike)
    assert hit, "the job ended before it was hit"
    assert caught.value.party == victim, caught.value
    ended = time.monotonic() - hit[0]
    assert ended < LIMIT_S
    assert all(process.poll() is not None for process in made[0].running.values())
    for name, process in made[0].running.items():
        if name != victim:
            assert process.returncode > 0, f"{name} ended well, or had to be killed"


@pytest.mark.slow  # The fault matrix strikes the coordinator of `coordinate`; this test strikes that of `infer`.
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
def test_parties_end_when_the_coordinator_is_gone(
    student: Path, data_dir: Path, tmp_path: Path, how: signal.Signals
) -> None:
    arguments = ["infer", "--student", student, "--data-dir", data_dir, "--batch-size", 1, "--out", tmp_path / "run"]
    command = [sys.executable, "-c", "from mpcformer.cli import main; main()", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            parties = wait_for_work(process, tmp_path / "run.partial" / "logs")
            process.send_signal(how)
            deadline = time.monotonic() + LIMIT_S
            while any(running(party) for party in parties) and time.monotonic() < deadline:
                time.sleep(0.2)
            assert [party.pid for party in parties if running(party)] == []
        finally:
            process.kill()
    assert not (tmp_path / "run").exists()
    for party in ("dealer", "model-owner", "data-owner"):
        log = (tmp_path / "run.partial" / "logs" / f"{party}.log").read_text()
        said = "stopped answering for 8 s" if how == signal.SIGSTOP else "its connection ended"
        assert f"coordinator: {said}" in log, party


def running(process: psutil.Process) -> bool:
    """Return whether a process is running; the ended children of a stopped parent are zombies."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_for_work(process: subprocess.Popen[bytes], logs: Path) -> list[psutil.Process]:
    """Wait until the dealer deals; return the processes of the parties."""
    deadline = time.monotonic() + STARTUP_LIMIT_S
    while time.monotonic() < deadline:
        log = logs / "dealer.log"
        if log.is_file() and "dealing" in log.read_text():
            return psutil.Process(process.pid).children()
        time.sleep(0.1)
    raise AssertionError("the parties did not start")


def test_a_party_that_cannot_start_is_named(student: Path, data_dir: Path, tmp_path: Path) -> None:
    """The model owner's weights are damaged after they were checked and before it starts."""
    broken = tmp_path / "student"
    broken.mkdir()
    for name in ("config.json", "ranges.json", "tokenizer.json", "tokenizer_config.json"):
        (broken / name).write_bytes((student / name).read_bytes())
    (broken / "model.safetensors").write_bytes((student / "model.safetensors").read_bytes()[:1000])
    (tmp_path / "logs").mkdir()
    with pytest.raises(PartyError, match=r"model-owner: its process ended with status 2: .*model\.safetensors"):
        simulation.simulate(job_for(broken, data_dir), tmp_path / "logs")
    logs = {party: (tmp_path / "logs" / f"{party}.log").read_text() for party in ("dealer", "data-owner")}
    assert not any("safetensors" in log for log in logs.values()), logs


def test_owners_that_disagree_on_the_model_stop_and_say_on_what(
    student: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = simulation.export_public

    def other_ranges(source: Path, target: Path) -> Path:
        folder = export(source, target)
        ranges = json.loads((folder / "ranges.json").read_text())
        ranges["bounds"]["layer.0.activation"][1] += 1.0
        (folder / "ranges.json").write_text(json.dumps(ranges))
        return folder

    monkeypatch.setattr(simulation, "export_public", other_ranges)
    with pytest.raises(PartyError, match=r"disagree on: model\.ranges"):
        simulation.simulate(job_for(student, data_dir), tmp_path)


def test_nothing_is_left_running_or_on_disk(student: Path, data_dir: Path, tmp_path: Path, monkeypatch: Any) -> None:
    context.Process(target=int).start()  # From now on the process that forks is one of the children.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "logs").mkdir()
    threads = {thread.name for thread in threading.enumerate()}
    children = {child.pid for child in psutil.Process().children()}
    simulation.simulate(job_for(student, data_dir), tmp_path / "logs")
    assert [path.name for path in tmp_path.iterdir()] == ["logs"], "keys and configurations are removed"
    assert {child.pid for child in psutil.Process().children()} <= children
    left = {thread.name for thread in threading.enumerate()} - threads
    assert not {name for name in left if "heartbeat" in name or "commands" in name}
