"""Who fails in the middle of its work is named, and not whoever first cancels something because of it."""

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from parties.session.evidence import CONFESSED_REASON
from parties.settings.job import JobDescription
from tests.faults.cast import PARTIES, Cast, Gate, cast_of

LIMIT_S = 60.0


@dataclass(frozen=True)
class Bug(Gate):
    """Raises an error that nobody foresaw, in place of halting the process."""

    def wait(self) -> None:
        raise KeyError("a word of the text")


@dataclass(frozen=True)
class NoThread(Gate):
    """Lets the process start no thread whose name begins with `point`, as on a machine that is full."""

    def install(self) -> None:
        start, name = threading.Thread.start, self.point

        def refuse(thread: Any) -> None:
            if thread.name.startswith(name):
                raise RuntimeError("can't start new thread")
            start(thread)

        threading.Thread.start = refuse  # type: ignore[method-assign]


@dataclass(frozen=True)
class NoFiles(Gate):
    """Raises the error of a process that has used up its files, at the point."""

    def wait(self) -> None:
        raise OSError(24, os.strerror(24))


@pytest.fixture
def cast(student: Path, data_dir: Path, tmp_path: Path) -> Iterator[Cast]:
    with cast_of(tmp_path, student, data_dir, JobDescription("sst2", batch_size=1, limit=6)) as made:
        yield made


@pytest.mark.parametrize(
    ("who", "gate", "what"),
    [
        ("dealer", (Bug, "dealing"), "unexpected KeyError at test_blame.py"),
        ("model-owner", (NoThread, "dealing"), "it can start no more threads"),
        ("model-owner", (NoThread, "session-"), "cannot start another thread"),
        ("model-owner", (NoThread, "commands"), "it can start no more threads"),
        ("model-owner", (Bug, "linear"), "unexpected KeyError at test_blame.py"),
        ("model-owner", (NoFiles, "linear"), "it can open no more files"),
        ("data-owner", (NoThread, "pool"), "it can start no more threads"),
        ("data-owner", (Bug, "offline"), "unexpected KeyError at test_blame.py"),
    ],
    ids=lambda value: "-".join((value[0].__name__, value[1])) if isinstance(value, tuple) else None,
)
def test_whoever_fails_is_named(cast: Cast, who: str, gate: tuple[type[Gate], str], what: str) -> None:
    kind, point = gate
    cast.start(*PARTIES, gates={who: kind(cast.folder, point)}, once=False)
    for name in ("coordinator", "data-owner"):
        assert cast.wait(name, LIMIT_S) > 0
    said = {name: cast.said(name) for name in PARTIES}
    assert f"error {who}: " in said["coordinator"], said["coordinator"]
    assert what in said["coordinator"], said["coordinator"]
    for name in {"dealer", "model-owner", "data-owner"} - {who}:
        blamed = [line for line in said[name].splitlines() if " ERROR parties: " in line]
        if blamed:
            assert f" {who}: " in blamed[-1], (name, blamed)
            assert CONFESSED_REASON in blamed[-1]
    assert not any("a word of the text" in text for text in said.values())
    for name in ("dealer", "model-owner"):
        assert cast.processes[name].exitcode is None, f"{name} is a service and goes on"
