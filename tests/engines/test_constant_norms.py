"""Constant LayerNorms in both engines: the plaintext student's logits, fewer rounds, long rows refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mpcformer.engines.base import MODEL_OWNER, BatchInputs, BatchShape, PublicModel, load_public_model
from mpcformer.engines.crypten.parameters import parameter_values
from mpcformer.engines.lift.engine import engine_constants
from mpcformer.engines.lift.overflow import check_overflow
from mpcformer.engines.lift.scales import norms
from mpcformer.engines.lift.scales.head import MAX_REACH
from mpcformer.engines.registry import ENGINES, create_engine, estimate_batch
from mpcformer.errors import RangeError, UserInputError
from mpcformer.modeling import Ranges, load_student
from mpcformer.modeling.ranges import POOLER_REACH, VARIANCE_REACH
from mpcformer.modeling.weights import bert_weights
from tests.pair import batch_of, run_outcomes, run_private
from tests.tiny import save_student

LOG_DEVIATION = "bert.encoder.layer.1.attention.output.LayerNorm.log_deviation"


def as_learnt(folder: Path) -> Path:
    """Constants, gains and biases away from where they start, so that a factor left out shows."""
    state = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    for name, value in state.items():
        if name.endswith(("LayerNorm.weight", "LayerNorm.bias")):
            value += 0.2 * torch.randn(value.shape, generator=generator)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("gelu", "softmax", "constant"),
    [
        ("quad", "2quad-const", ["attention"]),
        ("quad", "2quad-const", ["layer.0.output"]),
        ("quad", "2quad-const", ["all"]),
        ("quad", "2quad", ["embeddings", "layer.1.output"]),
        ("relu", "2relu", ["output"]),
        ("gelu", "softmax", ["all"]),
    ],
)
def test_students_with_constant_norms_give_the_plaintext_logits(
    tmp_path: Path, data_dir: Path, gelu: str, softmax: str, constant: list[str]
) -> None:
    folder = save_student(tmp_path / "student", data_dir, gelu=gelu, softmax=softmax, constant_norms=constant)
    inputs, expected = batch_of(folder, data_dir)
    for engine in ENGINES:
        _, logits, _, counted = run_private(folder, inputs, engine=engine)
        if engine == "lift":
            cost = estimate_batch(engine, load_public_model(folder), inputs.shape)
            stated = cost.rounds, cost.bytes_to_data_owner, cost.bytes_to_model_owner
            assert (counted.rounds, counted.bytes_received, counted.bytes_sent) == stated
        bound = 0.01 if "gelu" in gelu or softmax == "softmax" else 0.002
        assert float(np.abs(logits.numpy() - expected).max()) < bound


def test_gains_biases_and_constants_are_all_in_the_weights(tmp_path: Path, data_dir: Path) -> None:
    folder = as_learnt(save_student(tmp_path / "student", data_dir, softmax="2quad-const", constant_norms=["all"]))
    inputs, expected = batch_of(folder, data_dir)
    public = load_public_model(folder)
    wide = {name: (low / 2, 4 * high) for name, (low, high) in public.ranges.bounds.items() if low > 0}
    moved = PublicModel(public.config, Ranges(public.ranges.bounds | wide | reach(2**9), 1))
    for engine in ENGINES:
        _, logits, *_ = run_private(folder, inputs, engine=engine, public=moved)
        assert float(np.abs(logits.numpy() - expected).max()) < 0.01


def reach(high: float) -> dict[str, tuple[float, float]]:
    reaches = {f"layer.{n}.score_reach": high for n in range(2)} | {POOLER_REACH: MAX_REACH}
    return {name: (-float(largest), float(largest)) for name, largest in reaches.items()}


def test_public_tables_before_a_constant_norm(tmp_path: Path, data_dir: Path) -> None:
    """The data owner does not normalise its rows, and those that are too long are reported all the same."""
    folder = save_student(tmp_path / "student", data_dir, constant_norms=["embeddings"])
    inputs, expected = batch_of(folder, data_dir)
    public = load_public_model(folder, "public_table")
    _, logits, *_ = run_private(folder, inputs, engine="lift", public=public)
    assert float(np.abs(logits.numpy() - expected).max()) < 0.002
    low, high = public.ranges.bounds["embeddings.variance"]
    moved = Ranges(public.ranges.bounds | {"embeddings.variance": (low / 10, high / 10)}, 1)
    public = PublicModel(public.config, moved, embeddings="public_table")
    assert run_outcomes(folder, inputs, engine="lift", public=public)[1].refused.all()


def test_rounds_and_dealer_bytes_of_a_batch(tmp_path: Path, data_dir: Path) -> None:
    """A constant norm has no opening of its own: two rounds less each, in the reference engine all of Newton's."""
    shape, costs = BatchShape(2, 16), {}
    for constant in ("", "attention", "output", "all"):
        folder = save_student(
            tmp_path / (constant or "none"), data_dir, softmax="2quad-const", constant_norms=[constant][: len(constant)]
        )
        costs[constant] = {engine: estimate_batch(engine, load_public_model(folder), shape) for engine in ENGINES}
    rounds = {name: cost["lift"].rounds for name, cost in costs.items()}
    # The head's opening of the last factor takes the guard along, so its constant norm saves nothing.
    assert rounds == {"": 34, "attention": 30, "output": 32, "all": 26}
    rounds = {name: cost["crypten"].rounds for name, cost in costs.items()}
    assert rounds["all"] < rounds["attention"] < rounds[""]
    for engine in ENGINES:
        dealt = {name: cost[engine].dealer_bytes for name, cost in costs.items()}
        assert dealt["all"] < dealt["attention"] < dealt[""]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["embeddings", "layer.0.attention", "layer.1.output"])
