"""The model owner never learns whether a sentence was refused, so weights of its choice ask nothing about a text.

In the attack the model owner crafts weights with which a sentence leaves its range if, and only if, it holds a word
that the model owner asks for. It then reads the words of the text from who was refused, session by session.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mpcformer.channel import Counters, MemoryChannel, Spec, memory_pair
from mpcformer.engines.base import BatchInputs, Outcome
from mpcformer.engines.registry import ENGINES
from mpcformer.ring.packing import unpack
from tests.engines.test_refused_sentences import with_a_long_word
from tests.pair import run_outcomes
from tests.tiny import save_student

TEXT = [2, 7, 14, 9, 3]
ASKED_FOR = (14, 8, 9, 5)


class View:
    """What one owner sent and received after its set-up, in order."""

    def __init__(self, patch: pytest.MonkeyPatch, end: MemoryChannel) -> None:
        self.events: list[tuple[str, list[torch.Tensor]]] = []
        send, receive = MemoryChannel.send, MemoryChannel.receive

        def sent(channel: MemoryChannel, tensors: list[torch.Tensor]) -> None:
            if channel is end:
                self.events.append(("sent", [tensor.clone() for tensor in tensors]))
            send(channel, tensors)

        def received(channel: MemoryChannel, specs: list[Spec]) -> list[torch.Tensor]:
            tensors = receive(channel, specs)
            if channel is end:
                self.events.append(("received", [tensor.clone() for tensor in tensors]))
            return tensors

        patch.setattr(MemoryChannel, "send", sent)
        patch.setattr(MemoryChannel, "receive", received)

    def shapes(self) -> list[tuple[str, list[Spec]]]:
        return [(way, [Spec.of(tensor) for tensor in tensors]) for way, tensors in self.events]


def ask(folder: Path, engine: str, patch: pytest.MonkeyPatch, text: list[int]) -> tuple[Outcome, Outcome, View]:
    """Ask about a text; return the model owner's outcome, the data owner's, and the model owner's view."""
    ends = memory_pair(20)
    ids = torch.tensor([text])
    inputs = BatchInputs(torch.ones_like(ids), ids, torch.zeros_like(ids))
    with patch.context() as inner:
        view = View(inner, ends[0])
        told, learnt, *_ = run_outcomes(folder, inputs, engine=engine, ends=ends)
    return told, learnt, view


def by_its_outcome(outcome: Outcome, view: View) -> bool | None:
    """Return what the model owner's own outcome says of the text."""
    return None if outcome.refused is None else bool(outcome.refused.any())


def by_the_answer(outcome: Outcome, view: View) -> bool | None:
    """Add what the model owner received last to what it sent last: both halves of a verdict add up to zero."""
    way, tensors = view.events[-2]
    (last, mine) = (view.events[-1][0], view.events[-1][1][0])
    if way != "received" or last != "sent" or tensors[0].numel() != 8 or mine.numel() < 8:
        return None
    theirs = unpack(tensors[0], (1,), 64)
    return bool((theirs + unpack(mine[:8], (1,), 64)) != 0)


@pytest.mark.parametrize("attack", [by_its_outcome, by_the_answer])
def test_a_crafted_word_asks_nothing(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, attack: Callable[[Outcome, View], bool | None]
) -> None:
    """Both attacks read the words of a text before: four sessions, four right answers."""
    found = []
    for word in ASKED_FOR:
        crafted = with_a_long_word(save_student(tmp_path / f"asks-{word}", data_dir), word=word)
        told, learnt, view = ask(crafted, "lift", monkeypatch, TEXT)
        assert bool(learnt.known()[0].any()) == (word in TEXT), "the data owner is told that its text was refused"
        found.append(attack(told, view))
    assert found == [None] * len(ASKED_FOR)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_model_owner_receives_the_same_whoever_is_refused(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """As many messages in the same order and of the same shapes, and none that depends on the verdict."""
    crafted = with_a_long_word(save_student(tmp_path / "asks", data_dir), word=14)
    views = []
    for text, is_refused in ((TEXT, True), ([2, 7, 15, 9, 3], False)):
        told, learnt, view = ask(crafted, engine, monkeypatch, text)
        assert bool(learnt.known()[0].any()) == is_refused
        assert (told.refused, told.logits) == (None, None)
        views.append(view)
    assert views[0].shapes() == views[1].shapes()
    assert views[0].events[-1][0] == "sent", "the last message goes to the data owner"
    if engine == "lift":
        # Before the last message comes the data owner's half of the zero test, which is masked, with its last input.
        assert [way for way, _ in views[0].events[-2:]] == ["received", "sent"]


def test_the_counters_of_a_session_are_alike(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crafted = with_a_long_word(save_student(tmp_path / "asks", data_dir), word=14)
    counted: list[Counters] = []
    for text in (TEXT, [2, 7, 15, 9, 3]):
        ends = memory_pair(20)
        ids = torch.tensor([text])
        run_outcomes(crafted, BatchInputs(torch.ones_like(ids), ids, torch.zeros_like(ids)), engine="lift", ends=ends)
        ends[0].counters.seconds_waited = 0.0
        counted.append(ends[0].counters)
    assert counted[0] == counted[1]
