"""The whole private BERT against its plaintext twin, every form; planning; refusals. Two threads, no network."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mpcformer.approximations import GELU_FORMS, SOFTMAX_FORMS
from mpcformer.channel import memory_pair
from mpcformer.correlations import CorrelationStore, Request, row_lookup
from mpcformer.engines.base import BatchInputs, BatchShape, PublicModel, load_public_model
from mpcformer.engines.crypten import ops as ops
from mpcformer.engines.crypten.bert import CrypTenBert
from mpcformer.engines.crypten.bert_program import RESIDUAL_LIMIT
from mpcformer.engines.crypten.newton import rsqrt_plan
from mpcformer.engines.registry import ENGINES, create_engine, estimate_batch
from mpcformer.errors import ProtocolError, RangeError, UserInputError
from mpcformer.modeling import Ranges, load_student
from mpcformer.ring import filed
from mpcformer.ring.random import fresh_key
from tests.pair import batch_of, run_outcomes, run_pair, run_private, shared
from tests.tiny import save_parquet, save_student


@pytest.mark.parametrize("gelu", [name for name in GELU_FORMS if name != "gelu_tanh"])  # computed as gelu
@pytest.mark.parametrize("softmax", SOFTMAX_FORMS)
def test_private_logits_equal_the_plaintext_students(tmp_path: Path, data_dir: Path, gelu: str, softmax: str) -> None:
    folder = save_student(tmp_path / "student", data_dir, gelu=gelu, softmax=softmax)
    inputs, expected = batch_of(folder, data_dir)
    assert int(inputs.attention_mask.sum(1).min()) < inputs.shape.seq_len, "padding is part of the test"
    for engine in ENGINES:
        nobody, logits, _, counted = run_private(folder, inputs, engine=engine)
        assert nobody is None
        if engine == "lift":
            cost = estimate_batch(engine, load_public_model(folder), inputs.shape)
            stated = cost.rounds, cost.bytes_to_data_owner, cost.bytes_to_model_owner
            assert (counted.rounds, counted.bytes_received, counted.bytes_sent) == stated
        bound = 0.01 if "gelu" in gelu or softmax == "softmax" else 0.002
        assert float(np.abs(logits.numpy() - expected).max()) < bound


def test_the_reference_engine_opens_what_its_program_declares_alone(
    student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opening(bert: CrypTenBert, one_hot: Any, mask: torch.Tensor) -> None:
        one_hot.get_plain_text()

    monkeypatch.setattr(CrypTenBert, "forward", opening)
    engine = create_engine("crypten", rank=1, public=load_public_model(student), channel=None)
    with pytest.raises(ProtocolError, match="get_plain_text would open a value in the middle"):
        engine.plan(BatchShape(1, 4))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("task", "n_outputs"), [("mrpc", 2), ("stsb", 1)])
def test_pairs_and_regression(tmp_path: Path, task: str, n_outputs: int, engine: str) -> None:
    data = save_parquet(tmp_path / task, task=task)
    folder = save_student(tmp_path / "student", data, task=task)
    inputs, expected = batch_of(folder, data, task)
    assert inputs.token_type_ids is not None
    assert int(inputs.token_type_ids.max()) == 1
    _, logits, *_ = run_private(folder, inputs, engine=engine)
    assert logits.shape == (12, n_outputs)
    assert float(np.abs(logits.numpy() - expected).max()) < 0.002


@pytest.mark.parametrize("engine", ENGINES)
def test_a_session_serves_several_batches(student: Path, data_dir: Path, engine: str) -> None:
    inputs, expected = batch_of(student, data_dir)
    _, logits, *_ = run_private(student, inputs, engine=engine, n_batches=3)
    assert float(np.abs(logits.numpy() - expected).max()) < 0.002


def test_public_embedding_tables(student: Path, data_dir: Path) -> None:
    """The data owner looks up and normalises by itself: the same logits, no embedding message, fewer rounds."""
    inputs, expected = batch_of(student, data_dir)
    public = load_public_model(student, "public_table")
    *_, private_plan, private_cost = run_private(student, inputs, engine="lift")
    _, logits, plan, cost = run_private(student, inputs, engine="lift", public=public)
    assert float(np.abs(logits.numpy() - expected).max()) < 0.002
    assert cost.rounds == private_cost.rounds - 4
    assert sum(map(len, plan)) < sum(map(len, private_plan))
    assert public.facts() != load_public_model(student).facts(), "owners must agree on it"


def test_one_word_is_enough(student: Path) -> None:
    one = BatchInputs(torch.ones(1, 1, dtype=torch.long), torch.tensor([[5]]), torch.zeros(1, 1, dtype=torch.long))
    with torch.no_grad():
        expected = load_student(student)(one.input_ids, one.attention_mask).logits
    _, outcome, *_ = run_outcomes(student, one)
    if outcome.refused.any():
        pytest.skip("a lone word lies outside the ranges of the made-up sentences")
    assert torch.allclose(outcome.logits, expected, atol=0.005)


def test_scores_beyond_their_clamp_are_reported(tmp_path: Path, data_dir: Path) -> None:
    """Softmax clamps scores; sentences that have larger ones than the calibration saw are refused, and no other."""
    folder = save_student(tmp_path / "student", data_dir, softmax="softmax")
    inputs, _ = batch_of(folder, data_dir)
    public = load_public_model(folder)
    # Scores of the tiny student are small, and so are its bounds: make both larger, and calibrate as if they were not.
    state = load_file(folder / "model.safetensors")
    for part in ("query", "key"):
        state[f"bert.encoder.layer.1.attention.self.{part}.weight"] *= 6.0
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    reach = {f"layer.{n}.score_reach": (-(2.0**10), 2.0**10) for n in range(2)}
    wide = {name: (low / 30, high * 30) for name, (low, high) in public.ranges.bounds.items() if "variance" in name}
    student, scores = load_student(folder), {}
    student.observer = lambda name, values, valid: scores.update({name: (values * valid).abs()})
    with torch.no_grad():
        student(inputs.input_ids, inputs.attention_mask)
    largest = scores["layer.1.scores"][:, :, 0].amax((1, 2))  # the last layer asks from [CLS] alone
    for bound in (float(largest.median()) / 1.5, 100.0):
        clamp = {"layer.1.scores": (-bound, bound)}
        moved = PublicModel(public.config, Ranges(public.ranges.bounds | reach | wide | clamp, 1))
        _, outcome, *_ = run_outcomes(folder, inputs, engine="lift", public=moved)
        clear = (largest / (1.5 * bound) - 1).abs() > 0.01
        assert torch.equal(outcome.refused[clear], largest[clear] > 1.5 * bound)
        assert bool(outcome.refused.any()) == (bound < 100)
        assert not outcome.refused.all()


STRANGE = ("one word", "unknown words", "random words", "all different")


@pytest.mark.parametrize(
    ("gelu", "softmax"), [("quad", "2quad"), ("quad", "2quad-const"), ("relu", "2relu"), ("gelu", "softmax")]
)
def test_strange_texts_are_computed_right_or_refused(tmp_path: Path, data_dir: Path, gelu: str, softmax: str) -> None:
    """Repeated, unknown and random words up to the last position: never a wrong logit without a word."""
    folder = save_student(tmp_path / "student", data_dir, gelu=gelu, softmax=softmax)
    student, vocabulary = load_student(folder), load_public_model(folder).config.vocab_size
    generator = torch.Generator().manual_seed(1)
    rows = torch.stack(
        [
            torch.full((32,), vocabulary - 1),
            torch.full((32,), 1),
            torch.randint(vocabulary, (32,), generator=generator),
            torch.arange(32) % vocabulary,
        ]
    )
    inputs = BatchInputs(torch.ones_like(rows), rows, torch.zeros_like(rows))
    with torch.no_grad():
        expected = student(inputs.input_ids, inputs.attention_mask).logits
    _, outcome, *_ = run_outcomes(folder, inputs, engine="lift")
    for i, name in enumerate(STRANGE):
        assert outcome.refused[i] or torch.allclose(outcome.logits[i], expected[i], atol=0.02), name


@pytest.mark.parametrize("softmax", ["2quad", "2quad-const"])
def test_padding_weighs_nothing_however_large_it_is(data_dir: Path, tmp_path: Path, softmax: str) -> None:
    """Padding rows are exempt from the range check, so they must not reach a real token at all."""
    folder = save_student(tmp_path / "padded", data_dir, softmax=softmax)
    state = load_file(folder / "model.safetensors")
    words = state["bert.embeddings.word_embeddings.weight"]
    words[0] = 2000.0 * words[5]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    ids = torch.tensor([[2, 7, 8, 3] + [0] * 28])
    inputs = BatchInputs((ids > 0).long(), ids, torch.zeros_like(ids))
    with torch.no_grad():
        expected = load_student(folder)(ids, inputs.attention_mask).logits
    _, logits, *_ = run_private(folder, inputs, engine="lift")
    assert float((logits - expected).abs().max()) < 0.002


def test_rows_that_are_not_divided_are_guarded(tmp_path: Path, data_dir: Path) -> None:
    """2quad-const: a row far above its calibrated size is reported, one within its range is not."""
    folder = save_student(tmp_path / "student", data_dir, softmax="2quad-const")
    inputs, expected = batch_of(folder, data_dir)
    public = load_public_model(folder)
    name = "layer.1.row_mean"
    low, high = public.ranges.bounds[name]
    for factor, refused in ((1.0, False), (1 / 16, True), (1 / 100, True)):
        moved = PublicModel(public.config, Ranges(public.ranges.bounds | {name: (low * factor, high * factor)}, 1))
        if refused:
            assert run_outcomes(folder, inputs, engine="lift", public=moved)[1].refused.all()
        else:
            _, logits, *_ = run_private(folder, inputs, engine="lift", public=moved)
            assert float(np.abs(logits.numpy() - expected).max()) < 0.002


@pytest.mark.parametrize("softmax", ["2quad", "2quad-const"])
def test_values_that_are_computed_smaller(data_dir: Path, tmp_path: Path, softmax: str) -> None:
    """Values above their room take a shift that only the model owner knows; the logits stay right."""
    folder = save_student(tmp_path / "large", data_dir, softmax=softmax)
    state = load_file(folder / "model.safetensors")
    for n in range(2):
        for part, factor in (("attention.self.value.weight", 40.0), ("attention.self.value.bias", 40.0)):
            state[f"bert.encoder.layer.{n}.{part}"] *= factor
        state[f"bert.encoder.layer.{n}.attention.output.dense.weight"] /= 40.0
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    inputs, expected = batch_of(folder, data_dir)
    _, logits, *_ = run_private(folder, inputs, engine="lift")
    assert float(np.abs(logits.numpy() - expected).max()) < 0.002


@pytest.mark.parametrize("engine", ENGINES)
def test_plans_depend_on_shape_alone_and_agree(student: Path, engine: str) -> None:
    public, weights = load_public_model(student), load_student(student).state_dict()
    data_owner = create_engine(engine, rank=1, public=public, channel=None, weights=None)
    model_owner = create_engine(engine, rank=0, public=public, channel=None, weights=weights)
    shape = BatchShape(3, 7)
    assert data_owner.plan(shape) == model_owner.plan(shape) != data_owner.plan(BatchShape(3, 8))
    assert data_owner.fingerprint() == model_owner.fingerprint()


@pytest.mark.parametrize("name", ENGINES)
def test_rounds_do_not_grow_with_the_batch(student: Path, name: str) -> None:
    engine = create_engine(name, rank=1, public=load_public_model(student), channel=None, weights=None)

    def kinds(plan: list[list[Request]]) -> list[str]:
        return [request.kind for segment in plan for request in segment]

    assert kinds(engine.plan(BatchShape(1, 8))) == kinds(engine.plan(BatchShape(16, 8)))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_activation_out_of_range_is_reported_not_computed(student: Path, data_dir: Path, engine: str) -> None:
    """Ranges from another model: both owners learn that one bit of every sentence, and no logit is opened."""
    public = load_public_model(student)
    inputs, _ = batch_of(student, data_dir)
    # Far below, far above, and just outside: what diverges wraps around the ring and may come out negative.
    variance = public.ranges.bounds["layer.1.output.variance"]
    for low, high in [(1e-3, 2e-3)] * 4 + [(50.0, 100.0), (variance[0] / 9, variance[1] / 9)]:
        moved = dict(public.ranges.bounds) | {"layer.1.output.variance": (low, high)}
        moved_model = PublicModel(public.config, Ranges(moved, 1))
        assert run_outcomes(student, inputs, public=moved_model, engine=engine)[1].refused.all()


@pytest.mark.parametrize(
    ("name", "bounds", "message"),
    [
        ("layer.0.row_mean", (-1.0, 2.0), "not positive"),
        ("layer.0.activation", (0.0, 1e5), "does not fit"),
        ("embeddings.variance", (1e-9, 1e3), "Newton steps"),
        ("pooler.tanh", None, r"pooler\.tanh is missing"),
    ],
)
def test_ranges_that_cannot_be_computed(
    student: Path, name: str, bounds: tuple[float, float] | None, message: str
) -> None:
    public = load_public_model(student)
    changed = {key: value for key, value in public.ranges.bounds.items() if key != name}
    if bounds:
        changed[name] = bounds
    with pytest.raises(RangeError, match=message):
        create_engine(
            "crypten", rank=1, public=PublicModel(public.config, Ranges(changed, 1)), channel=None, weights=None
        )


def test_refusals(student: Path, tmp_path: Path) -> None:
    public = load_public_model(student)
    with pytest.raises(UserInputError, match="engine 'spdz' is unknown"):
        create_engine("spdz", rank=1, public=public, channel=None, weights=None)
    with pytest.raises(UserInputError, match="private tables only"):
        create_engine("crypten", rank=1, public=replace(public, embeddings="public_table"), channel=None, weights=None)
    with pytest.raises(UserInputError, match="embeddings 'none' are unknown"):
        create_engine("lift", rank=1, public=replace(public, embeddings="none"), channel=None, weights=None)
    with pytest.raises(ProtocolError, match="session_id is empty"):
        create_engine("lift", rank=1, public=public, channel=memory_pair(20)[1], weights=None)
    with pytest.raises(ProtocolError, match="needs the weights"):
        create_engine("crypten", rank=0, public=public, channel=None, weights=None)
    engine = create_engine("crypten", rank=1, public=public, channel=None, weights=None)
    inputs = BatchInputs(torch.ones(1, 2, dtype=torch.long))
    store = CorrelationStore(rank=1, seed=fresh_key(), session_id=fresh_key())
    with pytest.raises(ProtocolError, match="before setup"):
        engine.batch(inputs.shape, store, memory_pair(20)[1])
    with pytest.raises(ProtocolError, match="can only plan"):
        engine.setup(store)
    with pytest.raises(UserInputError, match=r"has no config\.json"):
        load_public_model(tmp_path)


def test_the_range_check_is_not_tripped_by_very_many_rows() -> None:
    """Rounding residuals of a million rows, at the worst place of the range, stay below the limit."""
    x = torch.linspace(0.006, 60.0, 20_000)

    def run(party: int) -> torch.Tensor:
        mine = shared(x)
        y = ops.rsqrt(mine, rsqrt_plan(0.005, 64.0))
        residual = ops.add_public(ops.multiply(mine, ops.square(y)), -1.0)
        total: torch.Tensor = ops.square_sum(ops.square(residual), dim=0).get_plain_text()
        return total

    (total, _), _, _ = run_pair(run)
    assert 50 * float(total) < RESIDUAL_LIMIT


@pytest.mark.parametrize("ratio", [3.0, 30.0, 100.0])
def test_a_row_above_its_range_never_passes_with_a_negative_root(ratio: float) -> None:
    """Newton started above its range can find -1 / sqrt(x), whose square is right."""
    high, n_fooled = 4.0, 0
    for x in (high * torch.linspace(0.8, 3.2, 25)).split(1):

        def run(party: int, x: torch.Tensor = x) -> tuple[torch.Tensor, torch.Tensor]:
            mine = shared(x)
            y = ops.rsqrt(mine, rsqrt_plan(high / ratio, high))
            bert = object.__new__(CrypTenBert)
            bert._rows = torch.ones((1, 1), dtype=torch.int64)
            bert._rsqrt_pairs, bert._reciprocal_pairs, bert._constant_rows = [(mine, y, bert._rows)], [], []
            return y.get_plain_text(), bert._residual(1).get_plain_text()

        ((y, residual), _), _, _ = run_pair(run)
        product = float(y * x.sqrt())
        if abs(float(residual)) < RESIDUAL_LIMIT:
            assert abs(product - 1) < 0.2, f"{float(x) / high:.2f} times the upper end"
        n_fooled += abs(product + 1) < 0.2
    assert n_fooled >= 2, "there are such rows"


@pytest.mark.parametrize("task", ["sst2", "mrpc"])
def test_words_of_a_large_vocabulary_are_looked_up_by_buckets(
    tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words, types, positions and padding, in several parts; fewer bytes than one-hot rows, and no round more.

    Both models' masked tables are kept in files; the second one's is read whole.
    """
    monkeypatch.setattr(filed, "LARGE_TABLE", 0)
    data = save_parquet(tmp_path / task, task=task, n_eval=40)
    folder = save_student(tmp_path / "student", data, task=task, vocab_size=7000)
    inputs, expected = batch_of(folder, data, task)
    assert inputs.shape.batch_size * inputs.shape.seq_len > row_lookup.MAX_ROWS, "more than one part"
    _, logits, plan, cost = run_private(folder, inputs, engine="lift", n_batches=2)
    assert [request.kind for segment in plan for request in segment].count("row_lookup") == 1
    assert float(np.abs(logits.numpy() - expected).max()) < 0.002
    stated = estimate_batch("lift", load_public_model(folder), inputs.shape)
    assert (cost.rounds, cost.bytes_sent) == (stated.rounds, stated.bytes_to_model_owner)
    assert cost.bytes_received == stated.bytes_to_data_owner

    small = save_student(tmp_path / "small", data, task=task)
    *_, plan, small_cost = run_private(small, inputs, engine="lift")
    assert "row_lookup" not in [request.kind for segment in plan for request in segment]
    assert cost.rounds == small_cost.rounds
    one_hot = inputs.attention_mask.numel() * 7002 * 4
    assert cost.bytes_sent + cost.bytes_received < small_cost.bytes_sent + small_cost.bytes_received + one_hot / 3
