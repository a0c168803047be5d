"""What a party receives ahead in a thread of its own, part by part, while it works on the parts before."""

import contextvars
import threading
from collections.abc import Callable, Sequence

# How often a wait asks whether the session still stands.
POLL_S = 0.5


class Arrivals:
    """Receives the parts of something large in order, as far ahead as there is room for them.

    It is a context: the thread begins when it is entered, and receives no further part after it was left.

    Args:
        receive: receives a part, given its number, and keeps it.
        sizes: how much room each part takes until it is used.
        limit: how much room there is. A part that is larger arrives once all before it were used.
        check: called while the caller waits; it raises if there is nothing to wait for any more.
    """

    def __init__(
        self, receive: Callable[[int], None], sizes: Sequence[int], limit: int, check: Callable[[], None]
    ) -> None:
        self._receive, self._sizes, self._limit, self._check = receive, sizes, limit, check
        self._changed = threading.Condition()
        self._n_arrived = self._n_used = 0
        self._ended = False
        self._error: BaseException | None = None
        # The context has the session's name, which log lines begin with.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name="arrivals", daemon=True)

    def wait(self, part: int) -> None:
        """Return when a part is there.

        Raises:
            MPCFormerError: receiving failed, or `check` found a reason.
        """
        with self._changed:
            while self._n_arrived <= part:
                if self._error is not None:
                    raise self._error
                self._check()
                self._changed.wait(POLL_S)

    def use(self, part: int) -> None:
        """Say that this part and those before it were used."""
        with self._changed:
            self._n_used = part + 1
            self._changed.notify_all()

    def _has_room(self, part: int) -> bool:
        return part == self._n_used or sum(self._sizes[self._n_used : part + 1]) <= self._limit

    def _run(self) -> None:
        try:
            for part in range(len(self._sizes)):
                with self._changed:
                    while not (self._ended or self._has_room(part)):
                        self._changed.wait()
                    if self._ended:
                        return
                self._receive(part)
                with self._changed:
                    self._n_arrived += 1
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def __enter__(self) -> "Arrivals":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
