"""A proof on the running engine that every value that is sent is masked by a draw of its sender, used for it alone.

The proof covers every form, table mode, length and path of the engine. Masks that are left out, used twice or too
narrow are planted, to show that they are found.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mpcformer.approximations import GELU_FORMS, SOFTMAX_FORMS
from mpcformer.correlations import CorrelationStore, Request
from mpcformer.correlations.kinds import Dealt
from mpcformer.engines.base import BatchInputs, PublicModel, load_public_model
from mpcformer.engines.lift.engine import engine_constants
from mpcformer.protocols.lifted import Mask
from tests import pair
from tests.attacks.tracking import DEALER, Layer, Shadow, Tracker, Value, check
from tests.engines.test_families import save_family
from tests.tiny import save_student

CASES: dict[str, tuple[dict[str, Any], tuple[int, int], str]] = {
    "2quad": ({}, (2, 5), "private_table"),
    "one word": ({}, (1, 1), "private_table"),
    "2quad-const": ({"softmax": "2quad-const"}, (1, 4), "private_table"),
    "constant norms": ({"softmax": "2quad-const", "constant_norms": ["all"]}, (1, 4), "private_table"),
    "some constant norms": ({"constant_norms": ["layer.0.output"]}, (1, 4), "private_table"),
    "exact": ({"gelu": "gelu", "softmax": "softmax"}, (1, 4), "private_table"),
    "relu": ({"gelu": "relu", "softmax": "2relu"}, (1, 4), "private_table"),
    "compact": ({"precision": "compact", "weight_bits": 8}, (1, 8), "private_table"),
    "buckets": ({"vocab_size": 7000}, (1, 6), "private_table"),
    "public table": ({"constant_norms": ["embeddings"]}, (1, 4), "public_table"),
    "narrow heads": ({"head_size": 4, "gelu": "gelu_tanh"}, (1, 4), "private_table"),
}
SLOW = ("one word", "2quad-const", "some constant norms", "exact", "relu", "narrow heads")


def received(folder: Path, patch: pytest.MonkeyPatch, shape: tuple[int, int] = (1, 4), **options: Any) -> Tracker:
    """Run a batch, whose last sentence only fills it if there are several, and return what was seen of it."""
    ids = torch.full(shape, 7)
    ids[:, 0] = 2
    inputs = BatchInputs(torch.ones_like(ids), ids, torch.zeros_like(ids), n_told=max(1, shape[0] - 1))
    tracker = Tracker(patch)
    with tracker.watching(DEALER):
        pair.run_outcomes(folder, inputs, engine="lift", **options)
    assert tracker.n_sealed == options.get("n_batches", 1)
    return tracker


def prove(tracker: Tracker) -> list[int]:
    mine = tracker.drawn_by
    return [check(tracker.received[rank], mine[1 - rank] & ~mine[rank]) for rank in (0, 1)]


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in CASES]
)
def test_every_value_has_a_mask_of_its_own(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    changes, shape, embeddings = CASES[case]
    folder = save_student(tmp_path / "student", data_dir, **changes)
    public = load_public_model(folder, embeddings)
    tracker = received(folder, monkeypatch, shape, public=public)
    told = [value for value in tracker.received[1] if value.shadow == Shadow()]
    assert len(told) == (2 if embeddings == "public_table" else 0), "the public tables alone hold no draw at all"
    tracker.received[1][:] = [value for value in tracker.received[1] if value not in told]
    at_model_owner, at_data_owner = prove(tracker)
    assert at_model_owner > 100
    assert at_data_owner > 50


@pytest.mark.parametrize(
    ("family", "norms"),
    [
        ("electra", []),  # a map behind the embeddings, and a head with GeLU
        pytest.param("mpnet-tokens", [], marks=pytest.mark.slow),  # scores by distance, and a head for each token
        pytest.param("distilbert", [], marks=pytest.mark.slow),  # a head with ReLU
        pytest.param("distilbert", ["layer.1.output"], marks=pytest.mark.slow),  # whose rows a constant divides
    ],
)
def test_families_have_masks_of_their_own(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, family: str, norms: list[str]
) -> None:
    folder = save_family(tmp_path / "student", data_dir, family, gelu="quad", softmax="2quad", constant_norms=norms)
    assert prove(received(folder, monkeypatch))[0] > 100


def test_all_forms_are_among_the_cases() -> None:
    used = [changes for changes, _, _ in CASES.values()]
    assert {each.get("gelu", "quad") for each in used} == set(GELU_FORMS)
    assert {each.get("softmax", "2quad") for each in used} == set(SOFTMAX_FORMS)


def test_two_tables_have_masks_of_their_own(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide ranges have two tables, and a choice between them."""
    public = load_public_model(student)
    bounds = public.ranges.bounds
    wide = {name: (high / 3000, high) for name, (_, high) in bounds.items() if name.endswith(".variance")}
    moved = PublicModel(public.config, replace(public.ranges, bounds=bounds | wide))
    constants = engine_constants(moved)
    functions = [constants.embedding_norm.function, *(layer.output_norm.function for layer in constants.layers)]
    assert all(function is not None and function.lower is not None for function in functions)
    assert prove(received(student, monkeypatch, public=moved))[0] > 100


