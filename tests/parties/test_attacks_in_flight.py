"""An attacker on the network can only break sessions: they end with right values or, in time, with a typed error."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from mpcformer.errors import PartyError
from parties.runs.network import Relay, Side
from parties.settings.config import TlsFiles
from parties.wire import tls
from tests.faults.injector import Fault
from tests.parties.sessions import LIMIT_S, Outcome, dealer_session, owners_session

SESSIONS = {"owners": owners_session, "dealer": dealer_session}
N_FLIPS = 100
# A session takes 20 ms, but after a failed handshake it waits a second, and a stalled one waits for its deadline.
AT_ONCE = 8
SIDES: tuple[Side, ...] = ("party", "caller")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TlsFiles]:
    return tls.make_certificates(tmp_path_factory.mktemp("tls"), ["dealer", "model-owner", "data-owner"])


def run_all(link: str, files: dict[str, TlsFiles], faults: list[Fault]) -> list[Outcome]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(lambda fault: SESSIONS[link](files, fault), faults))
    for outcome in outcomes:
        outcome.check()
    return outcomes


def any_byte(sizes: dict[Side, int], index: int) -> Fault:
    """Return a flip of a bit in any byte of a session, in either direction, with equal probability."""
    generator = random.Random(index)
    at = generator.randrange(sum(sizes.values()))
    towards: Side = "party" if at < sizes["party"] else "caller"
    return Fault("corrupt", at % sizes["party"] if towards == "party" else at - sizes["party"], towards, index % 8)


@pytest.mark.parametrize("link", SESSIONS)
def test_a_session_without_a_fault_ends_well(link: str, files: dict[str, TlsFiles]) -> None:
    outcome = SESSIONS[link](files, None)
    outcome.check()
    assert not outcome.errors
    assert outcome.seconds < LIMIT_S / 2
    assert sum(outcome.n_seen.values()) > 50_000


@pytest.mark.parametrize("link", SESSIONS)
def test_a_flipped_bit_never_gives_another_value(link: str, files: dict[str, TlsFiles]) -> None:
    sizes = SESSIONS[link](files, None).n_seen
    outcomes = run_all(link, files, [any_byte(sizes, index) for index in range(N_FLIPS)])
    # A handshake is tried again after a flip; after the handshake a flip ends the session.
    assert sum(bool(outcome.errors) for outcome in outcomes) > N_FLIPS / 2
    assert {type(error) for outcome in outcomes for error in outcome.errors.values()} == {PartyError}


@pytest.mark.parametrize("link", SESSIONS)
@pytest.mark.parametrize("kind", ["cut", "duplicate", "reorder", "stall"])
def test_other_faults_end_typed_too(link: str, kind: str, files: dict[str, TlsFiles]) -> None:
    """Faults in the first byte, in the handshake, and among the values end a session with a typed error."""
    places: list[tuple[int, Side]] = [(at, side) for at in (0, 700, 2000) for side in SIDES]
    places += [(at, "caller") for at in (12_000, 30_000, 45_000)]
    places += [(at, "party") for at in (12_000, 45_000) if link == "owners"]
    outcomes = run_all(link, files, [Fault(kind, at, side) for at, side in places])  # type: ignore[arg-type]
    for (at, side), outcome in zip(places, outcomes, strict=True):
        assert outcome.n_seen[side] > at, "the session ended before it was hit"
        # A second copy of the last chunk comes too late to do harm, and a broken handshake is tried again.
        if kind == "stall" or (kind == "cut" and at > 10_000):
            assert outcome.errors, (kind, at, side)
    assert any(outcome.errors for outcome in outcomes)


@pytest.mark.parametrize("strike", [Relay.cut, Relay.stall])
def test_a_link_that_dies_in_the_middle_ends_both_owners(
    strike: Callable[[Relay], None], files: dict[str, TlsFiles]
) -> None:
    outcome = owners_session(files, None, strike)
    outcome.check()
    assert {name: type(error) for name, error in outcome.errors.items()} == {
        "model-owner": PartyError,
        "data-owner": PartyError,
    }
