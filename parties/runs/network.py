"""Network profiles: a relay on the loopback interface gives the links of the parties a round-trip time and a rate.

The relay passes bytes on and cannot read them, because they are TLS. Each direction of a link is one queue: a chunk
leaves at the link's rate when the chunk before it has left, and arrives half a round trip later. The relay uses threads
instead of an event loop, because threads sleep with a precision of a twentieth of a millisecond.
"""

import math
import queue
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mpcformer.errors import UserInputError

CHUNK = 1 << 16
MIN_QUEUED = 64
# The relay stands in front of the party; the caller connects to the relay.
Side = Literal["party", "caller"]


@dataclass(frozen=True)
class NetworkProfile:
    """The properties of a link between two parties.

    Args:
        name: the name or the text that was asked for.
        rtt_s: the round-trip time in seconds.
        bytes_s: the rate of each direction in bytes per second.
    """

    name: str
    rtt_s: float
    bytes_s: float

    def to_json(self) -> dict[str, object]:
        """Return the values that reports show."""
        return {"profile": self.name, "rtt_ms": self.rtt_s * 1e3, "mbit_s": self.bytes_s * 8 / 1e6}


# Papers of this field report these links: a switched Gigabit network, and two sites on one continent.
PROFILES = {"lan": NetworkProfile("lan", 0.5e-3, 1e9 / 8), "wan": NetworkProfile("wan", 40e-3, 100e6 / 8)}


def network_profile(text: str) -> NetworkProfile | None:
    """Return the profile that `text` asks for: none, lan, wan, or RTT_MS,MBIT. The profile of `none` is None.

    Raises:
        UserInputError: the text is none of these.
    """
    if text == "none":
        return None
    if text in PROFILES:
        return PROFILES[text]
    try:
        rtt_ms, mbit = (float(part) for part in text.split(","))
    except ValueError:
        rtt_ms, mbit = -1.0, 0.0
    if not (0 <= rtt_ms < math.inf and 0 < mbit < math.inf):
        raise UserInputError(f"--network: {text!r} is no network", "give none, lan, wan, or RTT_MS,MBIT such as 20,500")
    return NetworkProfile(text, rtt_ms / 1e3, mbit * 1e6 / 8)


class Passed(NamedTuple):
    """What to deliver in place of a chunk, and whether the connection ends or stalls after it."""

    chunks: list[bytes]
    then: Literal["go on", "cut", "stall"] = "go on"


