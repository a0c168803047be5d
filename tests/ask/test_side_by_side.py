"""Several sessions side by side: the same answers in the same order, and what the death of one of them costs."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mpcformer
from mpcformer.errors import PartyError, UserInputError
from parties.ask.classifier import Classifier
from parties.ask.local import LocalParties, _asking
from parties.ask.options import AskOptions
from parties.ask.side_by_side import ATTEMPTS, SideBySide
from parties.session.data_side import BudgetError
from parties.settings.config import DataOwnerConfig, PeerAddress, Replica
from tests.tiny import PLAIN, sentences


class Fake:
    """A classifier that notes what it is asked, and fails as it is told."""

    labels = ("a", "b")

    def __init__(self, failures: list[Exception] | None = None, gate: threading.Barrier | None = None) -> None:
        self.failures, self.gate, self.asked, self.closed = failures or [], gate, 0, 0

    def answers(self, inputs: list[Any], **_: Any) -> Iterator[dict[str, Any]]:
        self.asked += 1
        if self.gate is not None:
            self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        for text in inputs:
            yield {"label": text}

    def close(self) -> None:
        self.closed += 1


def beside(*fakes: Fake, largest: int = 2) -> SideBySide:
    return SideBySide(fakes, largest)  # type: ignore[arg-type]


def test_it_has_all_that_a_classifier_has() -> None:
    public = {name for name in dir(Classifier) if not name.startswith("_")}
    assert public <= set(dir(SideBySide))


def test_all_sessions_work_at_once_and_answers_keep_their_order() -> None:
    # The barrier lets nobody pass before three blocks are being answered at the same time.
    gate = threading.Barrier(3, timeout=20)
    fakes = [Fake(gate=gate) for _ in range(3)]
    texts = [f"text {i}" for i in range(36)]
    assert [answer["label"] for answer in beside(*fakes).answers(iter(texts))] == texts
    assert all(fake.asked for fake in fakes)


def test_a_block_of_a_session_that_died_is_asked_again() -> None:
    died = PartyError("model-owner", "its connection ended")
    fakes = [Fake([died, died]), Fake()]
    texts = [f"text {i}" for i in range(20)]
    assert [answer["label"] for answer in beside(*fakes).answers(texts)] == texts
    assert sum(fake.asked for fake in fakes) == 20 // 4 + 2


def test_what_fails_again_and_again_is_told() -> None:
    fake = Fake([PartyError("dealer", "it is gone")] * ATTEMPTS)
    with pytest.raises(PartyError, match="it is gone"):
        list(beside(fake).answers(["a"]))
    assert fake.asked == ATTEMPTS


def test_a_budget_that_is_used_up_ends_the_work_after_what_was_answered() -> None:
    fake = Fake()
    found, answers = [], beside(fake).answers([f"text {i}" for i in range(400)])
    for _ in range(4):
        found.append(next(answers)["label"])
    fake.failures = [BudgetError("model-owner", 60)] * 100
    with pytest.raises(BudgetError):
        found.extend(answer["label"] for answer in answers)
    assert found == [f"text {i}" for i in range(len(found))]
    assert len(found) < 40


def test_whoever_wants_no_more_stops_the_rest() -> None:
    fake = Fake()
    answers = beside(fake).answers(f"text {i}" for i in range(10**9))
    assert next(answers)["label"] == "text 0"
    answers.close()
    assert fake.asked < 10


def test_a_wrong_input_is_named_by_its_place_among_all() -> None:
    with pytest.raises(UserInputError, match="text 9"):
        list(beside(Fake()).answers([*["a"] * 9, 7]))  # type: ignore[list-item]
    with pytest.raises(UserInputError, match="one text was given"):
        list(beside(Fake()).answers("a text"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sessions": 0}, "sessions: 0 is outside 1..64"),
        ({"sessions": 65}, "sessions: 65 is outside"),
        ({"sessions": 2, "deal_ahead": 3}, "deal_ahead"),
    ],
)
def test_impossible_numbers_are_refused_before_anything_starts(
    picky: Path, options: dict[str, int], message: str
) -> None:
    with pytest.raises(UserInputError, match=message):
        mpcformer.local(picky, **options)  # type: ignore[arg-type]


def test_three_sessions_give_the_answers_of_one(picky: Path) -> None:
    texts: list[Any] = [text for text, _ in sentences(70)]
    texts[11], texts[40] = "zzz", ("the day", "was fine")
    with mpcformer.local(picky, first=(4, 16), ahead=0, batch_size=4) as one:
        expected = one(texts)
    with mpcformer.local(picky, first=(4, 16), ahead=0, batch_size=4, sessions=3) as three:
        found = three(texts)
    assert isinstance(found, list)
    assert isinstance(expected, list)
    assert [a["label"] for a in found] == [a["label"] for a in expected]
    assert [i for i, answer in enumerate(found) if answer.get("refused")] == [11]


def test_replicas_share_the_work_and_one_may_die(picky: Path) -> None:
    """Two sites with the same model; the parties of one are killed after the first answers."""
    sites = [LocalParties(picky, engine="lift", threads=1, device="cpu", pool_mib=64) for _ in range(2)]
    configs = [site.data_owner() for site in sites]
    options = AskOptions(ahead=0, first=(4, 16), largest=4)
    asking = _asking(configs, options)
    texts = [f"the day was {word}" for word in PLAIN] * 12
    try:
        answers = asking.answers(texts)
        found = [next(answers) for _ in range(4)]
        sites[1]._processes.kill()
        found += list(answers)
    finally:
        asking.close()
        for site in sites:
            site.close()
    assert len(found) == len(texts)
    assert not any(answer.get("refused") for answer in found)


def test_replicas_in_a_configuration(picky: Path) -> None:
    peers = {
        "dealer": PeerAddress(id="dealer", address="127.0.0.1:1"),
        "model_owner": PeerAddress(id="owner", address="127.0.0.1:2"),
    }
    other = Replica(
        dealer=PeerAddress(id="dealer-2", address="127.0.0.1:3"),
        model_owner=PeerAddress(id="owner", address="127.0.0.1:4"),
    )
    common: dict[str, Any] = {"role": "data-owner", "id": "me", "public_model": picky, "insecure": {"plaintext": True}}
    config = DataOwnerConfig(**common, **peers, replicas=[other])
    assert config.at(other).dealer == other.dealer
    assert config.at(other).replicas == []
    with pytest.raises(ValueError, match="replicas: give dealer and model_owner too"):
        DataOwnerConfig(
            **common,
            coordinator=PeerAddress(id="c", address="127.0.0.1:5"),
            model_owners=["o"],
            dealers=["d"],
            replicas=[other],
        )
    with pytest.raises(ValueError, match="are not distinct"):
        DataOwnerConfig(**common, **peers, replicas=[other.model_copy(update={"dealer": other.model_owner})])
