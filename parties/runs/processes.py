"""Start, watch and end the parties of a simulation, which are processes of this machine."""

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mpcformer.errors import FIX, PartyError

if TYPE_CHECKING:
    from parties.roles.coordinator import Coordinator

LEAVE_TIMEOUT_S = 8.0
CULPRIT_TIMEOUT_S = 1.0
START_TIMEOUT_S = 60.0


class Processes:
    """The processes of the parties. They are spawned, because gRPC does not survive a fork.

    Args:
        logs: the folder for the parties' logs.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = threading.Event()

    def start(self, name: str, *arguments: str, with_parent: bool = False) -> None:
        """Run `python -m arguments...` and write its output to the party's log.

        Args:
            name: the party's.
            arguments: what to run.
            with_parent: whether its standard input ends when this process does.
        """
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "GRPC_VERBOSITY": "NONE"}
        with (self._logs / f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE if with_parent else None,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def address_of(self, name: str, path: Path) -> str:
        """Wait until a service has written its address to a file, and return the address.

        Raises:
            PartyError: the service ended, or wrote no address in time.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while not path.is_file():
            status = self.running[name].poll()
            if status is not None:
                raise PartyError(name, describe_exit(status, self.last_line(name)))
            if time.monotonic() > deadline:
                raise PartyError(name, f"did not start within {START_TIMEOUT_S:.0f} s")
            time.sleep(0.02)
        return path.read_text()

    def watch(self, coordinator: "Coordinator") -> None:
        """Tell the coordinator as soon as a process ends with an error."""

        def wait(name: str, process: subprocess.Popen[bytes]) -> None:
            status = process.wait()
            if status and not self._stopping.is_set():
                coordinator.accuse(name, describe_exit(status, self.last_line(name)))

        for name, process in self.running.items():
            threading.Thread(target=wait, args=(name, process), daemon=True).start()

    def last_line(self, name: str) -> str:
        """Return the end of a party's log: its last line, or an error's line and its remedy's."""
        lines = (self._logs / f"{name}.log").read_text(errors="replace").strip().splitlines()
        last = len(lines) - 2 if lines and lines[-1].startswith(FIX) else len(lines) - 1
        return "; ".join(lines[max(0, last) :])

    def stop(self, culprit: str | None = None) -> None:
        """Wait until all processes have ended. Those that do not end are asked to, then killed.

        Args:
            culprit: the party that caused a failure, if one did. It is given less time than the others.
        """
        asked_at = time.monotonic() + LEAVE_TIMEOUT_S / 2
        deadline = asked_at + LEAVE_TIMEOUT_S / 2
        for name, process in sorted(self.running.items(), key=lambda item: item[0] != culprit):
            try:
                process.wait(CULPRIT_TIMEOUT_S if name == culprit else max(0.1, asked_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.terminate()  # a service waits for sessions as long as none has reached it
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0 if name == culprit else max(0.1, deadline - time.monotonic()))
                process.kill()
                process.wait()

    def kill(self) -> None:
        """Kill all processes at once."""
        self._stopping.set()
        for process in self.running.values():
            if process.poll() is None:
                process.kill()
        for process in self.running.values():
            process.wait()


def describe_exit(status: int, last_line: str) -> str:
    """Return a sentence about how a process ended."""
    if status < 0:
        return f"its process was killed by signal {-status}"
    return f"its process ended with status {status}: {last_line}"