def test_long_rows_are_refused(tmp_path: Path, data_dir: Path, engine: str, name: str) -> None:
    """Never below the margin of 1.5, always from VARIANCE_REACH on."""
    folder = save_student(tmp_path / "student", data_dir, constant_norms=[name])
    inputs, expected = batch_of(folder, data_dir)
    public = load_public_model(folder)
    # After the last layer's attention the default engine computes the rows of [CLS] alone.
    n_rows = 1 if engine == "lift" and name == "layer.1.output" else inputs.shape.seq_len
    variances = row_variances(folder, inputs, name)[:, :n_rows].amax(1)
    largest = float(variances.max())
    for factor in (1 / 1.45, 1 / (1.02 * VARIANCE_REACH), 1e-3):
        bounds = public.ranges.bounds | {f"{name}.variance": (largest * factor / 4, largest * factor)}
        moved = PublicModel(public.config, Ranges(bounds | reach(2**10), 1))
        _, outcome, *_ = run_outcomes(folder, inputs, engine=engine, public=moved)
        times = variances / (largest * factor)
        assert not outcome.refused[times < 1.47].any()
        assert outcome.refused[times > 1.01 * VARIANCE_REACH].all()
        wrong = np.abs(outcome.logits.numpy() - expected).max(1)
        assert not (wrong[~outcome.refused.numpy()] > 0.005).any()


@pytest.mark.parametrize("times", [1.2, 2.5, 3.01, 3.5, 3.99, 5.5, 7.5, 7.9])
def test_rows_whose_sum_of_squares_wraps_are_refused(tmp_path: Path, data_dir: Path, times: float) -> None:
    """In the reference engine a sum beyond 2^30 may come out as any number, negative ones too."""
    name, hidden = "layer.1.output", 32
    folder = save_student(tmp_path / "student", data_dir, constant_norms=[name])
    inputs, _ = batch_of(folder, data_dir)
    state = load_file(folder / "model.safetensors")
    signs = torch.ones(hidden)
    signs[::2] = -1
    # The rows are what this bias makes them; a gain of zero keeps all that follows in its range.
    state["bert.encoder.layer.1.output.dense.bias"] = signs * (times * 2**30 / hidden) ** 0.5
    state["bert.encoder.layer.1.output.LayerNorm.weight"] *= 0
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert float(row_variances(folder, inputs, name).max()) * hidden == pytest.approx(times * 2**30, rel=0.002)
    assert run_outcomes(folder, inputs, engine="crypten")[1].refused.all()


