"""A proof on running programs that every value that is sent is masked by a draw of its sender, used for it alone.

The declared results alone are not masked. Keys of signs and of equality, which the dealer makes, look uniform to an
owner by the argument of `mpcformer.correlations.keys.sign`; the proof is about all that is sent besides. Masks that are
left out, used twice or too narrow are planted, to show that they are found.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mpcformer.correlations import CorrelationStore, Request
from mpcformer.correlations.kinds import Dealt
from mpcformer.engines.base import BatchInputs
from mpcformer.programs import dry_run, load_program
from tests import pair
from tests.attacks.tracking import DEALER, Shadow, Tracker, check
from tests.programs.test_programs import file_of, values
from tests.tiny import save_student

# The program, and how many values each owner receives: corrections and messages, without the results.
PROGRAMS: dict[str, tuple[int, int]] = {
    "selection.py:compare_by_keys": (1, 1),
    "keys.py:equal": (1, 1),
    "keys.py:relu": (4, 3),
    "keys.py:largest": (24, 17),
    "keys.py:pooled": (24, 17),
    "keys.py:whole_by_keys": (6, 6),
    "selection.py:argmax_by_keys": (34, 24),
    "keys.py:whole": (129, 84),
    "selection.py:argmax": (163, 106),
    "small.py:scaled": (15, 5),
    "small.py:grouped": (3, 2),
    "wrong.py:private_draws": (2, 1),
    "regression.py:training_step": (56, 23),
    "networks.py:by_hand": (169, 108),
    "small.py:nearest": (210, 135),
    "selection.py:softmax": (365, 193),
}
SLOW = (
    *("keys.py:pooled", "keys.py:whole_by_keys", "selection.py:argmax_by_keys"),
    *("networks.py:by_hand", "small.py:nearest", "selection.py:softmax"),
)


def prove(name: str, patch: pytest.MonkeyPatch) -> tuple[int, ...]:
    """Play a program, and prove that all that each owner receives before its results is masked; return how much."""
    loaded = load_program(file_of(name))
    plan, inputs, tracker = dry_run(loaded), values(loaded), Tracker(patch)
    with tracker.watching(DEALER):
        pair.play(loaded, inputs, plan)
    mine, found = tracker.drawn_by, []
    for rank in (0, 1):
        n_results = sum(rank in loaded.program.learners(result) for result in loaded.program.reveal)
        received = tracker.received[rank]
        found.append(check(received[: len(received) - n_results], mine[1 - rank] & ~mine[rank]))
    return tuple(found)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in PROGRAMS]
)
def test_every_value_has_a_mask_of_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prove(name, monkeypatch) == PROGRAMS[name]


@pytest.mark.parametrize(
    "changes",
    [{}, *(pytest.param(changes, marks=pytest.mark.slow) for changes in ({"gelu": "gelu", "softmax": "softmax"},))],
    ids=["2quad", "exact"],
)
def test_the_reference_engine_has_masks_of_its_own(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """All but the halves of the key for sharings of zero, which are told, and the results."""
    folder = save_student(tmp_path / "student", data_dir, **changes)
    ids = torch.tensor([[2, 7, 7, 3]])
    tracker = Tracker(monkeypatch)
    with tracker.watching(DEALER):
        pair.run_outcomes(folder, BatchInputs(torch.ones_like(ids), ids, torch.zeros_like(ids)))
    found, mine = [], tracker.drawn_by
    for rank, n_results in ((0, 0), (1, 1)):
        received = tracker.received[rank]
        halves = [value for value in received if value.bits == 8]
        assert len(halves) == 1
        assert halves[0].shadow == Shadow((), 0, 64)
        masked = [value for value in received[: len(received) - n_results] if value is not halves[0]]
        found.append(check(masked, mine[1 - rank] & ~mine[rank]))
    assert min(found) > 100


def reuse(mask: torch.Tensor, before: list[torch.Tensor]) -> torch.Tensor:
    """Mask two comparisons alike."""
    same = [each for each in before if each.shape == mask.shape]
    return same[0] if same else mask


def leave_out(mask: torch.Tensor, before: list[torch.Tensor]) -> torch.Tensor:
    """Mask nothing."""
    return torch.zeros_like(mask)


def narrow(mask: torch.Tensor, before: list[torch.Tensor]) -> torch.Tensor:
    """Mask one bit less than is sent."""
    return mask & ((1 << 63) - 1)


def shared_by_several(mask: torch.Tensor, before: list[torch.Tensor]) -> torch.Tensor:
    """Mask all values of a comparison by the same number."""
    return mask.reshape(-1)[:1].expand(mask.numel()).reshape(mask.shape)


@pytest.mark.parametrize(
    ("kind", "plant"),
    [*(("sign", plant) for plant in (reuse, leave_out, narrow, shared_by_several)), ("equality", reuse)],
)
def test_what_is_planted_is_found(
    monkeypatch: pytest.MonkeyPatch, kind: str, plant: Callable[[torch.Tensor, list[torch.Tensor]], torch.Tensor]
) -> None:
    take, before = CorrelationStore.take, list[torch.Tensor]()

    def taken(store: CorrelationStore, request: Request) -> Dealt:
        dealt = take(store, request)
        if store.rank != 1 or request.kind != kind:
            return dealt
        mask: Any = plant(dealt.shares[0], before)
        before.append(dealt.shares[0])
        return replace(dealt, shares=[mask, *dealt.shares[1:]])

    monkeypatch.setattr(CorrelationStore, "take", taken)
    with pytest.raises(AssertionError, match="is not masked by a draw of its sender"):
        prove("keys.py:twice", monkeypatch)
