"""One cause of a failure has one name: the wording and the party do not depend on who noticed it first."""

import errno
from itertools import permutations
from pathlib import Path

import grpc
import pytest

from mpcformer.errors import MPCFormerError, PartyError
from parties.roles.coordinator import Coordinator
from parties.roles.journal import Journal
from parties.session.evidence import CONFESSED_REASON, Evidence, Weight
from parties.session.failure import as_known
from parties.settings.config import CoordinatorConfig, PeerAddress
from parties.settings.job import JobDescription
from parties.stubs import parties_pb2 as pb
from parties.wire import causes
from parties.wire.tls import make_certificates

RANGE = "an activation of this batch left the range"
KILLED = "its process was killed by signal 9"


class Failed(grpc.RpcError, grpc.Call):  # type: ignore[misc]
    """A call that ended with a status, as gRPC raises it."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def add_callback(self, callback: object) -> bool:
        return False

    cancel = initial_metadata = is_active = time_remaining = trailing_metadata = lambda self: None


def verdict(*pieces: tuple[Weight, MPCFormerError]) -> str:
    evidence = Evidence()
    for piece in pieces:
        evidence.add(*piece)
    return evidence.verdict().what


def test_a_party_that_died_is_named_alike_in_any_order() -> None:
    pieces = [
        (Weight.ACCUSED, causes.connection_ended("dealer")),
        (Weight.VANISHED, causes.connection_ended("dealer")),
        (Weight.EXITED, PartyError("dealer", KILLED)),
    ]
    assert {verdict(*order) for order in permutations(pieces)} == {f"dealer: {KILLED}"}


def test_what_both_owners_notice_is_named_alike_in_any_order() -> None:
    pieces = [(Weight.CONFESSED, PartyError(owner, RANGE)) for owner in ("model-owner", "data-owner")]
    pieces.append((Weight.VANISHED, causes.connection_ended("dealer")))
    assert {verdict(*order) for order in permutations(pieces)} == {f"data-owner: {RANGE}"}


def test_of_two_different_confessions_the_first_is_the_cause() -> None:
    pieces = [(Weight.CONFESSED, PartyError(owner, owner[0])) for owner in ("model-owner", "data-owner")]
    assert [verdict(*order) for order in permutations(pieces)] == ["model-owner: m", "data-owner: d"]


def test_an_accused_party_that_accuses_another_left_because_of_that_one() -> None:
    """The model owner's stream to the data owner ended because the dealer failed the model owner."""
    pieces = [("data-owner", "model-owner"), ("model-owner", "dealer"), ("coordinator", "data-owner")]
    for order in permutations(pieces):
        evidence = Evidence()
        for accuser, accused in order:
            evidence.add(Weight.ACCUSED, causes.connection_ended(accused), accuser)
        assert evidence.verdict().what.startswith("dealer: ")


def test_a_full_machine_names_itself() -> None:
    for error, what in (
        (OSError(errno.EMFILE, "Too many open files"), "it can open no more files"),
        (OSError(errno.ENFILE, "Too many open files in system"), "it can open no more files"),
        (RuntimeError("can't start new thread"), "it can start no more threads"),
        (MemoryError(), "its machine has no memory left"),
        (RuntimeError("a text"), "unexpected RuntimeError at ?"),
    ):
        assert what in as_known(error, "dealer").what


def test_the_others_are_told_nothing_that_a_party_wrote_itself() -> None:
    for weight, reason in (
        (Weight.CONFESSED, CONFESSED_REASON),
        (Weight.EXITED, causes.connection_ended("x").what.removeprefix("x: ")),
        (Weight.VANISHED, "its process ended with status 2: secret"),
    ):
        evidence = Evidence()
        evidence.add(weight, PartyError("dealer", "its process ended with status 2: secret"))
        assert evidence.told() == pb.Abort(culprit="dealer", reason=reason)


@pytest.mark.parametrize("code", causes.REFUSALS)
def test_a_refusal_reads_alike_for_every_caller(code: grpc.StatusCode) -> None:
    error = causes.of_call("dealer", Failed(code, "no such session"))
    assert error.what == "dealer: it refused the session: no such session"


@pytest.mark.parametrize(
    "error",
    [
        Failed(grpc.StatusCode.UNAVAILABLE, "Socket closed"),
        Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "CLIENT: Received message larger than max (9 vs. 4)"),
        Failed(grpc.StatusCode.CANCELLED, ""),
        Exception("iterating failed"),
    ],
)
def test_a_broken_connection_reads_alike_on_both_ends(error: Exception) -> None:
    assert causes.of_call("dealer", error).what == causes.connection_ended("dealer").what


def test_the_end_of_a_process_that_reported_a_failure_explains_nothing(tmp_path: Path) -> None:
    config = CoordinatorConfig(
        tls=make_certificates(tmp_path / "tls", ["coordinator"])["coordinator"],
        listen="127.0.0.1:0",
        dealer=PeerAddress(id="dealer", address="127.0.0.1:1"),
        model_owner=PeerAddress(id="model-owner", address="127.0.0.1:2"),
        data_owner="data-owner",
        job=JobDescription(task="sst2"),
    )
    coordinator = Coordinator(config, journal=Journal(tmp_path / "journal.jsonl", {}))
    try:
        failure = pb.Failure(culprit="dealer", what="sent nothing for 9 s", exit_code=3)
        coordinator._handle("model-owner", pb.PartyEvent(failure=failure))
        coordinator.accuse("model-owner", "its process ended with status 3")
        assert coordinator._evidence.verdict().what == "dealer: sent nothing for 9 s"
        coordinator.accuse("dealer", KILLED)
        assert coordinator._evidence.verdict().what == f"dealer: {KILLED}"
    finally:
        coordinator.stop()
