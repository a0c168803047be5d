"""An attacker on the network, for tests: it does to the bytes of a link what is possible without any key.

A `Fault` hits one direction of one link once, at a byte offset that is counted over all connections through its relay.
A chunk is what the relay reads at once.
"""

from dataclasses import dataclass
from typing import Literal

from parties.runs.network import NetworkProfile, Passed, Relay, Side, Tap

Kind = Literal["cut", "corrupt", "duplicate", "reorder", "stall"]


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        kind: "cut" closes the connection both ways after `at_byte` bytes; another one may be opened. "corrupt" flips a
            bit of the byte at `at_byte`. "duplicate" delivers the chunk with that byte twice. "reorder" delivers that
            chunk after the next one of its connection. "stall" delivers nothing from there on, on any connection, but
            keeps all connections open.
        at_byte: the offset, in bytes.
        towards: the direction that it hits.
        bit: which bit of the byte is flipped, 0 to 7.
    """

    kind: Kind
    at_byte: int
    towards: Side = "party"
    bit: int = 0


class Attacker(Tap):
    """Counts the bytes of one direction, and strikes at the offset of its fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self._fault = fault
        self._held: tuple[object, bytes] | None = None

    def pass_on(self, connection: object, data: bytes) -> Passed:
        """Return what is delivered in place of a chunk of `connection`."""
        with self._lock:
            start, self.n_seen = self.n_seen, self.n_seen + len(data)
            if self._held is not None and self._held[0] is connection:
                return Passed([data, *self._take_held()])
            fault = self._fault
            if fault.at_byte >= self.n_seen or (fault.at_byte < start and fault.kind != "stall"):
                return Passed([data])
            return self._hit(fault, connection, data, max(0, fault.at_byte - start))

    def stalls(self) -> bool:
        """Return whether this direction has stopped delivering anything."""
        return self._fault.kind == "stall" and self.n_seen > self._fault.at_byte

    def rest(self, connection: object) -> list[bytes]:
        """Return the chunks that were held back of a connection that ends."""
        with self._lock:
            return self._take_held() if self._held is not None and self._held[0] is connection else []

    def _hit(self, fault: Fault, connection: object, data: bytes, at: int) -> Passed:
        if fault.kind == "corrupt":
            return Passed([data[:at] + bytes([data[at] ^ 1 << fault.bit]) + data[at + 1 :]])
        if fault.kind == "duplicate":
            return Passed([data, data])
        if fault.kind == "reorder":
            self._held = connection, data
            return Passed([])
        return Passed([data[:at]], fault.kind)

    def _take_held(self) -> list[bytes]:
        held, self._held = self._held, None
        return [held[1]] if held else []


def attacked(target: str, profile: NetworkProfile, fault: Fault | None) -> Relay:
    """Return a relay in front of `target` whose link suffers the fault, if there is one."""
    return Relay(target, profile, {fault.towards: Attacker(fault)} if fault else None)
