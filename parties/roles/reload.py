"""A model owner reads its file again on SIGHUP, and so adds, replaces and withdraws students without a restart."""

import logging
import os
import queue
import signal
import threading
from pathlib import Path

from mpcformer.errors import MPCFormerError, UserInputError, unexpected
from parties.roles.model_owner import ModelOwner
from parties.settings import metrics
from parties.settings.config import ModelOwnerConfig
from parties.settings.config_file import by_keys, load_party

log = logging.getLogger(__name__)


class Reloading:
    """Takes SIGHUP from now on; a signal that comes before `serve` waits for it.

    Args:
        path: the model owner's file.
        stop: set in place of a reload if the signal says that the terminal is gone in which the process was started.
    """

    def __init__(self, path: Path, stop: threading.Event) -> None:
        self._path, self._stop = path, stop
        # A handler of signals may put something there whatever this process is doing.
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        # Whoever starts a service with nohup wants it to outlive the terminal.
        self._had_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()
        signal.signal(signal.SIGHUP, self._hangup)

    def _hangup(self, number: int, frame: object) -> None:
        if self._had_terminal and not _has_terminal():
            self._stop.set()
        else:
            self._asked.put(None)

    def serve(self, party: ModelOwner) -> None:
        """Let this model owner read its file again at each signal, in a thread of its own."""
        threading.Thread(target=self._work, args=(party,), name="reload", daemon=True).start()

    def _work(self, party: ModelOwner) -> None:
        while True:
            self._asked.get()
            reload(self._path, party)


def reload(path: Path, party: ModelOwner) -> None:
    """Read a model owner's file again. Whatever is wrong with it, or with a student, is logged, and nothing changes."""
    try:
        config = load_party(path)
        if not isinstance(config, ModelOwnerConfig) or config.id != party.id:
            raise UserInputError(
                f"--config: {path} is not the file of the model owner {party.id!r} any more", "restart it with its own"
            )
        party.reload(config)
    except MPCFormerError as error:
        log.error("nothing is taken up of %s, all stays as it was: %s", path, by_keys(error))
    except Exception as error:
        log.error("nothing is taken up of %s, all stays as it was: %s", path, unexpected(error))
    else:
        log.info("%s was read again", path)
        metrics.reloads.labels(metrics.WELL).inc()
        return
    metrics.reloads.labels(metrics.FAILED).inc()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