@pytest.mark.slow
def test_two_batches_of_a_session_share_no_mask_but_those_of_the_weights(
    student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        once = prove(received(student, patch))
    with monkeypatch.context() as patch:
        twice = prove(received(student, patch, n_batches=2))
    assert twice[0] == 2 * once[0]
    assert once[1] < twice[1] < 2 * once[1], "the masked weights are sent once"


# ---- what is planted ------------------------------------------------------------------------------------------------


def reuse(patch: pytest.MonkeyPatch) -> None:
    """Mask two openings by the same draw, at the data owner."""
    take, seen = CorrelationStore.take, {}

    def taken(store: CorrelationStore, request: Request) -> Dealt:
        dealt = take(store, request)
        if store.rank == 1 and request.kind == "table":
            first = seen.setdefault(dealt.shares[0].shape, dealt.shares[0])
            return replace(dealt, shares=[first, *dealt.shares[1:]])
        return dealt

    patch.setattr(CorrelationStore, "take", taken)


def reuse_by_a_correction(patch: pytest.MonkeyPatch) -> None:
    """Let the dealer hide two products under the same share."""
    from mpcformer.correlations.lifted import Lifted

    correct = Lifted.correct

    def corrected(kind: Lifted, request: Request, mine: Any, theirs: Any) -> list[torch.Tensor]:
        found = correct(kind, request, mine, theirs)
        return [found[0], found[1] + theirs[-1] - theirs[-2], *found[2:]] if len(theirs) > 3 else found

    patch.setattr(Lifted, "correct", corrected)


def leave_out(patch: pytest.MonkeyPatch) -> None:
    """Send one share of a factor as it is."""
    patch.setattr(Mask, "factor_half", lambda mask, factor, rank: (factor, 64))


def narrow(patch: pytest.MonkeyPatch) -> None:
    """Mask one bit less than is sent."""
    half = Mask.half
    patch.setattr(
        Mask,
        "half",
        lambda m, share, rank: half(replace(m, tensors=[m.tensors[0] & ((1 << (m.bits - 1)) - 1)]), share, rank),
    )


@pytest.mark.parametrize(
    "plant",
    [reuse, *(pytest.param(plant, marks=pytest.mark.slow) for plant in (reuse_by_a_correction, leave_out, narrow))],
)
def test_what_is_planted_is_found(
    student: Path, monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=r"is not masked by a draw of its sender|mask each other in a circle"):
        prove(received(student, monkeypatch))


def test_masks_that_hide_each_other_are_found() -> None:
    """Either value alone is uniform; together they tell the difference of two functions of the same draws."""
    draws = (0b01, 0b10)
    layers = [Layer(torch.tensor([1 + i]), 64, False, draw) for i, draw in enumerate(draws)]
    values = [Value(f"value {i}", Shadow((layers[i],), draws[1 - i]), 64) for i in (0, 1)]
    assert check(values[:1], 0b11) == check(values[1:], 0b11) == 1
    with pytest.raises(AssertionError, match="mask each other in a circle: value"):
        check(values, 0b11)
    with pytest.raises(AssertionError, match="value 1 is not masked"):
        check(values, 0b01)
