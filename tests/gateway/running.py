"""A gateway as a process of its own, as a user starts it."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAIN = "from mpcformer.cli import main; main()"


class Running:
    """A gateway that was started.

    Args:
        process: the process.
        folder: its folder.

    Attributes:
        address: of the page.
        token: what callers show.
        said: what it printed.
    """

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self.process, self.said = process, ""
        assert process.stdout is not None
        deadline = time.monotonic() + 60
        while not (found := re.search(r"Serving (http://127\.0\.0\.1:\d+/) with the token in", self.said)):
            assert select.select([process.stdout], [], [], deadline - time.monotonic())[0], self.said
            line = process.stdout.readline()
            assert line, self.said
            self.said += line
        self.address = found[1]
        self.token = (folder / "token").read_text().strip()

    def ask(self, path: str, body: bytes | None = None, method: str | None = None) -> tuple[int, Any]:
        """Send a request with the token, and return status and JSON."""
        request = urllib.request.Request(self.address + path.lstrip("/"), data=body, method=method)
        request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, json.loads(reply.read() or "null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def stop(self) -> int:
        """Press Ctrl-C, and return the exit status."""
        self.process.send_signal(signal.SIGINT)
        self.said += self.process.communicate(timeout=60)[0]
        return self.process.returncode


@contextmanager
def running(student: Path, folder: Path) -> Iterator[Running]:
    """Start `mpcformer gateway` with a student, at a free port; end it at the end."""
    arguments = ["gateway", "--student", str(student), "--port", "0", "--folder", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    try:
        yield Running(process, folder)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
