"""Bounds for any text: no activation of any input exceeds them, and the worst input comes close."""

import contextlib
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from mpcformer.approximations import GELU_FORMS, gelu_form
from mpcformer.correlations.table import MAX_LOG_BINS
from mpcformer.engines.base import load_public_model
from mpcformer.engines.lift.engine import engine_constants
from mpcformer.engines.lift.overflow import check_overflow, rooms, rounded_rooms, value_shift
from mpcformer.engines.lift.scales import fixed_point as fp
from mpcformer.engines.lift.scales import norms
from mpcformer.engines.lift.scales.head import MAX_REACH
from mpcformer.engines.lift.scales.model import LiftScales
from mpcformer.engines.lift.scales.rows import layer_scales, row_bits
from mpcformer.engines.lift.weights import owned_weights
from mpcformer.errors import RangeError
from mpcformer.modeling import MPCFormerConfig, load_student
from mpcformer.modeling.bounds import (
    WorstCase,
    activated_length,
    column_bound,
    head_length,
    score_bound,
    spectral_norm,
    worst_case,
)
from mpcformer.modeling.ranges import POOLER_REACH
from mpcformer.modeling.weights import bert_weights
from tests.tiny import save_student


def checked(config: MPCFormerConfig, scales: LiftScales, state: dict[str, torch.Tensor]) -> WorstCase:
    return check_overflow(config, scales, bert_weights(state, config))


def normal(n_rows: int, hidden: int, seed: int) -> torch.Tensor:
    x = torch.randn(n_rows, hidden, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True) * math.sqrt(hidden)


@pytest.mark.parametrize(
    ("weight", "factor", "remedy", "other"),
    [
        ("classifier.weight", 1e5, "divide the classifier's weight and bias", "older release"),
        ("bert.pooler.dense.weight", 1e5, "or with a lower learning rate", "scores"),
        ("bert.encoder.layer.1.attention.self.query.weight", 1e4, "older release", "divide"),
    ],
)
def test_the_remedy_fits_the_value(student: Path, weight: str, factor: float, remedy: str, other: str) -> None:
    public, state = load_public_model(student), load_student(student).state_dict()
    state[weight] = state[weight] * factor
    with pytest.raises(RangeError) as refused:
        checked(public.config, engine_constants(public), state)
    assert remedy in refused.value.remedy
    assert other not in refused.value.remedy


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_linear_maps_and_scores_stay_below_their_bounds(seed: int, n_heads: int) -> None:
    hidden = 4 * n_heads
    generator = torch.Generator().manual_seed(seed)

    def linear() -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias = (
            torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((hidden, hidden), (hidden,))
        )
        return weight, bias

    query, key = linear(), linear()
    # The rows that reach each column's bound are among the inputs.
    aligned = (query[0] * query[1].sign()).t()
    x = torch.cat([normal(500, hidden, seed), aligned / aligned.norm(dim=1, keepdim=True) * math.sqrt(hidden)])
    reached = (x @ query[0] + query[1]).abs().amax(0)
    bound = column_bound(*query, math.sqrt(hidden))
    assert bool((reached <= bound * (1 + 1e-9)).all())
    assert bool((reached >= bound * (1 - 1e-9)).all()), "the bound is the maximum"

    q, k = (x @ weight + bias for weight, bias in (query, key))
    parts = [slice(4 * head, 4 * head + 4) for head in range(n_heads)]
    scores = max(float((q[:, p] @ k[:, p].t()).abs().max()) / 2 for p in parts)
    assert scores <= score_bound(query, key, n_heads, math.sqrt(hidden))
    assert spectral_norm(query[0]) == pytest.approx(float(torch.linalg.matrix_norm(query[0], 2)))


def test_long_rows_take_the_room_that_small_rows_leave(student: Path) -> None:
    """As in trained students of 12 layers, whose rows behind Quad are all large, and far larger for some text."""
    public, state = load_public_model(student), load_student(student).state_dict()
    name, weight = "layer.1.output", "bert.encoder.layer.1.output.dense.weight"
    longest = checked(public.config, engine_constants(public), state).layers[1].output
    state[weight] = state[weight] * (5e5 / longest)
    public.ranges.bounds[f"{name}.variance"] = 64.0, 1000.0
    with pytest.raises(RangeError, match=rf"{name} may reach"):
        checked(public.config, engine_constants(public), state)

    public.ranges.note_reach(worst_case(public.config, bert_weights(state, public.config)))
    assert public.ranges.bounds[f"{name}_reach"] == (0.0, 2.0**19)
    norm = engine_constants(public).norms[name]
    assert norm.unit == 4.0, "two fraction bits fewer, which rows of this size can spare"
    checked(public.config, engine_constants(public), state)

    public.ranges.bounds[f"{name}.variance"] = 0.3, 1000.0
    with pytest.raises(RangeError, match=rf"{name} may reach"):
        checked(public.config, engine_constants(public), state)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from(sorted(GELU_FORMS)), st.floats(0.1, 10), st.integers(0, 3))
