"""Made-up forms, added to the registry alone: both engines compute them or refuse them, and never another form.

Before forms were objects, max(x, x / 4) added to the two obvious files ran on the default engine, while the reference
engine silently computed GeLU in its place, and a new softmax fell into the branch of 2ReLU.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.ready import engines
from mpcformer.approximations import (
    GELU_FORMS,
    SOFTMAX_FORMS,
    ConstantRows,
    DividedRows,
    GeluForm,
    Probabilities,
    SoftmaxForm,
    gelu_form,
    softmax_form,
)
from mpcformer.approximations.forms import (
    CRYPTEN,
    LIFT,
    LiftPieces,
    ScoreUnit,
    SlopedScores,
    SquaredScores,
    normalised,
)
from mpcformer.engines.base import MODEL_OWNER, load_public_model
from mpcformer.engines.registry import DEFAULT_ENGINE, create_engine, engine_names
from mpcformer.errors import RangeError, UserInputError
from mpcformer.modeling import MPCFormerConfig, load_student
from mpcformer.modeling.bounds import worst_case
from mpcformer.modeling.weights import bert_weights
from parties.runs.html_report import _facts
from tests.pair import batch_of, run_private
from tests.tiny import save_student

LOWEST = 1 - 2**30


def leaky_on_crypten(ops: Any, x: Any) -> Any:
    positive, quarter = ops.relu(x), ops.times_power_of_two(x, -2)
    return ops.wrap(quarter.share + positive.share - ops.times_power_of_two(positive, -2).share)


LEAKY = GeluForm(
    name="leaky",
    title="Leaky ReLU",
    description="max(x, x / 4)",
    function=lambda x: torch.maximum(x, x / 4),
    private={
        LIFT: LiftPieces(
            pieces=(((0,), (0, 4)), ((LOWEST, 0), (0, 1))), scale=13, bits=32, result_scale=15, result_shift=2
        ),
        CRYPTEN: leaky_on_crypten,
    },
)


def absolute_on_crypten(ops: Any, scores: Any, unit: ScoreUnit) -> Any:
    return ops.wrap(2 * ops.relu(scores).share - scores.share)


ABSOLUTE = SoftmaxForm(
    name="absolute",
    title="absolute values",
    description="|s_j| / (sum_j |s_j| + 0.02 n)",
    function=lambda scores, mask: normalised(mask * scores.abs(), mask, 0.02),
    rows=DividedRows(degree=1, epsilon=0.02),
    private={LIFT: SlopedScores(below=-1, above=1), CRYPTEN: absolute_on_crypten},
)


def three_const(scores: torch.Tensor, mask: torch.Tensor, divisor: float | torch.Tensor = 10.0) -> Probabilities:
    numerators, n_keys = mask * (scores + 3) ** 2, mask.sum(-1, keepdim=True)
    return numerators / (divisor * n_keys), numerators.sum(-1, keepdim=True) / n_keys


THREE_CONST = SoftmaxForm(
    name="3quad-const",
    title="3Quad-const",
    description="(s_j + 3)^2 / (c n)",
    function=three_const,
    rows=ConstantRows(degree=2, divisor=10.0),
    square_shift=3.0,
    private={
        LIFT: SquaredScores(3.0),
        CRYPTEN: lambda ops, scores, unit: ops.square(ops.add_public(scores, 3.0 * unit.one)),
    },
)

# Squares with an offset, which no form of the project has.
OFFSET_SQUARES = SoftmaxForm(
    name="4quad-offset",
    title="4Quad with an offset",
    description="(s_j + 4)^2 / (sum_j (s_j + 4)^2 + 6 n)",
    function=lambda scores, mask: normalised(mask * (scores + 4) ** 2, mask, 6.0),
    rows=DividedRows(degree=2, epsilon=6.0),
    private={
        LIFT: SquaredScores(4.0),
        CRYPTEN: lambda ops, scores, unit: ops.square(ops.add_public(scores, 4.0 * unit.one)),
    },
)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GELU_FORMS, LEAKY.name, LEAKY)
    for form in (ABSOLUTE, THREE_CONST, OFFSET_SQUARES):
        monkeypatch.setitem(SOFTMAX_FORMS, form.name, form)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("gelu", "softmax"),
    [
        ("leaky", "2quad"),
        ("quad", "absolute"),
        ("leaky", "absolute"),
        ("relu", "3quad-const"),
        ("quad", "4quad-offset"),
    ],
)
def test_both_engines_compute_what_the_plaintext_student_does(
    tmp_path: Path, data_dir: Path, gelu: str, softmax: str
) -> None:
    folder = save_student(tmp_path / "student", data_dir, gelu=gelu, softmax=softmax)
    inputs, expected = batch_of(folder, data_dir)
    for engine in engine_names():
        _, logits, *_ = run_private(folder, inputs, engine=engine)
        assert float(np.abs(logits.numpy() - expected).max()) < 0.003, engine


@pytest.mark.usefixtures("registered")
def test_the_new_forms_are_no_others(tmp_path: Path, data_dir: Path) -> None:
    """The logits differ by far more than the tests' bounds: an engine that computed another form would show."""
    logits = []
    for n, forms in enumerate([("leaky", "absolute"), ("relu", "absolute"), ("gelu", "absolute"), ("leaky", "2relu")]):
        folder = save_student(tmp_path / f"student-{n}", data_dir, gelu=forms[0], softmax=forms[1])
        logits.append(batch_of(folder, data_dir)[1])
    for other in logits[1:]:
        assert float(np.abs(logits[0] - other).max()) > 0.01


