"""Where a private batch's seconds go, by operation."""

import time

from mpcformer.channel import Counters

OPERATIONS = ("embedding", "linear", "attention", "softmax", "activation", "norm", "check")


class Stopwatch:
    """Adds the time since the last lap to an operation.

    Args:
        counters: of the channel to the other owner, which know how long it was waited for.

    Attributes:
        seconds: by operation, waiting included.
        waited: by operation, the part of them that was waiting for the other owner's messages and reading them.
    """

    def __init__(self, counters: Counters) -> None:
        self.seconds: dict[str, float] = {}
        self.waited: dict[str, float] = {}
        self._counters = counters
        self.start()

    def start(self) -> None:
        """Forget the time until now: what was between two parts of a batch."""
        self._last, self._waited = time.perf_counter(), self._counters.seconds_waited

    def lap(self, operation: str) -> None:
        """The time since the last lap or start was spent on `operation`."""
        last, waited = self._last, self._waited
        self.start()
        self.seconds[operation] = self.seconds.get(operation, 0.0) + self._last - last
        self.waited[operation] = self.waited.get(operation, 0.0) + self._waited - waited