def test_rows_behind_the_activation_stay_below_their_bound(seed: int, gelu: str, size: float, n_silent: int) -> None:
    """Also the longest row that ascent finds. Of a square, the bound is not far above it."""
    hidden, units, form = 6, 9, gelu_form(gelu)
    generator = torch.Generator().manual_seed(seed)
    shapes = (hidden, units), (units,), (units, hidden), (hidden,)
    weight, bias, behind, offset = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes)
    weight = weight * size * torch.rand(units, generator=generator, dtype=torch.float64) ** 4
    weight[:, :n_silent], bias[:n_silent], behind[n_silent : 2 * n_silent] = 0, 0, 0

    def results(rows: torch.Tensor) -> torch.Tensor:
        return form(rows @ weight + bias) @ behind + offset

    bound = activated_length((weight, bias), math.sqrt(hidden), (behind, offset), form.square)
    rows = normal(200, hidden, seed)
    for _ in range(30):
        assert float(results(rows).norm(dim=1).max()) <= bound
        (slope,) = torch.autograd.grad(results(rows.requires_grad_()).norm(dim=1).sum(), rows)
        rows = normalize((rows + normalize(slope, dim=1)).detach(), dim=1) * math.sqrt(hidden)
    if form.square is not None and size > 1:
        assert float(results(rows).norm(dim=1).max()) > bound / 8


@pytest.mark.parametrize(
    ("gelu", "softmax", "constant"),
    [
        ("quad", "2quad", []),
        ("relu", "2quad", []),
        ("gelu", "2quad", []),
        ("quad", "2quad-const", []),
        ("quad", "2quad-const", ["attention"]),
        ("quad", "2quad", ["output", "embeddings"]),
        ("relu", "2quad-const", ["all"]),
    ],
)
@pytest.mark.parametrize("shape", [{}, {"num_attention_heads": 3, "head_size": 5, "intermediate_size": 24}])
def test_no_text_exceeds_a_models_bounds(
    tmp_path: Path, data_dir: Path, gelu: str, softmax: str, constant: list[str], shape: dict[str, int]
) -> None:
    folder = save_student(tmp_path / "student", data_dir, gelu=gelu, softmax=softmax, constant_norms=constant, **shape)
    student = load_student(folder)
    config = student.config
    limits = load_public_model(folder).ranges.norm_limits(config.constant_norms)
    row_means = [100.0] * 2 if "const" in softmax else None
    bounds = worst_case(config, bert_weights(student.state_dict(), config), row_means, limits)
    largest: dict[str, float] = {}

    def observe(name: str, values: torch.Tensor, valid: torch.Tensor) -> None:
        largest[name] = max(largest.get(name, 0.0), float(values.detach()[valid].abs().max()))

    student.observer = observe
    ids = torch.randint(config.vocab_size, (64, 32), generator=torch.Generator().manual_seed(0))
    ids[:8] = ids[:8, :1]  # one word again and again
    with torch.no_grad():
        student(ids)
    hidden = config.hidden_size
    assert math.sqrt(largest["embeddings.variance"] * hidden) <= bounds.embeddings
    for name, limit in limits.items():
        assert largest[f"{name}.variance"] < limit, "what the bounds were told"
    for n, layer in enumerate(bounds.layers):
        assert largest[f"layer.{n}.row_mean"] < 100.0, "what the bounds were told"
        assert largest[f"layer.{n}.scores"] <= layer.scores
        assert largest[f"layer.{n}.activation"] <= float(layer.inner.max())
        assert math.sqrt(largest[f"layer.{n}.attention.variance"] * hidden) <= layer.attended
        assert math.sqrt(largest[f"layer.{n}.output.variance"] * hidden) <= layer.output
    assert largest["pooler.tanh"] <= bounds.pooler
    assert largest["logits"] <= bounds.logits


