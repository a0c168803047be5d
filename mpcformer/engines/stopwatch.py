"""How the seconds of a private batch divide among operations."""

import time

from mpcformer.channel import Counters

OPERATIONS = ("embedding", "linear", "attention", "softmax", "activation", "norm", "check")


class Stopwatch:
    """Adds the time since the last lap to an operation.

    Args:
        counters: the counters of the channel to the other owner, which know how long this owner waited.

    Attributes:
        seconds: seconds by operation, waiting included.
        waited: by operation, the part of those seconds that was spent on waiting for messages and reading them.
    """

    def __init__(self, counters: Counters) -> None:
        self.seconds: dict[str, float] = {}
        self.waited: dict[str, float] = {}
        self._counters = counters
        self.start()

    def start(self) -> None:
        """Forget the time until now, which passed between two parts of a batch."""
        self._last, self._waited = time.perf_counter(), self._counters.seconds_waited

    def lap(self, operation: str) -> None:
        """Add the time since the last lap or start to `operation`."""
        last, waited = self._last, self._waited
        self.start()
        self.seconds[operation] = self.seconds.get(operation, 0.0) + self._last - last
        self.waited[operation] = self.waited.get(operation, 0.0) + self._waited - waited
