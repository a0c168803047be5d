"""Students of the compact precision: small rings, rounded weights, the same answers."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mpcformer.engines.base import BatchShape, load_public_model
from mpcformer.engines.lift.engine import LiftEngine, engine_constants
from mpcformer.engines.lift.scales import fixed_point as fp
from mpcformer.engines.lift.scales.model import MAX_LENGTH, lift_scales
from mpcformer.engines.registry import ENGINES, estimate_batch
from mpcformer.errors import RangeError, UserInputError
from mpcformer.modeling.description import ModelDescription
from mpcformer.modeling.quantised import INTEGERS, rounded_maps
from mpcformer.modeling.weights_file import load_weights
from tests.pair import batch_of, run_private
from tests.tiny import save_parquet, save_student


@pytest.fixture(scope="module")
def compact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folders of a compact student with weights of 8 bits, and of its data."""
    root = tmp_path_factory.mktemp("compact")
    data = save_parquet(root / "data")
    return save_student(root / "student", data, precision="compact", weight_bits=8), data


@pytest.mark.parametrize("engine", ENGINES)
def test_private_logits_are_those_of_the_rounded_student(compact: tuple[Path, Path], engine: str) -> None:
    folder, data = compact
    inputs, expected = batch_of(folder, data)
    nobody, logits, _, counted = run_private(folder, inputs, engine=engine)
    assert nobody is None
    assert float(np.abs(logits.numpy() - expected).max()) < 0.01
    if engine == "lift":
        cost = estimate_batch(engine, load_public_model(folder), inputs.shape)
        stated = cost.rounds, cost.bytes_to_data_owner, cost.bytes_to_model_owner
        assert (counted.rounds, counted.bytes_received, counted.bytes_sent) == stated


@pytest.mark.parametrize(("task", "n_outputs"), [("mrpc", 2), ("stsb", 1)])
def test_pairs_and_regression(tmp_path: Path, task: str, n_outputs: int) -> None:
    data = save_parquet(tmp_path / task, task=task)
    folder = save_student(tmp_path / "student", data, task=task, precision="compact", weight_bits=6)
    inputs, expected = batch_of(folder, data, task)
    _, logits, *_ = run_private(folder, inputs, engine="lift")
    assert logits.shape == (12, n_outputs)
    assert float(np.abs(logits.numpy() - expected).max()) < 0.01


def test_public_embedding_tables(compact: tuple[Path, Path]) -> None:
    folder, data = compact
    inputs, expected = batch_of(folder, data)
    _, logits, *_ = run_private(folder, inputs, engine="lift", public=load_public_model(folder, "public_table"))
    assert float(np.abs(logits.numpy() - expected).max()) < 0.01


def test_it_costs_less_and_no_more_rounds(compact: tuple[Path, Path], tmp_path: Path) -> None:
    folder, data = compact
    wide = load_public_model(save_student(tmp_path / "wide", data))
    costs = [estimate_batch("lift", public, BatchShape(2, 16)) for public in (load_public_model(folder), wide)]
    assert costs[0].rounds == costs[1].rounds
    for name in ("online_bytes", "dealer_bytes", "setup_bytes", "offline_bytes_to_model_owner"):
        assert getattr(costs[0], name) < 0.85 * getattr(costs[1], name), name


def test_the_engine_carries_the_very_integers_of_the_file(compact: tuple[Path, Path]) -> None:
    """Rounding to the engine's grid changes nothing but a column's mean, which a normalised row cannot see."""
    folder, _ = compact
    public, kept = load_public_model(folder), load_file(folder / "model.safetensors")
    owned = LiftEngine.encode(public, load_weights(folder))
    assert kept[f"bert.pooler.dense{INTEGERS}"].dtype == torch.int8
    rings, config = engine_constants(public).rings, public.config
    scales = {"attention.values": rings.value_weight_scale, "inner": rings.inner_weight_scale}
    sources = {"attention.values": "attention.self.value", "inner": "intermediate.dense"}
    maps = {rounded.source: rounded for rounded in rounded_maps(config)}
    for n in range(config.num_hidden_layers):
        for name, scale in scales.items():
            source = f"bert.encoder.layer.{n}.{sources[name]}"
            integers, exponents = kept[f"{source}{INTEGERS}"].double(), kept[f"{source}.exponent"].double()
            assert float(exponents.max()) <= maps[source].finest <= scale
            exact = (integers * torch.exp2(-exponents)[:, None]).t()
            weight = owned.weights[f"layer.{n}.{name}"].double() * 2.0**-scale
            # The values may be computed smaller by a power of two.
            difference = weight * 2.0 ** round(math.log2(float(exact.std() / weight.std()))) - exact
            assert float((difference - difference.mean(0)).abs().max()) < 1e-12