@pytest.mark.parametrize(
    ("weight", "factor", "message"),
    [
        ("bert.encoder.layer.1.attention.self.query.weight", 1e4, r"layer\.1\.scores may reach"),
        ("bert.encoder.layer.0.attention.self.value.weight", 1e4, r"layer\.0\.values may reach"),
        ("bert.encoder.layer.0.intermediate.dense.weight", 1e5, r"layer\.0\.activation may reach"),
        ("bert.encoder.layer.1.output.dense.weight", 1e6, r"layer\.1\.output may reach"),
        ("bert.pooler.dense.weight", 1e5, "pooler may reach"),
        ("bert.embeddings.word_embeddings.weight", 1e7, "embeddings may reach"),
        ("classifier.weight", 1e5, "logits may reach"),
    ],
)
def test_a_model_that_could_overflow_is_refused(student: Path, weight: str, factor: float, message: str) -> None:
    public, state = load_public_model(student), load_student(student).state_dict()
    constants = engine_constants(public)
    bounds = checked(public.config, constants, state)
    assert all(fp.BOUND_SLACK * room.value < room.room for room in rooms(constants, bounds))
    state[weight] = state[weight] * factor
    with pytest.raises(RangeError, match=message) as refused:
        checked(public.config, constants, state)
    figures = re.search(r"may reach (\S+) for some text", refused.value.what)
    assert figures is not None
    assert figures[1] not in refused.value.told, "the coordinator is told of no weight"
    assert re.search(f"{message} too far for some text", refused.value.told)


@pytest.mark.parametrize(
    ("gelu", "softmax", "constant"),
    [
        ("quad", "2quad", []),
        ("quad", "2quad-const", ["attention"]),
        ("relu", "2quad-const", ["all"]),
        ("gelu", "softmax", ["output", "embeddings"]),
    ],
)
@pytest.mark.parametrize("shape", [{}, {"num_attention_heads": 3, "head_size": 5, "intermediate_size": 24}])
def test_bounds_of_the_integers_are_those_of_the_weights(
    tmp_path: Path, data_dir: Path, gelu: str, softmax: str, constant: list[str], shape: dict[str, int]
) -> None:
    """But for rounding, and for tables and biases whose mean is subtracted here alone."""
    folder = save_student(tmp_path / "student", data_dir, gelu=gelu, softmax=softmax, constant_norms=constant, **shape)
    state = load_student(folder).state_dict()
    state |= {name: weight * 1.5 for name, weight in state.items() if "value" in name}
    public = load_public_model(folder)
    constants = engine_constants(public)
    bounds = checked(public.config, constants, state)
    owned = owned_weights(public.config, constants, state)
    exact = {room.name: room for room in rooms(constants, bounds)}
    carried = {room.name: room for room in rounded_rooms(public.config, constants, owned.weights, owned.biases)}
    assert list(carried) == list(exact)
    for name, room in carried.items():
        expected = exact[name].value
        if name.endswith("values"):
            index = int(name.split(".")[1])
            expected /= 2.0 ** value_shift(constants.layers[index], bounds.layers[index].values)
        else:
            assert room.room == exact[name].room
        assert 0.85 * expected < room.value < 1.001 * expected, name


def test_weights_that_rounding_makes_too_large_are_refused(tmp_path: Path, data_dir: Path) -> None:
    """Behind them rows so long that the constant LayerNorm's unit leaves their entries half a last place and more."""
    name, source = "layer.1.output", "bert.encoder.layer.1"
    public = load_public_model(save_student(tmp_path / "student", data_dir, constant_norms=[name]))
    public.ranges.bounds |= {f"{name}.variance": (1.0, 1e6), POOLER_REACH: (-MAX_REACH, MAX_REACH)}
    constants, state = engine_constants(public), load_student(tmp_path / "student").state_dict()
    last_place = constants.layers[1].output_norm.unit * 8 * 2.0**-constants.activation.weight_scale
    signs = torch.ones_like(state[f"{source}.output.dense.weight"])
    signs[::2] = -1
    state[f"{source}.output.dense.weight"] = 0.6 * last_place * signs
    inner = state[f"{source}.intermediate.dense.weight"]
    state["bert.pooler.dense.weight"] *= 1e-3  # its argument keeps its room
    refusals = []
    for factor in 1.2 ** torch.arange(60):
        state[f"{source}.intermediate.dense.weight"] = factor * inner
        refusals.append([_refused(check, public.config, constants, state) for check in (checked, owned_weights)])
    assert ["", ""] in refusals
    assert ["", name] in refusals, "the exact weights would fit, the rounded ones do not"
    assert [name, name] in refusals
    assert [name, ""] not in refusals


