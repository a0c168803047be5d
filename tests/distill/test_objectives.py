"""Losses, gradual replacement and layer-wise learning rates: compared with values by hand, and in trainings."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import distill.student
from distill.objectives.losses import (
    LayerPair,
    direction_loss,
    grouped,
    logit_loss,
    probability_loss,
    row_loss,
    score_loss,
    score_pairs,
    sinkhorn_loss,
    state_loss,
    state_pairs,
)
from distill.objectives.replacement import FIRST, mixed_forward
from distill.recipe import DistillRecipe, TeacherRecipe
from distill.start.fit_attention import ROW_MEANS
from distill.student import distill_student
from distill.teacher import train_teacher
from mpcformer.errors import UserInputError
from mpcformer.modeling import MPCFormerForSequenceClassification, load_checkpoint
from tests.tiny import TRAINING, save_bert

SETTINGS = TRAINING | {"limit": 64}
MASK = torch.tensor([[1, 1, 0]])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("objectives")
    base = save_bert(folder / "base")
    recipe = TeacherRecipe(model=str(base), data_dir=data_dir, epochs=1, learning_rate=3e-3, **SETTINGS)
    train_teacher(recipe, folder / "teacher")
    return folder / "teacher"


def recipe_for(teacher: Path, data_dir: Path, **changes: Any) -> DistillRecipe:
    rates = {"learning_rate1": 1e-3, "learning_rate2": 1e-3, "epochs1": 1, "epochs2": 1}
    return DistillRecipe(teacher=teacher, data_dir=data_dir, **(SETTINGS | rates | changes))


def test_losses_by_hand() -> None:
    mask = torch.tensor([[1, 1, 0]])
    theirs = SimpleNamespace(hidden_states=[torch.zeros(1, 3, 2)], attention_scores=[torch.zeros(1, 2, 3, 3)])
    hidden, scores = torch.ones(1, 3, 2), torch.full((1, 2, 3, 3), 3.0)
    hidden[:, 2], scores[:, :, 2], scores[..., 2] = 1e6, 1e6, 1e6  # padding
    ours = SimpleNamespace(hidden_states=[hidden], attention_scores=[scores])
    assert score_loss(score_pairs(theirs, ours, mask, [(0, 1)], [(1, 1)])).item() == pytest.approx(9.0)
    assert state_loss(state_pairs(theirs, ours, mask, [], [])).item() == pytest.approx(1.0)
    theirs.hidden_states = [torch.full((1, 3, 2), float(layer)) for layer in range(5)]
    ours.hidden_states = [torch.zeros(1, 3, 2), hidden, hidden]
    pairs = state_pairs(theirs, ours, mask, [(0, 2), (2, 4)], [(1, 1), (1, 1)])
    assert state_loss(pairs).item() == pytest.approx(1.0 + 9.0), "layers 2 and 4"
    logits = torch.tensor([[2.0, -1.0]])
    probabilities = logits.softmax(-1)
    entropy = -(probabilities * probabilities.log()).sum()
    assert logit_loss(logits, logits, False).item() == pytest.approx(entropy.item())
    assert logit_loss(torch.tensor([[1.0]]), torch.tensor([[3.0]]), True).item() == 4.0


def test_rows_inside_their_range_cost_nothing() -> None:
    mask = torch.tensor([[1, 1, 0]])
    scores = torch.zeros(1, 2, 3, 3)  # the mean of each row is 25
    scores[:, :, 2], scores[..., 2] = 1e3, 1e3  # padding
    assert row_loss(SimpleNamespace(attention_scores=[scores]), mask, [(1, 1)]).item() == 0.0
    low, high = scores.clone(), scores.clone()
    low[0, 0, 0, :2] = -4.0  # one row of four gets a mean of 1
    high[0, 1, 1, :2] = 15.0  # and one gets a mean of 400
    loss = row_loss(SimpleNamespace(attention_scores=[scores, low, high]), mask, [(1, 1)] * 3).item()
    least, most = ROW_MEANS
    assert loss == pytest.approx((math.log(least) ** 2 + math.log(400 / most) ** 2) / 4)


def test_directions_do_not_mind_lengths() -> None:
    theirs = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]]])
    ours = torch.tensor([[[3.0, 0.0], [4.0, 0.0], [-9.0, 9.0]]])  # the same direction, a right angle, and padding
    both = (SimpleNamespace(hidden_states=[theirs, theirs]), SimpleNamespace(hidden_states=[ours, ours]))
    assert direction_loss(state_pairs(*both, MASK, [(0, 1)], [(1, 1)])).item() == pytest.approx(0.5 + 0.5)


def test_probabilities_are_compared_row_by_row() -> None:
    theirs, ours = torch.full((1, 1, 3, 3), 0.5), torch.full((1, 1, 3, 3), 0.5)
    ours[0, 0, 0] = torch.tensor([0.75, 0.25, 9.0])
    ours[0, 0, 2] = 7.0  # padding has no effect
    divergence = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert probability_loss([LayerPair(theirs, ours, MASK, MASK)]).item() == pytest.approx(divergence / 2)
    assert probability_loss([LayerPair(theirs, theirs, MASK, MASK)]).item() == 0.0
    # Rows with another sum differ, even if they are proportional.
    assert probability_loss([LayerPair(theirs, 0.5 * theirs, MASK, MASK)]).item() > 0.1


def test_only_kept_positions_are_compared() -> None:
    """The second layer keeps every second of five positions, the third every third of those three."""
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    states = torch.arange(5.0)[None, :, None]
    scores = (10 * torch.arange(5.0)[:, None] + torch.arange(5.0))[None, None]
    theirs = SimpleNamespace(hidden_states=[states] * 4, attention_scores=[scores] * 3)
    ours = SimpleNamespace(
        hidden_states=[states, states, states[:, [0, 2, 4]], states[:, [0]]],
        attention_scores=[scores, scores[:, :, [0, 2, 4]], scores[:, :, [0]][..., [0, 2, 4]]],
    )
    spans, steps = [(0, 1), (1, 2), (2, 3)], [(1, 1), (1, 2), (2, 6)]
    for pair in (
        *state_pairs(theirs, ours, mask, spans, steps)[1:],
        *score_pairs(theirs, ours, mask, spans, steps),
    ):
        assert torch.equal(pair.theirs, pair.ours)
    assert [pair.rows.tolist() for pair in score_pairs(theirs, ours, mask, spans, steps)] == [
        [[1, 1, 1, 1, 0]],
        [[1, 1, 0]],
        [[1]],
    ]
    assert grouped(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]), 2).tolist() == [[3.0, 7.0, 5.0]]
    ours.hidden_states[2] = ours.hidden_states[2] + torch.tensor([1.0, 0.0, 7.0])[None, :, None]
    assert state_loss(state_pairs(theirs, ours, mask, spans, steps)).item() == pytest.approx(0.5)


@pytest.mark.parametrize("regression", [False, True])
def test_sinkhorn_minds_the_set_and_not_the_order(regression: bool) -> None:
    theirs = torch.tensor([[4.0], [0.0], [2.0]]) if regression else torch.tensor([[4.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
    assert sinkhorn_loss(theirs, theirs.flip(0), regression).item() < 0.05
    assert sinkhorn_loss(theirs, theirs, regression).item() < 0.05
    away = theirs + 1.0 if regression else -3.0 * theirs + torch.tensor([2.0, 0.0])
    assert sinkhorn_loss(theirs, away, regression).item() > 0.2
    if regression:  # every value moves by 1, and the cheapest transport is no longer
        assert sinkhorn_loss(theirs, away, regression).item() == pytest.approx(1.0, abs=0.01)


def test_a_mixture_is_one_model_or_the_other(teacher: Path) -> None:
    theirs = load_checkpoint(teacher)
    ours = load_checkpoint(teacher, gelu="quad", softmax="2quad")
    inputs = {
        "input_ids": torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "token_type_ids": torch.zeros(2, 4, dtype=torch.long),
    }
    spans = [(0, 1), (1, 2)]
    whole = {name: model(**inputs).logits for name, model in (("theirs", theirs), ("ours", ours))}
    drawn: list[int] = []
    for seed in range(60):
        logits, output = mixed_forward(theirs, ours, inputs, spans, progress=0.0, seed=seed)
        drawn.append(len(output.attention_scores))
        expected = {0: "theirs", 2: "ours"}.get(drawn[-1])
        others = [value for name, value in whole.items() if name != expected]
        assert expected is None or torch.allclose(logits, whole[expected], atol=1e-5)
        assert not any(torch.allclose(logits, other, atol=1e-4) for other in others)
    assert set(drawn) == {0, 1, 2}
    assert abs(sum(drawn) / 120 - FIRST) < 0.15
    last, _ = mixed_forward(theirs, ours, inputs, spans, progress=1.0, seed=0)
    assert torch.allclose(last, whole["ours"], atol=1e-5)


@pytest.fixture(scope="module")
def plain(teacher: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Path]:
    """Students of our recipe; the keys are the epochs of both stages."""
    folders = {epochs: tmp_path_factory.mktemp("plain") / "student" for epochs in ((1, 0), (0, 2))}
    for (epochs1, epochs2), folder in folders.items():
        distill_student(recipe_for(teacher, data_dir, epochs1=epochs1, epochs2=epochs2), folder)
    return folders


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        ({"match1": "mixture", "also1": ()}, (1, 0)),
        ({"also1": ("directions",)}, (1, 0)),
        ({"also1": ()}, (1, 0)),
        ({"layer_rates": 0.5}, (1, 0)),
        ({"also2": ("sinkhorn",)}, (0, 2)),
        ({"also2": ("labels",)}, (0, 2)),
    ],
)
def test_each_changes_the_student(
    teacher: Path,
    data_dir: Path,
    tmp_path: Path,
    plain: dict[tuple[int, int], Path],
    changes: dict[str, Any],
    epochs: tuple[int, int],
) -> None:
    recipe = recipe_for(teacher, data_dir, epochs1=epochs[0], epochs2=epochs[1], **changes)
    record = distill_student(recipe, tmp_path / "student")
    assert all(math.isfinite(row["loss"]) for row in record["log"])
    before, after = (load_file(folder / "model.safetensors") for folder in (plain[epochs], tmp_path / "student"))
    assert any(not torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    "changes",
    [
        {"match1": "mixture", "also1": (), "layers": 1, "also2": ("sinkhorn", "labels"), "layer_rates": 0.5},
        {"also1": ("probabilities", "directions"), "softmax": "2quad-const", "layers": 1},
    ],
)
def test_stopped_and_resumed_the_weights_are_the_same(
    teacher: Path, data_dir: Path, tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(teacher, data_dir, **changes)
    distill_student(recipe, tmp_path / "whole")
    _stop_after(9, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        distill_student(recipe, tmp_path / "resumed", checkpoint_minutes=0.0)
    monkeypatch.undo()
    distill_student(recipe, tmp_path / "resumed", resume=True)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_sinkhorn_is_for_one_process(
    teacher: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = SimpleNamespace(processes=SimpleNamespace(size=2))
    monkeypatch.setattr(distill.student, "Workspace", lambda *_, **__: two)
    with pytest.raises(UserInputError, match="sinkhorn compares all rows of a batch, of which 2 processes"):
        distill_student(recipe_for(teacher, data_dir, also2=("sinkhorn",)), tmp_path / "student")


def _stop_after(n_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, count = torch.nn.utils.clip_grad_norm_, itertools.count()

    def stop(*args: Any, **kwargs: Any) -> Any:
        if next(count) == n_steps:
            raise KeyboardInterrupt
        return clip(*args, **kwargs)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", stop)


def test_texts_with_replaced_words_have_no_label(
    teacher: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels have no effect if tokens are replaced in every row, and they have one if none are."""
    monkeypatch.setattr("distill.objectives.augment.ROWS", 1.1)
    weights = {}
    for replaced, also in itertools.product((0.0, 1.0), ((), ("labels",))):
        folder = tmp_path / f"{replaced}-{len(also)}"
        distill_student(recipe_for(teacher, data_dir, epochs1=0, replaced=replaced, also2=also), folder)
        weights[replaced, len(also)] = load_file(folder / "model.safetensors")["classifier.weight"]
    assert not torch.equal(weights[0.0, 0], weights[0.0, 1])
    assert torch.equal(weights[1.0, 0], weights[1.0, 1])


