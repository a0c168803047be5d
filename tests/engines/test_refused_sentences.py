"""One bit a sentence: exactly the sentences that left their range are refused, and all others are answered right."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mpcformer.engines.base import BatchInputs, Outcome, PublicModel, load_public_model
from mpcformer.engines.lift.ahead import Known
from mpcformer.engines.lift.range_check import TABLE_MARK_SHIFT, RangeCheck
from mpcformer.engines.lift.scales.head import MAX_REACH
from mpcformer.engines.registry import ENGINES
from mpcformer.modeling import Ranges, load_student
from mpcformer.modeling.ranges import POOLER_REACH
from mpcformer.protocols.party import Party
from tests.pair import run_outcomes, run_protocol, share
from tests.tiny import save_student

# The embedding of this word is far longer than those of the calibration's words.
LONG = 1
SENTENCES = ([2, 7, 8, 3], [2, 5, 14, 15, 9, 3], [2, 12, 3], [2, 8, 16, 17, 3])
REFUSED: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (3,), (0, 1, 2, 3))
CASES: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "2quad": ({}, "private_table", ENGINES),
    "2quad-const": ({"softmax": "2quad-const"}, "private_table", ENGINES),
    "constant norms": ({"softmax": "2quad-const", "constant_norms": ["all"]}, "private_table", ENGINES),
    "exact": ({"gelu": "gelu", "softmax": "softmax"}, "private_table", ("lift",)),
    "buckets": ({"vocab_size": 7000}, "private_table", ("lift",)),
    "public table": ({"constant_norms": ["embeddings"]}, "public_table", ("lift",)),
}


def with_a_long_word(folder: Path, size: float = 5.0, word: int = LONG) -> Path:
    state = load_file(folder / "model.safetensors")
    words = state["bert.embeddings.word_embeddings.weight"]
    words[word] = size
    words[word, ::2] = -size
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def batch(long: tuple[int, ...], at: int = 1) -> BatchInputs:
    """Put the long word into some sentences. All padding is the long word, too, and does not count."""
    ids = torch.full((len(SENTENCES), 8), LONG)
    mask = torch.zeros_like(ids)
    for i, words in enumerate(SENTENCES):
        ids[i, : len(words)], mask[i, : len(words)] = torch.tensor(words), 1
        if i in long:
            ids[i, at] = LONG
    return BatchInputs(mask, ids, torch.zeros_like(ids))


def check(outcome: Outcome, expected: torch.Tensor, refused: tuple[int, ...], bound: float) -> None:
    assert outcome.logits is not None
    assert outcome.logits.dtype == torch.float32
    assert outcome.refused.tolist() == [i in refused for i in range(len(SENTENCES))]
    assert outcome.logits.isnan().all(1).tolist() == outcome.refused.tolist()
    assert torch.allclose(outcome.logits[~outcome.refused], expected[~outcome.refused], atol=bound)


@pytest.mark.parametrize(("case", "engine"), [(case, engine) for case in CASES for engine in CASES[case][2]])
def test_exactly_the_sentences_out_of_range_are_refused(tmp_path: Path, data_dir: Path, case: str, engine: str) -> None:
    changes, embeddings, _ = CASES[case]
    folder = with_a_long_word(save_student(tmp_path / "student", data_dir, **changes))
    student, public = load_student(folder), load_public_model(folder, embeddings)
    for refused in REFUSED if case == "2quad" else REFUSED[2:4]:
        inputs = batch(refused)
        with torch.no_grad():
            expected = student(inputs.input_ids, inputs.attention_mask).logits
        _, outcome, *_ = run_outcomes(folder, inputs, engine=engine, public=public)
        check(outcome, expected, refused, 0.01 if case == "exact" else 0.002)


NORMS = ("embeddings", "layer.0.attention", "layer.0.output", "layer.1.attention", "layer.1.output")
SITES = [
    *((f"{norm}.variance", "2quad-const", norms) for norm in NORMS[1:] for norms in (NORMS, set(NORMS) - {norm})),
    *((f"layer.{n}.row_mean", softmax, NORMS[: 1 + 2 * n]) for n in (0, 1) for softmax in ("2quad", "2quad-const")),
]


@pytest.mark.parametrize(("site", "softmax", "constant"), SITES)
def test_every_site_counts_its_rows_by_sentence(
    tmp_path: Path, data_dir: Path, site: str, softmax: str, constant: tuple[str, ...]
) -> None:
    """Each time one site's range is too narrow for one sentence, and all other ranges are wide enough."""
    folder = save_student(tmp_path / "student", data_dir, softmax=softmax, constant_norms=sorted(constant))
    folder, public = with_a_long_word(folder, 0.8), load_public_model(folder)
    if "row_mean" in site:
        state = load_file(folder / "model.safetensors")
        for part in ("query", "key"):
            state[f"bert.encoder.layer.{site[6]}.attention.self.{part}.weight"] *= 4.0
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    student = load_student(folder)
    for long in (1, 3):
        inputs = batch((long,), at=0)
        seen = [Ranges() for _ in SENTENCES]
        for i, ranges in enumerate(seen):
            student.observer = ranges.observe
            with torch.no_grad():
                student(inputs.input_ids[i : i + 1], inputs.attention_mask[i : i + 1])
        student.observer = None
        bounds = {name: spanned([ranges.bounds[name] for ranges in seen]) for name in seen[0].bounds}
        good = spanned([ranges.bounds[site] for i, ranges in enumerate(seen) if i != long])
        assert bounds[site][1] > 5 * good[1], "the site tells the sentences apart"
        reach = {f"layer.{n}.score_reach": (-(2.0**13), 2.0**13) for n in range(2)}
        reach[POOLER_REACH] = (-MAX_REACH, MAX_REACH)
        moved = PublicModel(public.config, Ranges(public.ranges.bounds | bounds | reach | {site: good}, 1))
        with torch.no_grad():
            expected = student(inputs.input_ids, inputs.attention_mask).logits
        _, outcome, *_ = run_outcomes(folder, inputs, engine="lift", public=moved)
        check(outcome, expected, (long,), 0.01)