class Tap:
    """Counts the bytes of one direction of a link and passes them on. Tests give a relay one that changes them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.n_seen = 0

    def pass_on(self, connection: object, data: bytes) -> Passed:
        """Return what is delivered in place of a chunk of `connection`."""
        with self._lock:
            self.n_seen += len(data)
        return Passed([data])

    def stalls(self) -> bool:
        """Return whether this direction has stopped delivering anything."""
        return False

    def rest(self, connection: object) -> list[bytes]:
        """Return the chunks that were held back of a connection that ends."""
        return []


class Lane:
    """One direction of a link, which all connections through the link share."""

    def __init__(self, profile: NetworkProfile, tap: Tap | None = None) -> None:
        self._profile = profile
        self._free_at = 0.0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.tap = tap or Tap()
        self.stalled = threading.Event()
        self.n_queued = max(MIN_QUEUED, round(2 * profile.bytes_s * profile.rtt_s / CHUNK))

    def arrival(self, n_bytes: int) -> float:
        """Return when a chunk that is sent now arrives, by the monotonic clock."""
        with self._lock:
            self._free_at = max(time.monotonic(), self._free_at) + n_bytes / self._profile.bytes_s
            return self._free_at + self._profile.rtt_s / 2

    def close(self) -> None:
        """End the connections that are stalled. Their sockets are closed already."""
        self._closed.set()

    def carry(self, source: socket.socket, target: socket.socket) -> None:
        """Pass on what `source` sends until it ends, then end that direction at `target`."""
        waiting: queue.Queue[tuple[float, bytes] | None] = queue.Queue(self.n_queued)
        cut = threading.Event()

        def deliver() -> None:
            broken = False
            while (item := waiting.get()) is not None:
                delay = item[0] - time.monotonic()
                if delay > 0:
                    time.sleep(delay)
                self._wait_if_stalled()
                try:
                    if not broken:
                        target.sendall(item[1])
                except OSError:
                    broken = True
                    _shut(source)
            if cut.is_set():
                _shut(source)
                _shut(target)
            self._wait_if_stalled()
            _shut(target, socket.SHUT_WR)

        thread = threading.Thread(target=deliver, name="relay-deliver", daemon=True)
        thread.start()
        with suppress(OSError):
            while not cut.is_set() and (data := source.recv(CHUNK)):
                passed = self.tap.pass_on(source, data)
                for chunk in passed.chunks:
                    waiting.put((self.arrival(len(chunk)), chunk))
                if passed.then == "cut":
                    cut.set()
                elif passed.then == "stall":
                    break
        if self.tap.stalls():
            # The relay stops reading, as if the line were dead. What was sent before still arrives.
            self._closed.wait()
        for chunk in self.tap.rest(source):
            waiting.put((self.arrival(len(chunk)), chunk))
        waiting.put(None)
        thread.join()

    def _wait_if_stalled(self) -> None:
        if self.stalled.is_set():
            self._closed.wait()


class Relay:
    """A port in front of a party's port.

    Args:
        target: the address of the party, HOST:PORT.
        profile: the properties of the link.
        taps: the tap of each direction; without one, bytes are passed on unchanged.
    """

    def __init__(self, target: str, profile: NetworkProfile, taps: Mapping[Side, Tap] | None = None) -> None:
        host, port = target.rsplit(":", 1)
        self._target = host, int(port)
        sides: tuple[Side, ...] = ("party", "caller")
        self._lanes = {side: Lane(profile, (taps or {}).get(side)) for side in sides}
        self._server = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._ended = False
        self._lock = threading.Lock()
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, name="relay-accept", daemon=True).start()

    def cut(self) -> None:
        """End all connections at once, whatever is on its way, and accept no more."""
        with self._lock:
            self._ended = True
            for end in (self._server, *self._sockets):
                _shut(end)
                end.close()
        for lane in self._lanes.values():
            lane.close()

    def close(self) -> None:
        """End the relay."""
        self.cut()

    def stall(self) -> None:
        """Deliver nothing any more in either direction, but keep connections open and accept new ones."""
        for lane in self._lanes.values():
            lane.stalled.set()

    def n_seen(self, towards: Side) -> int:
        """Return the number of bytes that were sent in one direction, over all connections."""
        return self._lanes[towards].tap.n_seen

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                near, _ = self._server.accept()
                try:
                    far = socket.create_connection(self._target)
                except OSError:
                    near.close()
                    continue
                with self._lock:
                    if self._ended:
                        near.close()
                        far.close()
                        return
                    self._sockets += [near, far]
                ways: tuple[tuple[Side, socket.socket, socket.socket], ...]
                ways = ("party", near, far), ("caller", far, near)
                for side, source, sink in ways:
                    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(
                        target=self._lanes[side].carry, args=(source, sink), name="relay-carry", daemon=True
                    ).start()


class Relays:
    """All relays of a simulation.

    Args:
        profile: the properties of every link; None uses no relay.
    """

    def __init__(self, profile: NetworkProfile | None) -> None:
        self._profile = profile
        self._relays: list[Relay] = []

    def route(self, address: str) -> str:
        """Return the address under which the other parties reach `address`."""
        if self._profile is None:
            return address
        self._relays.append(Relay(address, self._profile))
        return self._relays[-1].address

    def close(self) -> None:
        """End all relays."""
        for relay in self._relays:
            relay.close()


def _shut(end: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    with suppress(OSError):
        end.shutdown(how)
