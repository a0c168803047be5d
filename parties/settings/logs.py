"""The log lines of a party, as text or as JSON objects. They name parties, sessions and places, never content."""

import contextvars
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TextIO

from mpcformer.errors import FIX, MPCFormerError, escaped, unexpected

log = logging.getLogger(__name__)
_session: contextvars.ContextVar[str] = contextvars.ContextVar("session", default="")
# The id of a session is no secret; eight digits of it are enough to tell sessions apart.
SHOWN_DIGITS = 8


class _Session(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.session = _session.get()
        return True


def _said(record: logging.LogRecord) -> str:
    """Return a record's message. Whatever was put into it is escaped, whoever said it; an error keeps its second line.

    A message that comes whole, as from a library, is escaped too.
    """
    if not record.args:
        return escaped(str(record.msg))
    given = record.args
    if isinstance(given, Mapping):
        return str(record.msg) % {name: _quoted(value) for name, value in given.items()}
    return str(record.msg) % tuple(map(_quoted, given))


def _quoted(value: object) -> object:
    if isinstance(value, int | float):
        return value
    if isinstance(value, MPCFormerError) and value.remedy:
        return f"{escaped(value.what)}\n{FIX}{escaped(value.remedy)}"
    return escaped(str(value))


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        session = getattr(record, "session", "")
        where = f"{record.name} {session}".strip()
        return f"{self.formatTime(record)} {record.levelname} {where}: {_said(record)}"


class _Json(logging.Formatter):
    def __init__(self, party_id: str) -> None:
        super().__init__()
        self._party_id = party_id

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        fields = {"time": at, "level": record.levelname.lower(), "party": self._party_id, "logger": record.name}
        session = getattr(record, "session", "")
        return json.dumps(fields | ({"session": session} if session else {}) | {"message": _said(record)})


class _ToStderr(logging.StreamHandler[TextIO]):
    """Writes to the stderr that it was made with, or to the present one if somebody has closed that."""

    def emit(self, record: logging.LogRecord) -> None:
        if self.stream.closed:
            self.stream = sys.stderr  # `setStream` would flush the closed one
        super().emit(record)


def set_up(party_id: str, style: Literal["text", "json"]) -> None:
    """Write log lines to stderr in the given style; so are errors that end a thread or the process, without a trace."""
    handler = _ToStderr()
    handler.setFormatter(_Json(party_id) if style == "json" else _Text())
    handler.addFilter(_Session())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    threading.excepthook = lambda what: _note(what.exc_value)
    sys.excepthook = lambda kind, error, trace: _note(error)


def _note(error: BaseException | None) -> None:
    """Log an error that nobody caught. gRPC's thread that watches a connection may find it closed, which is none."""
    if error is not None and not (isinstance(error, ValueError) and "Channel closed" in str(error)):
        log.error("%s", unexpected(error))


@contextmanager
def session_log(session_id: bytes) -> Iterator[None]:
    """Mark the log lines of this thread with a session while the block runs."""
    token = _session.set(session_id.hex()[:SHOWN_DIGITS])
    try:
        yield
    finally:
        _session.reset(token)