def spanned(bounds: list[tuple[float, float]]) -> tuple[float, float]:
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def test_the_check_adds_up_marks_by_sentence() -> None:
    """Rows of layers and heads, whole scores, and rows of padding."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    n_batch, n_positions, n_heads = 4, 3, 2
    real = mask[:, None].expand(-1, n_heads, -1).reshape(-1)
    outside = torch.zeros(n_batch, n_heads, n_positions, n_positions, dtype=torch.int64)
    outside[1, 1, 0, 2] = 1
    guarded = torch.full((n_batch, n_heads, n_positions), 1000)
    guarded[2, 1, 0] = guarded[2, 0, 2] = guarded[3, 0, 2] = 1 << 40
    shares = [share(x) for x in (outside, guarded.view(-1))]

    class Marked:
        """A lookup whose marks are made up: of sentence 0, and of padding."""

        def __init__(self, own: torch.Tensor) -> None:
            self.own = own

        def evaluate(self, party: Party, opened: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            return self.own, self.own

    marks = torch.zeros(n_batch, n_positions, dtype=torch.int64)
    marks[0, 2], marks[2, 1] = 77, 99
    mark_shares = share(marks.view(-1))

    def owner(party: Party) -> torch.Tensor:
        check = RangeCheck(party, mask)
        check.count(shares[0][party.rank])
        check.guard(20, shares[1][party.rank], real)
        check.evaluate(Marked(mark_shares[party.rank]), [], mask.reshape(-1))  # type: ignore[arg-type]
        return check.totals()

    results, _, _ = run_protocol(owner)
    totals = results[0] + results[1]
    assert totals[0] == 77 << TABLE_MARK_SHIFT
    assert totals[1] == 1
    assert (totals != 0).all()
    assert totals.shape == (n_batch,)


def test_what_is_known_ahead_shows_no_mask() -> None:
    assert "tensor" not in repr(Known(torch.ones(3), [((3,), 8)]))


def test_an_outcome_shows_no_logit() -> None:
    outcome = Outcome(torch.tensor([False, True]), torch.tensor([[1.25, -7.5], [torch.nan, torch.nan]]))
    assert repr(outcome) == str(outcome) == "Outcome(2 sentences)"