@settings(max_examples=200, deadline=None)
@given(st.floats(0.1, MAX_LENGTH), st.floats(0.1, MAX_LENGTH), st.integers(1, 9), st.integers(-8, 5))
def test_every_chain_fits_its_rings(attended: float, output: float, log_keys: int, exponent: int) -> None:
    """A shift by s bits spends s bits of a ring, and the next opening finds as many as its value needs."""
    rings = fp.compact(attended, output)

    def left(ring: int, scale: int, to: int) -> int:
        return ring - max(0, scale - to)

    query, value = (rings.input_scale + scale for scale in (rings.query_weight_scale, rings.value_weight_scale))
    product = left(rings.input_bits, query, rings.query_scale)
    assert left(min(product, rings.query_bits), 2 * rings.query_scale, rings.score_scale) >= rings.score_bits
    assert left(rings.value_map_bits, value, rings.value_scale) >= rings.value_bits
    row_bits = fp.mean_scale(2 * rings.score_scale, log_keys) + exponent
    lift = rings.score_lift(row_bits, log_keys)
    assert left(lift, row_bits, rings.numerator_scale) >= rings.numerator_bits
    assert 2 * (rings.score_bits - 2) + log_keys + fp.KEY_FACTOR_BITS < lift - 2  # the largest row, for the guard
    context = rings.numerator_scale + rings.value_scale
    assert left(min(rings.numerator_bits, rings.value_lift), context, rings.context_scale) >= rings.context_bits
    divided = rings.context_scale + rings.row_scale
    assert left(rings.context_lift, divided, rings.attended_scale) >= rings.output_bits
    for name, ring, scale, stream, residual, longest in (
        ("attention", rings.output_bits, rings.output_scale, rings.attention, "attention.residual", attended),
        ("output", rings.outer_bits, rings.outer_scale, rings.output, "residual", output),
    ):
        bits = rings.weight_bits(f"layer.0.{residual}")
        own = rings.input_scale + rings.residual_scale
        assert left(bits, own, scale) >= ring, name
        assert left(ring, scale, stream.scale) >= stream.bits, name
        assert longest <= 2.0 ** (stream.bits - 2 - stream.scale), name
        assert 2 * (stream.bits - 2) <= stream.lift - 2, name  # a row's sum of squares
    inner = rings.input_scale + rings.inner_weight_scale
    assert left(rings.inner_map_bits, inner, rings.square_scale) >= rings.square_bits
    assert left(rings.square_lift, 2 * rings.square_scale, 2 * rings.square_scale - rings.square_shift) >= (
        rings.outer_bits
    )
    for stream, after in ((rings.first, rings.input_bits), (rings.attention, rings.inner_residual_bits)):
        assert left(stream.lift, stream.normal_scale, rings.input_scale) >= after
    assert left(rings.output.lift, rings.output.normal_scale, rings.input_scale) >= rings.input_bits
    assert row_bits + 1 + fp.GUARD_ROOM <= lift
    assert max(rings.input_bits, rings.weight_bits("layer.0.attention.residual")) == rings.input_bits


@pytest.mark.parametrize("variance", [(0.3, 30.0), (0.001, 1.0), (0.05, 4.0), (0.3, 500.0), (2.0, 1000.0)])
@pytest.mark.parametrize("reach", [2.0**8, 2.0**10, 2.0**14, 2.0**16])
def test_ordinary_ranges_are_carried_in_units(variance: tuple[float, float], reach: float) -> None:
    bounds = {"embeddings.variance": (0.01, 0.1)}
    for name in ("layer.0", "layer.1"):
        bounds |= {f"{name}.{part}.variance": variance for part in ("attention", "output")}
        bounds |= {f"{name}.attended_reach": (0.0, reach), f"{name}.output_reach": (0.0, reach)}
        bounds |= {f"{name}.row_mean": (5.0, 60.0), f"{name}.scores": (-9.0, 9.0)}
    made = lift_scales(ModelDescription(num_hidden_layers=2, precision="compact"), bounds)
    for layer in made.layers:
        for norm in (layer.attention_norm, layer.output_norm):
            assert norm.scale == norm.stream.scale
            assert reach <= norm.unit * 2.0 ** (norm.stream.bits - 2 - norm.scale)
            low, high = norm.variance_limits
            assert low < variance[0] < variance[1] < high


def test_forms_that_it_does_not_carry_are_refused(tmp_path: Path) -> None:
    data = save_parquet(tmp_path / "data")
    folder = save_student(tmp_path / "student", data, softmax="2relu")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"precision": "wide"', '"precision": "compact"'))
    with pytest.raises(UserInputError, match="compact carries quad with 2quad") as caught:
        load_public_model(folder)
    assert "wide" in str(caught.value.remedy)
    config.write_text(config.read_text().replace('"precision": "compact"', '"precision": "narrow"'))
    with pytest.raises(UserInputError, match="precision: 'narrow' is unknown"):
        load_public_model(folder)


def test_rows_that_are_too_long_or_unknown_are_refused(compact: tuple[Path, Path]) -> None:
    public = load_public_model(compact[0])
    public.ranges.bounds["layer.1.output_reach"] = (0.0, 2.0**30)
    with pytest.raises(RangeError, match="too long for compact rings") as caught:
        engine_constants(public)
    assert "--weight-bits all" in str(caught.value.remedy)
    del public.ranges.bounds["layer.1.output_reach"]
    with pytest.raises(RangeError, match="output_reach"):
        engine_constants(public)