def _refused(check: Callable[..., object], *arguments: object) -> str:
    """The value that is refused, or nothing."""
    try:
        check(*arguments)
    except RangeError as error:
        return error.what.split()[0]
    return ""


@pytest.mark.parametrize(("softmax", "room"), [("2quad", 32.0), ("2quad-const", 64.0)])
def test_large_values_are_computed_smaller(tmp_path: Path, data_dir: Path, softmax: str, room: float) -> None:
    public = load_public_model(save_student(tmp_path / "student", data_dir, softmax=softmax))
    layer = engine_constants(public).layers[0]
    assert layer.value_room == room
    assert value_shift(layer, torch.tensor([1.0, 20.0])) == 0
    assert value_shift(layer, torch.tensor([room / layer.row_slack])) == 1
    assert value_shift(layer, torch.tensor([6 * room / layer.row_slack])) == 3


def test_heads_that_look_elsewhere_stay_within_their_length() -> None:
    hidden, n_heads = 12, 3
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((hidden, hidden), (hidden,)))
    values = (normal(2000, hidden, 1) @ weight + bias).view(-1, n_heads, hidden // n_heads)
    longest = float(values.norm(dim=-1).amax(0).norm())  # each head at the row that suits it best
    assert longest <= head_length((weight, bias), n_heads, math.sqrt(hidden)) < 1.5 * longest


@pytest.mark.parametrize("divisor", [1e-4, 1e-200])
def test_a_divisor_so_small_that_rows_overflow_is_refused(tmp_path: Path, data_dir: Path, divisor: float) -> None:
    folder = save_student(tmp_path / "student", data_dir, softmax="2quad-const")
    public, state = load_public_model(folder), load_student(folder).state_dict()
    constants = engine_constants(public)
    checked(public.config, constants, state)
    state["bert.encoder.layer.1.attention.self.log_divisor"] = torch.tensor(divisor, dtype=torch.float64).log()
    with pytest.raises(RangeError, match=r"layer\.1\.attended may reach"):
        checked(public.config, constants, state)


def test_rows_that_would_drown_in_rounding_are_refused(tmp_path: Path, data_dir: Path) -> None:
    """Small weights behind attention keep every ring, but the context's unit is far above what it is divided by."""
    folder = save_student(tmp_path / "student", data_dir, softmax="2quad-const")
    public, state = load_public_model(folder), load_student(folder).state_dict()
    constants = engine_constants(public)
    state["bert.encoder.layer.1.attention.output.dense.weight"] *= 1e-4
    for ratio, refused in ((50.0, False), (300.0, True)):
        log_divisor = math.log(constants.layers[1].unit / ratio)
        state["bert.encoder.layer.1.attention.self.log_divisor"] = torch.tensor(log_divisor)
        if refused:
            with pytest.raises(RangeError, match=r"layer\.1\.row_mean: .* errors grow 300 times") as caught:
                checked(public.config, constants, state)
            assert "300" not in caught.value.told
        else:
            checked(public.config, constants, state)


def test_what_follows_a_constant_norm_stays_below_its_bounds(tmp_path: Path, data_dir: Path) -> None:
    """Rows as long as the guard lets pass, in the directions that reach farthest."""
    folder = save_student(tmp_path / "student", data_dir, constant_norms=["all"])
    student, public = load_student(folder), load_public_model(folder)
    state, limits = student.state_dict(), public.ranges.norm_limits(student.config.constant_norms)
    bounds = worst_case(student.config, bert_weights(state, student.config), norm_limits=limits)
    layer = student.bert.layers[0]
    norm, inner = layer.attention["output"].LayerNorm, layer.intermediate["dense"]
    reached = _farthest(norm, inner, limits["layer.0.attention"])
    assert bool((reached <= bounds.layers[0].inner * (1 + 1e-5)).all())
    assert bool((reached >= bounds.layers[0].inner * (1 - 1e-5)).all()), "the bound is the maximum"
    attention = layer.attention["self"]
    reached = _farthest(student.bert.embeddings.LayerNorm, attention.value, limits["embeddings"])
    assert bool((reached <= bounds.layers[0].values * (1 + 1e-5)).all())


def _farthest(norm: torch.nn.Module, linear: torch.nn.Linear, limit: float) -> torch.Tensor:
    """The largest |.| of each column of the map behind `norm` that a row of variance `limit` makes."""
    weight = linear.weight * norm.weight  # (out, H)
    centred = weight - weight.mean(1, keepdim=True)
    rows = centred / centred.norm(dim=1, keepdim=True) * math.sqrt(limit * centred.size(1))
    with torch.no_grad():
        return torch.stack([linear(norm(sign * rows)).abs().diagonal() for sign in (1, -1)]).amax(0).double()


@settings(max_examples=200)
@given(st.integers(1, 512), st.integers(0, 3))
def test_keys_are_counted_exactly(n_keys: int, more: int) -> None:
    """key_factor alone is an eighth off, which a division makes up for, and 2quad-const's correction too."""
    log_keys = max(1, math.ceil(math.log2(n_keys))) + more
    factor, correction = fp.key_factor(n_keys, log_keys), fp.key_correction(n_keys, log_keys)
    scale = log_keys + fp.KEY_FACTOR_BITS
    assert 7 / 8 <= n_keys * factor / 2**scale <= 9 / 8
    assert n_keys * factor * correction / 2 ** (scale + fp.KEY_CORRECTION_SCALE) == pytest.approx(1, abs=2**-16)


@settings(max_examples=100)
@given(st.floats(-3, 5), st.floats(0, 6))
def test_rows_without_division_fit_512_positions_or_are_refused(log_high: float, log_reach: float) -> None:
    """The numerators' ring holds the context for the longest text, and no number of a row wraps around the guard."""
    bounds = {"x.row_mean": (0.0, 10**log_high), "x.score_reach": (-(10**log_reach), 10**log_reach)}
    try:
        layer = layer_scales("x", [norms.Norm(13, 13, None)] * 2, bounds, "2quad-const")
    except RangeError:
        assert log_high > 4 or log_reach > 4, "only what is very large may be refused"
        return
    assert 1.5 * 1.125 * 10**log_high <= layer.unit * (1 + 1e-9)
    for log_keys in (1, 7, 9):
        bits = row_bits(layer, log_keys)
        highest = (2.0**8 + 5) ** 2 * 4.0**fp.WIDE.score_scale * 2.0 ** (log_keys + fp.KEY_FACTOR_BITS) * 9 / 8
        assert highest < 2.0**62
        assert 8 < bits < 61


@settings(max_examples=60)
@given(st.floats(-8, 6), st.floats(0, 6), st.sampled_from([32, 384, 768, 1024]))
def test_a_layer_norms_factor_is_fine_enough_or_refused(log_low: float, log_ratio: float, hidden: int) -> None:
    """A factor is a whole number of its last place: a normalised row stays sqrt(H) long, but for the slack."""
    low, high = 10**log_low, 10 ** (log_low + log_ratio)
    try:
        norm = norms.norm("x", hidden, 1e-12, {"x.variance": (low, high)})
    except RangeError:
        assert high > 600_000 or high / low > 1e4, "only what is very large or wide may be refused"
        return
    assert math.sqrt(1.5 * high) / norm.unit * 2.0**-norm.factor_scale <= norms.FACTOR_ERROR
    assert norm.unit == 1 or norm.scale == norms.MIN_STREAM_SCALE, "a unit where nothing else helps"
    assert norm.scale + norm.factor_scale == fp.WIDE.output.normal_scale


def test_what_a_normalised_row_cannot_see_takes_no_room(student: Path) -> None:
    """c 1 1^T added to the queries' and keys' weights changes neither the model nor its bounds."""
    model = load_student(student)
    before = worst_case(model.config, bert_weights(model.state_dict(), model.config))
    state = dict(model.state_dict())
    gain = state["bert.embeddings.LayerNorm.weight"]
    for part in ("query", "key"):
        name = f"bert.encoder.layer.0.attention.self.{part}.weight"
        state[name] = state[name] + 1e3 / gain[None, :]
    after = worst_case(model.config, bert_weights(state, model.config))
    assert after.layers[0].scores == pytest.approx(before.layers[0].scores, rel=0.01)


def test_scores_that_reach_too_far_are_refused(student: Path) -> None:
    public = load_public_model(student)
    public.ranges.bounds["layer.0.score_reach"] = (-(2.0**15), 2.0**15)
    with pytest.raises(RangeError, match="score_reach: scores may reach"):
        engine_constants(public)


def test_a_range_too_wide_for_two_tables_is_refused_by_name() -> None:
    for ratio in (1e5, 4e5, 1e6, 1e9):
        with contextlib.suppress(RangeError):
            norm = norms.norm("x", 384, 1e-12, {"x.variance": (1e-3, 1e-3 * ratio)})
            assert norm.function is not None
            for argument in norm.function.parts:
                assert argument.spec.log_bins <= MAX_LOG_BINS