def row_variances(folder: Path, inputs: BatchInputs, name: str) -> torch.Tensor:
    """The variance of each row of a batch, (B, L); zero for padding."""
    student, seen = load_student(folder), {}
    student.observer = lambda at, values, valid: seen.update({at: values * valid})
    with torch.no_grad():
        student(inputs.input_ids, inputs.attention_mask, inputs.token_type_ids)
    return seen[f"{name}.variance"].squeeze(-1)


def test_padding_may_be_as_long_as_it_likes(tmp_path: Path, data_dir: Path) -> None:
    folder = save_student(tmp_path / "student", data_dir, softmax="2quad-const", constant_norms=["all"])
    state = load_file(folder / "model.safetensors")
    state["bert.embeddings.word_embeddings.weight"][0] *= 0
    state["bert.embeddings.word_embeddings.weight"][0, ::2] += 5.0
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    ids = torch.tensor([[2, 7, 8, 3] + [0] * 28])
    inputs = BatchInputs((ids > 0).long(), ids, torch.zeros_like(ids))
    with torch.no_grad():
        expected = load_student(folder)(ids, inputs.attention_mask).logits
    for engine in ENGINES:
        _, logits, *_ = run_private(folder, inputs, engine=engine)
        assert float((logits - expected).abs().max()) < 0.002


@pytest.mark.parametrize("log", [-30.0, -1e30, float("nan")])
def test_a_constant_so_small_that_rows_overflow_is_refused(tmp_path: Path, data_dir: Path, log: float) -> None:
    public, state = student(tmp_path, data_dir)
    constants = engine_constants(public)
    check_overflow(public.config, constants, bert_weights(state, public.config))
    state[LOG_DEVIATION] = torch.tensor(log)
    with pytest.raises(RangeError, match=r"layer\.1\.activation may reach"):
        check_overflow(public.config, constants, bert_weights(state, public.config))
    from mpcformer.engines.crypten.constants import model_constants

    crypten = model_constants(
        gelu="quad",
        softmax="2quad",
        n_layers=2,
        bounds=public.ranges.bounds,
        constant_norms=public.config.constant_norms,
    )
    with pytest.raises(RangeError, match="divided by its deviation reaches") as refused:
        parameter_values(public.config, crypten, state)
    assert refused.value.told.endswith("divided by its deviation reaches more than 16384")


@pytest.mark.parametrize("asked", [[], ["layer.0.attention"], ["attention", "embeddings"]])
def test_weights_and_configuration_must_agree_on_the_norms(tmp_path: Path, data_dir: Path, asked: list[str]) -> None:
    public, state = student(tmp_path, data_dir)
    config = replace(public.config, constant_norms=asked)
    named = "embeddings" if "embeddings" in asked else "layer.1.attention" if asked else "layer.0.attention"
    for engine in ENGINES:
        with pytest.raises(UserInputError, match=rf"LayerNorm {named} is .* constant_norms, but the weights have"):
            create_engine(
                engine, rank=MODEL_OWNER, public=PublicModel(config, public.ranges), channel=None, weights=state
            )


def student(tmp_path: Path, data_dir: Path) -> tuple[PublicModel, dict[str, Any]]:
    folder = save_student(tmp_path / "student", data_dir, constant_norms=["attention"])
    return load_public_model(folder), load_student(folder).state_dict()