def test_lower_layers_move_less(teacher: Path, data_dir: Path, tmp_path: Path) -> None:
    """The first step of Adam changes a weight by its learning rate, unless its gradient is almost zero."""
    moved = {}
    common: dict[str, Any] = {"epochs1": 0, "batch_size": 64, "layer_rates": 0.25}
    for name, epochs in (("start", 0), ("moved", 1)):
        distill_student(recipe_for(teacher, data_dir, epochs2=epochs, **common), tmp_path / name)
    before, after = (load_checkpoint(tmp_path / name) for name in ("start", "moved"))
    for name, part in {
        "embeddings": "bert.embeddings.LayerNorm.weight",
        "0": "bert.encoder.layer.0.output.LayerNorm.weight",
        "1": "bert.encoder.layer.1.output.LayerNorm.weight",
        "pooler": "bert.pooler.dense.bias",
    }.items():
        moved[name] = _moved(before, after, part)
    assert moved["0"] / moved["1"] == pytest.approx(0.25, rel=0.1)
    assert moved["embeddings"] / moved["0"] == pytest.approx(0.25, rel=0.1)
    assert moved["pooler"] / moved["1"] == pytest.approx(1.0, rel=0.1)


def _moved(before: MPCFormerForSequenceClassification, after: MPCFormerForSequenceClassification, name: str) -> float:
    return float((before.get_parameter(name) - after.get_parameter(name)).detach().abs().max())
