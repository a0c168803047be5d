"""What the others see of a batch: the bytes that leave for the model owner, and what the dealer is asked for."""

import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from mpcformer.channel import Counters
from mpcformer.correlations import Request
from parties.wire.frame import Frame

# How many of the first bytes are kept as they are, how many are counted, and how many different requests are listed.
N_FIRST, N_COUNTED, N_KINDS = 256, 1 << 20, 24


@dataclass
class Seen:
    """What left the data owner for one batch, and what the dealer was asked for.

    Args:
        first: the first bytes of the messages that depend on the text, as they went into the frames.
        histogram: how often each of the 256 values of a byte came, among the first `N_COUNTED` bytes.
        n_requests: how many correlations the dealer was asked for.
        requests: (kind, shapes, how many), the first `N_KINDS` different ones.
    """

    first: bytes
    histogram: list[int]
    n_requests: int
    requests: list[tuple[str, tuple[tuple[int, ...], ...], int]] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Seen({sum(self.histogram)} bytes, {self.n_requests} requests)"


class Tap:
    """Looks at the frames of a channel on their way out. It changes nothing, and keeps little.

    Args:
        counters: those of the channel.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        # The numbers [first, end) of the messages to look at. Others may wait to be sent together with them.
        self._spans: list[list[int]] = []
        # gRPC's thread sends frames, while another one asks what was sent.
        self._lock = threading.Lock()
        self._first = bytearray()
        self._histogram = np.zeros(256, dtype=np.int64)
        self._left = N_COUNTED

    @contextmanager
    def online(self) -> Iterator[None]:
        """Look at the messages that are sent within this context: those of the online part depend on the text."""
        span = [self._counters.messages_sent, sys.maxsize]
        with self._lock:
            self._spans.append(span)
        yield
        with self._lock:
            span[1] = self._counters.messages_sent

    def __call__(self, frame: Frame) -> None:
        """Note the payload of a frame."""
        with self._lock:
            if not any(first <= frame.header.operation < end for first, end in self._spans):
                return
            payload = frame.payload[: self._left]
            self._left -= len(payload)
            self._first += payload[: N_FIRST - len(self._first)]
            self._histogram += np.bincount(np.frombuffer(payload, dtype=np.uint8), minlength=256)

    def seen(self, plan: Sequence[Sequence[Request]]) -> Seen:
        """Return what was sent until now.

        Args:
            plan: the batch's correlations, by segments.
        """
        asked = Counter((request.kind, request.shapes) for segment in plan for request in segment)
        listed = [(kind, shapes, n) for (kind, shapes), n in list(asked.items())[:N_KINDS]]
        with self._lock:
            return Seen(bytes(self._first), self._histogram.tolist(), asked.total(), listed)
