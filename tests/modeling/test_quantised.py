"""Rounded students: what the file holds, what is read from it, and how near it is."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mpcformer.errors import RangeError, UserInputError
from mpcformer.modeling import quantised
from mpcformer.modeling.description import ModelDescription
from mpcformer.modeling.load import load_student
from mpcformer.modeling.precision import BITS
from mpcformer.modeling.quantised import (
    EXPONENTS,
    INTEGERS,
    Moments,
    is_quantised,
    quantise,
    query_fraction,
    restored,
    rounded_maps,
)
from mpcformer.modeling.weights_file import load_weights
from tests.tiny import save_parquet, save_student


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plain")
    return save_student(root / "student", save_parquet(root / "data"), seed=3)


@pytest.mark.parametrize("bits", BITS)
def test_rounding_stays_within_half_a_step(plain: Path, bits: int) -> None:
    model = load_student(plain)
    config = ModelDescription.of(model.config)
    kept = quantise(model.state_dict(), config, bits)
    assert is_quantised(kept)
    assert not is_quantised(model.state_dict())
    for rounded in rounded_maps(config):
        integers, exponents = kept[f"{rounded.source}{INTEGERS}"], kept[f"{rounded.source}{EXPONENTS}"]
        assert integers.dtype == exponents.dtype == torch.int8
        assert int(integers.abs().max()) <= 2 ** (bits - 1) - 1
        assert int(exponents.max()) <= rounded.finest
        assert f"{rounded.source}.weight" not in kept
    state = restored(kept, config)
    assert state.keys() == model.state_dict().keys()
    again = quantise(state, config, bits)
    for name, tensor in kept.items():
        if not name.endswith(".bias"):
            assert torch.equal(tensor, again[name]), f"{name}: rounding what is rounded changes nothing"


def test_fewer_bits_are_further_away(plain: Path) -> None:
    ids, mask = torch.randint(5, 20, (6, 9)), torch.ones(6, 9, dtype=torch.long)
    errors = []
    for bits in BITS:
        model = load_student(plain)
        expected = model(ids, mask).logits.detach()
        config = ModelDescription.of(model.config)
        model.load_state_dict(restored(quantise(model.state_dict(), config, bits), config))
        errors.append(float((model(ids, mask).logits.detach() - expected).abs().max()))
    assert errors[0] < 0.02
    assert errors == sorted(errors)


def test_parties_and_trainers_read_the_same_numbers(tmp_path: Path) -> None:
    folder = save_student(tmp_path / "student", save_parquet(tmp_path / "data"), precision="compact", weight_bits=8)
    state, model = load_weights(folder), load_student(folder).state_dict()
    assert state.keys() == model.keys()
    assert all(torch.equal(state[name], model[name]) for name in state)


def test_a_gain_of_zero_is_no_division_by_zero(plain: Path) -> None:
    model = load_student(plain)
    config = ModelDescription.of(model.config)
    state = model.state_dict()
    state["bert.embeddings.LayerNorm.weight"][3] = 0.0
    weight = restored(quantise(state, config, 8), config)["bert.encoder.layer.0.attention.self.key.weight"]
    assert bool(torch.isfinite(weight).all())
    assert float(weight[:, 3].abs().max()) == 0.0
    state["bert.embeddings.LayerNorm.weight"][3] = 1e-6
    weight = restored(quantise(state, config, 8), config)["bert.encoder.layer.0.attention.self.key.weight"]
    assert float(weight[:, 3].abs().max()) == 0.0, "nor does a tiny one make a weight huge"


@pytest.mark.parametrize("head_size", [8, 12, 16, 26, 32, 64])
def test_queries_carry_what_is_no_power_of_two(head_size: int) -> None:
    fraction = query_fraction(head_size)
    assert 1 <= fraction < 2
    power = head_size**-0.5 / fraction
    assert math.log2(power) == pytest.approx(round(math.log2(power)), abs=1e-12)


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    folder = save_student(tmp_path / "student", save_parquet(tmp_path / "data"), precision="compact", weight_bits=8)
    file = folder / "model.safetensors"
    whole = load_file(file)
    name = f"bert.encoder.layer.1.output.dense{INTEGERS}"
    for damaged in (
        {key: tensor for key, tensor in whole.items() if key != name},
        whole | {name: whole[name].float()},
        whole | {name.replace(INTEGERS, EXPONENTS): torch.zeros(3, dtype=torch.int8)},
        whole | {name: whole[name][:, :5].contiguous()},
    ):
        save_file(damaged, file)
        with pytest.raises(UserInputError, match=r"bert\.encoder\.layer\.1\.output\.dense"):
            load_weights(folder)


def test_weights_of_other_bits_are_refused(plain: Path) -> None:
    model = load_student(plain)
    with pytest.raises(UserInputError, match="--weight-bits: 5 is unknown"):
        quantise(model.state_dict(), ModelDescription.of(model.config), 5)


def test_what_rounding_loses_is_made_up_for() -> None:
    """With the moments of correlated rows of some mean, the rounded map of such rows is several times nearer."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 24, generator=generator)
    rows = torch.randn(400, 6, generator=generator) @ mix + torch.randn(24, generator=generator)
    rows = rows + 0.1 * torch.randn(400, 24, generator=generator)
    weight = torch.randn(10, 24, generator=generator, dtype=torch.float64)
    seen = Moments.none(24).plus(rows[:100]).plus(rows[100:])
    assert torch.allclose(seen.mean, rows.double().mean(0), atol=1e-5)
    plain, exponents = quantised._rounded(weight, 6, 20)
    better = quantised._made_up_for(weight, exponents, 6, seen.covariance())
    assert int(better.abs().max()) <= 31
    errors = []
    for integers in (plain, better):
        left = (weight - integers.double() * torch.exp2(-exponents.double())[:, None]) @ rows.double().t()
        errors.append(float((left - left.mean(1, keepdim=True)).norm()))
    assert errors[1] < 0.5 * errors[0]


def test_inputs_beyond_all_numbers_are_named() -> None:
    seen = Moments.none(5).plus(torch.full((3, 5), torch.inf))
    with pytest.raises(RangeError, match="not finite on the training texts"):
        quantised._made_up_for(torch.randn(4, 5).double(), torch.zeros(4), 8, seen.covariance())


def test_inputs_that_never_change_are_no_obstacle() -> None:
    seen = Moments.none(5).plus(torch.ones(3, 5))
    weight = torch.randn(4, 5, dtype=torch.float64)
    integers, exponents = quantised._rounded(weight, 8, 20)
    assert quantised._made_up_for(weight, exponents, 8, seen.covariance()).shape == integers.shape
