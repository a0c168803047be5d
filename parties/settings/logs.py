"""The log lines of a party, as text or as JSON objects. They name parties, sessions and places, never content."""

import contextvars
import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

_session: contextvars.ContextVar[str] = contextvars.ContextVar("session", default="")
# The id of a session is no secret; eight digits of it are enough to tell sessions apart.
SHOWN_DIGITS = 8


class _Session(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.session = _session.get()
        return True


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        session = getattr(record, "session", "")
        where = f"{record.name} {session}".strip()
        return f"{self.formatTime(record)} {record.levelname} {where}: {record.getMessage()}"


class _Json(logging.Formatter):
    def __init__(self, party_id: str) -> None:
        super().__init__()
        self._party_id = party_id

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        fields = {"time": at, "level": record.levelname.lower(), "party": self._party_id, "logger": record.name}
        session = getattr(record, "session", "")
        return json.dumps(fields | ({"session": session} if session else {}) | {"message": record.getMessage()})


def set_up(party_id: str, style: Literal["text", "json"]) -> None:
    """Write log lines to stderr in the given style."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(party_id) if style == "json" else _Text())
    handler.addFilter(_Session())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


@contextmanager
def session_log(session_id: bytes) -> Iterator[None]:
    """Mark the log lines of this thread with a session while the block runs."""
    token = _session.set(session_id.hex()[:SHOWN_DIGITS])
    try:
        yield
    finally:
        _session.reset(token)
