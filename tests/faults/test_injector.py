"""Each fault of the attacker does what it says to a byte stream, where it says, and nothing else."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from parties.runs.network import NetworkProfile, Passed, Relay, Side
from tests.faults import injector
from tests.faults.injector import Attacker, Fault
from tests.parties.test_network import Echo, connect, exchange

FAST = NetworkProfile("x", 0.0, 1e9)
# How long a connection must be quiet before a test concludes that nothing more arrives, and how long it waits for a
# chunk that may never arrive.
QUIET_S, CHUNK_S = 0.5, 0.3
SIDES: tuple[Side, ...] = ("party", "caller")
CHUNKS = [bytes([65 + i]) * 10 for i in range(5)]


@contextmanager
def attacked(fault: Fault | None) -> Iterator[tuple[Relay, socket.socket]]:
    relay = injector.attacked(Echo().address, FAST, fault)
    with connect(relay.address) as end:
        yield relay, end
    relay.close()


def echoed(relay: Relay, end: socket.socket) -> bytes:
    """Send five chunks, each of which the relay reads at once; return what comes back."""
    received = b""
    end.settimeout(QUIET_S)
    with suppress(OSError):  # The connection may be cut.
        for chunk in CHUNKS:
            n_seen = [relay.n_seen(side) for side in SIDES]
            end.sendall(chunk)
            until = time.monotonic() + CHUNK_S
            while any(relay.n_seen(s) == n for s, n in zip(SIDES, n_seen, strict=True)) and time.monotonic() < until:
                time.sleep(0.002)
        end.shutdown(socket.SHUT_WR)
    try:
        while data := end.recv(1000):
            received += data
    except TimeoutError:
        received += b"..."
    except ConnectionError:
        pass
    return received


@pytest.mark.parametrize("towards", ["party", "caller"])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cut", b"A" * 10 + b"B" * 5),
        ("corrupt", b"A" * 10 + b"B" * 5 + b"F" + b"B" * 4 + b"C" * 10 + b"D" * 10 + b"E" * 10),
        ("duplicate", b"A" * 10 + b"B" * 20 + b"C" * 10 + b"D" * 10 + b"E" * 10),
        ("reorder", b"A" * 10 + b"C" * 10 + b"B" * 10 + b"D" * 10 + b"E" * 10),
        ("stall", b"A" * 10 + b"B" * 5 + b"..."),
    ],
)
def test_each_fault_both_ways(kind: str, expected: bytes, towards: str) -> None:
    with attacked(Fault(kind, 15, towards, bit=2)) as (relay, end):  # type: ignore[arg-type]
        received = echoed(relay, end)
        if kind == "cut" and towards == "party":
            # Bytes on their way in the other direction may be lost.
            assert expected.startswith(received)
        else:
            assert received == expected
        assert relay.n_seen("party") >= 20


def test_no_fault_changes_nothing() -> None:
    with attacked(None) as (relay, end):
        assert echoed(relay, end) == b"".join(CHUNKS)
        assert relay.n_seen("party") == relay.n_seen("caller") == 50


def test_bytes_count_over_all_connections_and_a_fault_hits_once() -> None:
    with attacked(Fault("corrupt", 15)) as (relay, first), connect(relay.address) as second:
        assert exchange(first, b"A" * 10)[0] == b"A" * 10
        assert exchange(second, b"B" * 10)[0] == b"B" * 5 + b"C" + b"B" * 4
        assert exchange(first, b"A" * 10)[0] == b"A" * 10


def test_after_a_cut_one_may_connect_again_but_not_after_the_end() -> None:
    with attacked(Fault("cut", 0)) as (relay, first):
        assert echoed(relay, first) == b""
        with connect(relay.address) as second:
            assert exchange(second, b"again")[0] == b"again"
            relay.cut()
            assert echoed(relay, second) == b""
        with pytest.raises(OSError, match=r".*"):
            connect(relay.address)


def test_a_stall_at_any_time_keeps_all_open_and_delivers_nothing() -> None:
    with attacked(None) as (relay, end):
        assert exchange(end, b"before")[0] == b"before"
        relay.stall()
        assert echoed(relay, end) == b"..."
        with connect(relay.address) as late:
            assert echoed(relay, late) == b"..."
        relay.cut()
        end.settimeout(5)
        assert end.recv(1) == b"", "closing lets go"


def test_what_is_held_back_is_its_own_connections() -> None:
    """Chunks of two connections are never mixed, and no chunk follows the last one."""
    attacker = Attacker(Fault("reorder", 0))
    first, second = object(), object()
    assert attacker.pass_on(first, b"1") == Passed([])
    assert attacker.pass_on(second, b"2") == Passed([b"2"])
    assert attacker.rest(second) == []
    assert attacker.rest(first) == [b"1"]
    assert attacker.rest(first) == []


def test_a_stall_reaches_every_connection() -> None:
    attacker = Attacker(Fault("stall", 3))
    assert attacker.pass_on("first", b"12") == Passed([b"12"])
    assert not attacker.stalls()
    assert attacker.pass_on("first", b"34") == Passed([b"3"], "stall")
    assert attacker.pass_on("second", b"5") == Passed([b""], "stall")
    assert attacker.stalls()
