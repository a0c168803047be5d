"""An attacker on the network, for tests: what one can do to the bytes of a link without any key.

A `Fault` hits one direction of one link once, at a byte offset counted over all connections through its relay; a chunk
is what the relay read at one go.
"""

from dataclasses import dataclass
from typing import Literal

from parties.runs.network import NetworkProfile, Passed, Relay, Side, Tap

Kind = Literal["cut", "corrupt", "duplicate", "reorder", "stall"]


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        kind: cut: close the connection both ways, `at_byte` bytes having passed; another one may be opened.
            corrupt: flip a bit of the byte at `at_byte`. duplicate: deliver the chunk that holds it twice.
            reorder: deliver that chunk after its connection's next one. stall: from there on deliver nothing on any
            connection, but keep all open.
        at_byte: the offset.
        towards: which direction it hits.
        bit: which bit of the byte is flipped, 0 to 7.
    """

    kind: Kind
    at_byte: int
    towards: Side = "party"
    bit: int = 0


class Attacker(Tap):
    """Counts one direction's bytes, and strikes when its fault, if there is one, is reached."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self._fault = fault
        self._held: tuple[object, bytes] | None = None

    def pass_on(self, connection: object, data: bytes) -> Passed:
        """What is delivered instead of a chunk of `connection`."""
        with self._lock:
            start, self.n_seen = self.n_seen, self.n_seen + len(data)
            if self._held is not None and self._held[0] is connection:
                return Passed([data, *self._take_held()])
            fault = self._fault
            if fault.at_byte >= self.n_seen or (fault.at_byte < start and fault.kind != "stall"):
                return Passed([data])
            return self._hit(fault, connection, data, max(0, fault.at_byte - start))

    def stalls(self) -> bool:
        """Whether this direction is dead by now."""
        return self._fault.kind == "stall" and self.n_seen > self._fault.at_byte

    def rest(self, connection: object) -> list[bytes]:
        """What was held back of a connection that ends."""
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
