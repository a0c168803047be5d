"""Where a private batch's seconds go, by operation."""

import time

OPERATIONS = ("embedding", "linear", "attention", "softmax", "activation", "norm", "check")


class Stopwatch:
    """Adds the time since the last lap to an operation. Seconds include waiting for the other owner."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def start(self) -> None:
        """Forget the time until now: what was between two parts of a batch."""
        self._last = time.perf_counter()

    def lap(self, operation: str) -> None:
        """The time since the last lap or start was spent on `operation`."""
        now = time.perf_counter()
        self.seconds[operation] = self.seconds.get(operation, 0.0) + now - self._last
        self._last = now
