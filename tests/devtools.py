"""Drive a headless Chromium as a user would, over the pipe of its DevTools protocol; no package is needed for it."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.browser import NAMES

# Chromium reads its commands from this file descriptor and writes its replies to the next one.
READS, WRITES = 3, 4
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowDown": 40}


class Page:
    """One tab.

    Args:
        commands, replies: the two pipes.

    Attributes:
        errors: what the page's console and its content security policy complained of.
    """

    def __init__(self, commands: int, replies: int) -> None:
        self._commands, self._replies, self._rest = commands, replies, b""
        self._n_calls, self._session = 0, ""
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, timeout_s: float = 60.0, **parameters: Any) -> Any:
        """Call a method of the protocol and return its result."""
        self._n_calls += 1
        message: dict[str, Any] = {"id": self._n_calls, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + timeout_s
        while True:
            found = self._next(deadline - time.monotonic())
            assert found is not None, f"{method} was not answered within {timeout_s} s"
            if found.get("id") == self._n_calls:
                assert "error" not in found, found
                return found["result"]

    def _next(self, timeout_s: float) -> dict[str, Any] | None:
        while b"\0" not in self._rest:
            if not select.select([self._replies], [], [], max(0.0, timeout_s))[0]:
                return None
            self._rest += os.read(self._replies, 1 << 20)
        line, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        given = found.get("params", {})
        if found.get("method") == "Log.entryAdded" and given["entry"]["level"] == "error":
            self.errors.append(given["entry"]["text"])
        if found.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(given["exceptionDetails"]))
        return found

    def open(self, address: str) -> None:
        """Go to an address."""
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str, timeout_s: float = 60.0) -> Any:
        """Wait until an expression is true, and return its value."""
        deadline = time.monotonic() + timeout_s
        while not (found := self.run(script)):
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {script}; {self.errors}"
            time.sleep(0.05)
        return found

    def shown(self, selector: str) -> str:
        """Return the text that a reader sees of an element; empty if it is hidden."""
        return str(self.run(f"document.querySelector({selector!r}).innerText"))

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, *, ctrl: bool = False) -> None:
        """Press a key."""
        code = KEYS[key]
        text = {"Enter": "\r", " ": " "}.get(key, "")
        given = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
        given["modifiers"] = 2 if ctrl else 0
        self.call("Input.dispatchKeyEvent", type="keyDown", **given, **({"text": text} if text and not ctrl else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **given)

    def choose(self, selector: str, path: Path) -> None:
        """Choose a file in a field."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def drop(self, selector: str, path: Path) -> None:
        """Drag a file from outside and drop it on an element."""
        self.run(f"document.querySelector({selector!r}).scrollIntoView()")
        script = f"(({{x, y}}) => [x + 9, y + 9])(document.querySelector({selector!r}).getBoundingClientRect())"
        x, y = self.run(script)
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def look(self, width: int, *, dark: bool = False) -> None:
        """Be as wide as a screen of so many CSS pixels, and as light or dark as its user wants."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        """Write a picture of the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Start a browser with one tab; the test is skipped where none is installed.

    Args:
        folder: an empty folder for what it writes. What it downloads goes there, too.
    """
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if not chromium:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    read_commands, commands = os.pipe()
    replies, write_replies = os.pipe()

    def as_chromium_wants() -> None:
        # Copies first: one of the four may have the number of another's place.
        ends = os.dup(read_commands), os.dup(write_replies)
        for end, place in zip(ends, (READS, WRITES), strict=True):
            os.dup2(end, place)

    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
    process = subprocess.Popen(
        [chromium, *options, f"--user-data-dir={folder / 'profile'}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=as_chromium_wants,
        close_fds=False,
    )
    os.close(read_commands)
    os.close(write_replies)
    try:
        page = Page(commands, replies)
        page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        yield page
        page.call("Browser.close")
        # Its helpers still write to the folder until it has ended.
        process.wait(timeout=20)
    finally:
        process.kill()
        process.wait()
        os.close(commands)
        os.close(replies)