def test_owners_must_agree_on_the_norms(tmp_path: Path, data_dir: Path) -> None:
    public, _ = student(tmp_path, data_dir)
    other = PublicModel(replace(public.config, constant_norms=[]), public.ranges)
    assert public.facts()["constant_norms"] == "['layer.0.attention', 'layer.1.attention']"
    assert public.facts() != other.facts()
    assert engine_constants(public).digest() != engine_constants(other).digest()


@pytest.mark.parametrize("hidden", [32, 384, 768])
@pytest.mark.parametrize("ratio", [1.0, 3.0, 30.0, 1000.0])
def test_the_unit_of_a_constant_norm(hidden: int, ratio: float) -> None:
    """The guard marks from the limit on, and the smallest rows keep 10 bits or more."""
    low, high = 0.01, 0.01 * ratio**2
    norm = norms.constant_norm("x", hidden, {"x.variance": (low, high)})
    at_limit = norm.limit * hidden / norm.unit**2 * 4.0**norm.scale
    assert at_limit == pytest.approx(2.0 ** (norm.guard_bits + 1))
    assert norm.limit == pytest.approx(VARIANCE_REACH * high)
    assert norm.scale >= norms.MIN_STREAM_SCALE, "below, a stream does not fill the ring it is opened in"
    assert np.sqrt(low) / norm.unit * 2**norm.scale > 2**10 or norm.scale == norms.MAX_STREAM_SCALE


@pytest.mark.parametrize(("low", "high"), [(0.01, 0.1), (1.0, 10.0), (97.0, 970.0), (800.0, 8000.0), (4e4, 4e5)])
def test_a_norm_behind_a_constant_one_is_carried_where_any_is(low: float, high: float) -> None:
    """Room for long rows is taken from small ones, at most what a stream's largest unit leaves."""
    plain, roomy = (norms.norm("x", 384, 1e-12, {"x.variance": (low, high)}, roomy=roomy) for roomy in (False, True))
    assert roomy.unit * 2.0**-roomy.scale >= plain.unit * 2.0**-plain.scale
    assert roomy.unit <= 2.0**norms.MAX_LOG_UNIT
    assert np.sqrt(low / 1.5) / roomy.unit * 2**roomy.scale >= 2 ** (norms.ROOMY_BITS - 1)


def test_a_norm_behind_a_constant_one_is_refused_where_rows_are_too_large() -> None:
    for roomy in (False, True):
        with pytest.raises(RangeError, match=r"x\.variance reaches .*: too large for a LayerNorm in fixed point"):
            norms.norm("x", 384, 1e-12, {"x.variance": (1e5, 1e6)}, roomy=roomy)


@pytest.mark.parametrize("high", [float("inf"), float("-inf"), 1e30])
def test_rows_that_grew_beyond_all_numbers(high: float) -> None:
    with pytest.raises(RangeError, match=r"embeddings\.variance is .* on the training data"):
        Ranges({"embeddings.variance": (0.1, high)}).norm_limits(["embeddings"])


@pytest.mark.parametrize("low", [1e-300, 1.0])
@pytest.mark.parametrize("high", [1e12, 1e300, 1e308])
def test_ranges_too_large_for_any_norm(low: float, high: float) -> None:
    bounds = {"x.variance": (low, high)}
    with pytest.raises(RangeError, match=r"x\.variance (is .* on the training data|reaches beyond)"):
        norms.constant_norm("x", 32, bounds)
    with pytest.raises(RangeError, match=r"x\.variance reaches"):
        norms.norm("x", 32, 1e-12, bounds)


def test_a_variance_that_is_not_there() -> None:
    with pytest.raises(RangeError, match=r"x\.variance is missing"):
        norms.constant_norm("x", 32, {})
    with pytest.raises(RangeError, match=r"x\.variance = .* is not positive"):
        norms.constant_norm("x", 32, {"x.variance": (0.0, 0.0)})