@pytest.mark.parametrize("engine", engine_names())
@pytest.mark.parametrize("form", [LEAKY, ABSOLUTE], ids=["gelu", "softmax"])
def test_an_engine_refuses_a_form_that_it_does_not_compute(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, engine: str, form: GeluForm | SoftmaxForm
) -> None:
    key, other = (CRYPTEN, LIFT) if engine == "crypten" else (LIFT, CRYPTEN)
    partial: Any = replace(form, private={other: form.private[other]})
    monkeypatch.setitem(GELU_FORMS if isinstance(form, GeluForm) else SOFTMAX_FORMS, form.name, partial)
    folder = save_student(tmp_path / "student", data_dir, **{form.kind: form.name})
    public, student = load_public_model(folder), load_student(folder)
    for rank, weights in enumerate([student.state_dict(), None]):
        with pytest.raises(UserInputError, match=f"^{form.kind}: engine {key} does not compute the form '{form.name}'"):
            create_engine(engine, rank=rank, public=public, channel=None, weights=weights)
    said = engines(student.config, public.ranges, student.state_dict(), 16)
    assert [name for name, text in said.items() if text != "runs"] == [engine], "the model card says so"


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        (replace(LEAKY, private={LIFT: SquaredScores(5.0)}), "gelu"),
        (replace(LEAKY, private={LIFT: replace(LEAKY.private[LIFT], bits=64)}), "gelu"),
        (replace(ABSOLUTE, private={LIFT: LEAKY.private[LIFT]}), "softmax"),
        (replace(ABSOLUTE, private={LIFT: SquaredScores(5.0)}), "softmax"),
        (replace(ABSOLUTE, rows=SOFTMAX_FORMS["softmax"].rows), "softmax"),
    ],
    ids=["numerators as GeLU", "too wide", "GeLU as numerators", "another degree", "rows of the exact softmax"],
)
def test_the_default_engine_refuses_what_does_not_fit_together(
    student: Path, monkeypatch: pytest.MonkeyPatch, changed: GeluForm | SoftmaxForm, refused: str
) -> None:
    forms: Any = GELU_FORMS if refused == "gelu" else SOFTMAX_FORMS
    monkeypatch.setitem(forms, changed.name, changed)
    public = load_public_model(student)
    object.__setattr__(public.config, refused, changed.name)
    with pytest.raises(UserInputError, match=f"{refused}: engine lift does not compute the form '{changed.name}'"):
        create_engine(DEFAULT_ENGINE, rank=1, public=public, channel=None, weights=None)


def test_numerators_that_would_leave_the_ring_or_be_negative_are_no_form() -> None:
    for wrong in (lambda: SquaredScores(1e3), lambda: SlopedScores(1, 2), lambda: SlopedScores(0, 100)):
        with pytest.raises(ValueError, match=r"shift|slopes"):
            wrong()


@pytest.mark.parametrize("kind", ["gelu", "softmax"])
def test_an_unknown_form_raises_everywhere(student: Path, kind: str) -> None:
    unknown = rf"^{kind}: form 'cubic' is unknown"
    with pytest.raises(UserInputError, match=unknown):
        (gelu_form if kind == "gelu" else softmax_form)("cubic")
    with pytest.raises(UserInputError, match=unknown):
        MPCFormerConfig(**{kind: "cubic"})
    public, model = load_public_model(student), load_student(student)
    with pytest.raises(UserInputError, match=unknown):
        replace(public.config, **{kind: "cubic"})
    object.__setattr__(public.config, kind, "cubic")
    setattr(model.config, kind, "cubic")
    for engine in engine_names():
        with pytest.raises(UserInputError, match=unknown):
            create_engine(engine, rank=1, public=public, channel=None, weights=None)
    weights = bert_weights(model.state_dict(), load_student(student).config)
    with pytest.raises(UserInputError, match=unknown):
        worst_case(model.config, weights)
    with pytest.raises(UserInputError, match=unknown):
        _facts(values_with({"gelu": "quad", "softmax": "2quad"} | {kind: "cubic"}))


def values_with(forms: dict[str, str]) -> dict[str, Any]:
    """As much of a run's results as names forms."""
    student = {"layers": 2, "hidden": 32, "sha256": "0", "precision": "wide"} | forms
    network = {"profile": "none", "transport": "tls"}
    return {"student": student, "network": network, "seeds": {"training": None, "protocol": "fresh"}}


def test_plaintext_training_loads_no_engine() -> None:
    """The private halves of the forms are data and functions of what an engine hands in."""
    code = "import sys, mpcformer.modeling.model, distill.start.fit, distill.objectives.stages; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "mpcformer.approximations.registry" in loaded
    assert "crypten" not in loaded
    assert [name for name in loaded if name.startswith(("mpcformer.engines.lift", "mpcformer.engines.crypten"))] == []


@pytest.mark.usefixtures("registered")
def test_the_overflow_proof_takes_a_forms_own_bound(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A form that says its result may be long is refused where the next ring has no room for it."""
    folder = save_student(tmp_path / "student", data_dir, gelu="leaky")
    owner: dict[str, Any] = {"rank": MODEL_OWNER, "public": load_public_model(folder), "channel": None}
    owner["weights"] = load_student(folder).state_dict()
    create_engine(DEFAULT_ENGINE, **owner)
    long = replace(LEAKY, growth=1e6)
    monkeypatch.setitem(GELU_FORMS, LEAKY.name, long)
    with pytest.raises(RangeError, match=r"layer\.0\.output may reach"):
        create_engine(DEFAULT_ENGINE, **owner)
