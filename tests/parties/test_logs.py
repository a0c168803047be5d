"""Log lines cannot be forged: whatever somebody else said is escaped by the log's formatter, whoever logs it."""

import io
import json
import logging
import queue
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mpcformer.console import show_error
from mpcformer.errors import PartyError, UserInputError, escaped
from parties.session.failure import report_failure_of
from parties.session.membership import Membership
from parties.settings import logs
from parties.settings.config import DealerConfig, Insecure
from parties.stubs import parties_pb2 as pb

FORGED = "2026-01-01 00:00:00,000 INFO parties: all is well"
EVIL = f"x\n{FORGED}\x1b[2J\r\x9b31m\u202e\u2028{FORGED}\nfix: run this"


@pytest.fixture
def written(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Log in the style that the test asks for, and return what is written."""
    file, root = io.StringIO(), logging.getLogger()
    handlers, level, hooks = root.handlers[:], root.level, (sys.excepthook, threading.excepthook)
    monkeypatch.setattr(sys, "stderr", file)
    logs.set_up("party", request.param)
    yield file
    root.handlers, root.level = handlers, level
    sys.excepthook, threading.excepthook = hooks


def check(written: io.StringIO, n_lines: int) -> None:
    """Check that nothing which was said became a line, or a sequence for the terminal, of its own."""
    lines = written.getvalue().splitlines()
    assert len(lines) == n_lines, lines
    assert not any(line.startswith((FORGED, "fix: run this")) for line in lines)
    assert not any(sign in written.getvalue() for sign in ("\x1b", "\r", "\x9b", "\u202e", "\u2028"))


STYLES = pytest.mark.parametrize("written", ["text", "json"], indirect=True)


@STYLES
@pytest.mark.parametrize("field", ["culprit", "reason"])
def test_an_abort_of_a_coordinator_forges_no_line(written: io.StringIO, field: str) -> None:
    config = DealerConfig(
        role="dealer",
        id="dealer",
        coordinators=["coordinator"],
        data_owners=["data-owner"],
        model_owners=["model-owner"],
        insecure=Insecure(plaintext=True),
    )
    membership = Membership(config, role="dealer", coordinator_id="coordinator")
    commands: queue.SimpleQueue[pb.Command] = queue.SimpleQueue()
    said: dict[str, Any] = {"culprit": "data-owner", "reason": "it left"} | {field: EVIL}
    commands.put(pb.Command(job=pb.Job(session_id=bytes(16))))
    commands.put(pb.Command(abort=pb.Abort(**said)))
    membership.listen(iter(commands.get, None))

    def work() -> None:
        membership.job()
        membership.dismissed()

    assert report_failure_of(work, membership) == 3
    check(written, 1)


@STYLES
def test_whatever_is_logged_is_escaped(written: io.StringIO) -> None:
    log = logging.getLogger("any")
    log.error("%s", UserInputError(f"data.csv, column {EVIL!s}: the text is null", f"fill it in, {EVIL}"))
    log.error("%s and %d", EVIL, 3)
    log.error("%(name)s", {"name": EVIL})
    log.error(EVIL)
    log.error("%s", PartyError(EVIL, "it left"))
    log.warning("%.1f of %s", 1.5, [EVIL])
    thread = threading.Thread(target=lambda: int(EVIL))
    thread.start()
    thread.join()
    is_text = not written.getvalue().startswith("{")
    check(written, 8 if is_text else 7)
    lines = written.getvalue().splitlines()
    if is_text:
        assert lines[1].startswith("fix: fill it in, x\\n2026"), "a remedy has a line of its own, which is ours"
    else:
        assert json.loads(lines[1])["message"].endswith(" and 3")
    assert "unexpected ValueError at test_logs.py" in lines[-1]
    assert FORGED not in lines[-1], "the message of an error that nobody foresaw may quote data"


def test_an_error_on_the_terminal_forges_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(EVIL, f"look, {EVIL}")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["error", "fix"]


def test_what_is_shown_can_be_read_back() -> None:
    assert escaped("a\tb\u202ec\\") == "a\\tb\\u202ec\\"
    assert escaped("é ü 漢 \U0001f600") == "é ü 漢 \U0001f600"


@STYLES
def test_a_stderr_that_somebody_closed_is_replaced(written: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging must never fail the work that logs: it did, where a party outlived the stderr that it began with."""
    written.close()
    other = io.StringIO()
    monkeypatch.setattr(sys, "stderr", other)
    logging.getLogger("any").error("%s", "still here")
    assert "still here" in other.getvalue()
