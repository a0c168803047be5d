"""Start the parties of a simulation by forking a process that has already imported everything.

A run then takes about one second instead of ten. The parties run the same command, `python -m parties --config FILE`.
The tests in test_end_to_end.py and the deployment tests start parties as users do.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from parties.runs.processes import Processes

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.imports"])


class Forked:
    """A process with the methods of Popen that a simulation uses."""

    def __init__(self, process: BaseProcess) -> None:
        assert process.pid is not None
        self._process, self.pid = process, process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def terminate(self) -> None:
        self._process.terminate()


class ForkedProcesses(Processes):
    """A replacement for `parties.runs.simulation.Processes` that forks."""

    def start(self, name: str, *arguments: str, with_parent: bool = False) -> None:
        # A forked process has no standard input of its own that could end; the test kills it.
        arguments = tuple(each for each in arguments if each != "--with-parent")
        process = context.Process(target=run, args=(self._logs / f"{name}.log", arguments), name=name)
        process.start()
        running: dict[str, Any] = self.running
        running[name] = Forked(process)


def run(log: Path, arguments: tuple[str, ...]) -> None:
    """Run `python -m ARGUMENTS` in the forked process, with its output in the log."""
    redirect(log)
    sys.argv = list(arguments)
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    leave(status)


class ForkedPart:
    """A replacement for `Popen` that forks the process of a program, with its pipes and descriptors."""

    def __init__(
        self,
        command: list[str],
        *,
        stdin: int,
        stdout: int,
        pass_fds: tuple[int, ...],
        start_new_session: bool,
        env: dict[str, str],
    ) -> None:
        ours, theirs = zip(*(os.pipe()[::step] for step in (-1, 1)), strict=True)
        ends = [Connection(theirs[0], writable=False), Connection(theirs[1], readable=False)]
        ends += [Connection(os.dup(number)) for number in pass_fds]
        process = context.Process(target=run_part, args=(ends,))
        process.start()
        for end in ends:
            end.close()
        self._process = Forked(process)
        self.pid = self._process.pid
        self.stdin, self.stdout = os.fdopen(ours[0], "wb"), os.fdopen(ours[1], "rb")

    def wait(self) -> int:
        return self._process.wait()

    def kill(self) -> None:
        self._process.kill()


def run_part(ends: list[Connection]) -> None:
    """Play a part of a program in the forked process."""
    from parties.program_process import part

    os.setsid()
    for number in (0, 1):
        os.dup2(ends[number].fileno(), number)
        ends[number].close()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    part.main(*(end.fileno() for end in ends[2:]))


def redirect(log: Path) -> None:
    """Write output and errors to a file, and ignore interrupts from the terminal."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def leave(status: int) -> None:
    """End the process without the exit handlers that it inherited from the forking process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
