"""Relays give links the round-trip time and the rate that was asked for, and an attacker on them changes no result."""

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mpcformer.errors import PartyError, UserInputError
from mpcformer.files import read_json
from parties.runs import local_run, simulation
from parties.runs.network import NetworkProfile, Relay, Relays, network_profile
from tests.faults.injector import Fault, attacked
from tests.parties.test_end_to_end import job_for


class Echo:
    """Yield the address of a server that sends back what it receives."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            end, _ = self._server.accept()
            threading.Thread(target=self._echo, args=(end,), daemon=True).start()

    @staticmethod
    def _echo(end: socket.socket) -> None:
        with suppress(OSError):  # cut
            while data := end.recv(1 << 16):
                end.sendall(data)
            end.shutdown(socket.SHUT_WR)


def connect(address: str) -> socket.socket:
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=20)


def exchange(end: socket.socket, data: bytes) -> tuple[bytes, float]:
    """Return what comes back, and how many seconds that took."""
    started = time.monotonic()
    sender = threading.Thread(target=end.sendall, args=(data,))
    sender.start()
    received = bytearray()
    while len(received) < len(data):
        received += end.recv(1 << 16)
    sender.join()
    return bytes(received), time.monotonic() - started


def test_a_link_delays_by_its_round_trip_and_keeps_order_and_content() -> None:
    relay = Relay(Echo().address, NetworkProfile("x", 0.06, 1e9))
    with connect(relay.address) as end:
        for n in (1, 1000, 300_000):
            data = bytes(i % 251 for i in range(n))
            back, seconds = exchange(end, data)
            assert back == data
            assert seconds >= 0.06
        end.shutdown(socket.SHUT_WR)
        assert end.recv(1) == b"", "the end of a stream is passed on"
    relay.close()


def test_a_link_has_one_rate_for_all_its_connections() -> None:
    relay = Relay(Echo().address, NetworkProfile("x", 0.0, 1e6))
    with connect(relay.address) as first, connect(relay.address) as second:
        started = time.monotonic()
        threads = [threading.Thread(target=exchange, args=(end, bytes(200_000))) for end in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert time.monotonic() - started >= 0.4
    relay.close()
    with pytest.raises(OSError, match=r".*"):
        connect(relay.address)


def test_no_profile_is_no_relay() -> None:
    relays = Relays(None)
    assert relays.route("127.0.0.1:1") == "127.0.0.1:1"
    relays.close()


@pytest.mark.parametrize(
    ("text", "rtt_s", "bytes_s"),
    [("lan", 0.0005, 1.25e8), ("wan", 0.04, 1.25e7), ("20,400", 0.02, 5e7), ("0,8", 0, 1e6)],
)
def test_profiles(text: str, rtt_s: float, bytes_s: float) -> None:
    profile = network_profile(text)
    assert profile is not None
    assert (profile.rtt_s, profile.bytes_s) == pytest.approx((rtt_s, bytes_s))


@pytest.mark.parametrize("text", ["", "fast", "5", "5,0", "-1,5", "nan,1", "1,inf", "1,2,3"])
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(UserInputError, match="--network"):
        network_profile(text)


def test_a_run_on_a_shaped_network_reports_it_and_takes_its_rounds_time(
    student: Path, data_dir: Path, tmp_path: Path
) -> None:
    job = job_for(student, data_dir, network=network_profile("10,1000"), limit=2)
    values = local_run.run(job, tmp_path / "run")
    assert read_json(tmp_path / "run" / "results.json")["network"]["profile"] == "10,1000"
    # Half a round trip for each message on the critical path; a two-way opening counts one, and takes as long.
    assert values["online"]["seconds"] >= 0.005 * values["online"]["rounds_per_batch"] * 0.9


def test_a_bit_flipped_on_the_network_never_gives_a_result(
    student: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS notices a change, the parties end, and the error names one of them."""
    made: list[Relay] = []

    class Attacked(Relays):
        def route(self, address: str) -> str:
            fault = Fault("corrupt", 100_000)  # well after the handshake
            made.append(attacked(address, NetworkProfile("x", 0.0, 1e9), fault))
            self._relays.append(made[-1])
            return made[-1].address

    monkeypatch.setattr(simulation, "Relays", Attacked)
    logs = tmp_path / "logs"
    logs.mkdir()
    with pytest.raises(PartyError, match=r"owner|dealer"):
        simulation.simulate(job_for(student, data_dir, batch_size=1), logs)
    assert max(relay.n_seen("party") for relay in made) > 100_000
