"""The recipes of teachers and students.

Losses fall, the teacher does not change, a resumed run gives the same weights, and the evaluation split is never
opened.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import distill.student
import distill.training.loop
from distill.objectives.losses import logit_loss
from distill.ready import RUNS
from distill.recipe import DistillRecipe, TeacherRecipe, paper_recipe
from distill.start.deviations import set_deviations
from distill.start.fit_attention import ROW_MEANS
from distill.student import distill_student
from distill.teacher import train_teacher
from distill.training.prepare import Prepared
from distill.training.workspace import Workspace
from mpcformer.approximations import QUAD_DIVISOR
from mpcformer.engines.lift.scales import model as scales
from mpcformer.engines.plaintext import predict
from mpcformer.errors import MPCFormerError, UserInputError
from mpcformer.modeling import (
    MPCFormerForSequenceClassification,
    load_checkpoint,
    load_ranges,
    load_student,
    load_tokenizer,
)
from mpcformer.modeling.precision import COMPACT
from mpcformer.modeling.quantised import is_quantised
from mpcformer.modeling.ranges import Ranges
from mpcformer.modeling.tokenizer import Limits
from mpcformer.modeling.weights import norm_source
from mpcformer.tasks import carve_selection, encode, get_task, load_examples
from tests.tiny import TRAINING, save_bert, save_parquet


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    base = save_bert(folder / "base")
    recipe = TeacherRecipe(model=str(base), data_dir=data_dir, epochs=6, learning_rate=3e-3, **TRAINING)
    record = train_teacher(recipe, folder / "teacher")
    assert record["selection_score"] >= 0.9, "the made-up sentences are easy"
    return folder / "teacher"


def recipe_for(teacher: Path, data_dir: Path, /, **changes: object) -> DistillRecipe:
    rates = {"learning_rate1": 1e-3, "learning_rate2": 1e-3, "epochs1": 4, "epochs2": 2}
    chosen = {"teacher": teacher, "data_dir": data_dir} | TRAINING | rates | changes
    return DistillRecipe(**chosen)  # type: ignore[arg-type]


def test_teacher_is_a_plain_bert_with_a_record(teacher: Path) -> None:
    assert json.loads((teacher / "config.json").read_text())["model_type"] == "bert"
    record = json.loads((teacher / "teacher.json").read_text())
    assert record["log"][0]["loss"] > record["log"][-1]["loss"]
    assert not list(teacher.glob("*last*"))


def test_student_learns_and_is_calibrated(teacher: Path, data_dir: Path, tmp_path: Path) -> None:
    before = load_file(teacher / "model.safetensors")
    # No words are replaced: the fit already brings this student close to its lowest loss, so the losses of two epochs
    # can only be compared on the same sentences.
    record = distill_student(recipe_for(teacher, data_dir, epochs1=10, epochs2=4, replaced=0.0), tmp_path / "student")
    inner = [row["loss"] for row in record["log"] if row["stage"].startswith("stage 1")]
    assert inner[-1] < inner[0]
    assert len(record["fit"]) == 2
    assert record["selection_score"]["student"] >= record["selection_score"]["teacher"] - 0.1
    student = load_student(tmp_path / "student")
    assert (student.config.gelu, student.config.softmax, student.config.task) == ("quad", "2quad", "sst2")
    ranges = load_ranges(tmp_path / "student")
    assert record["n_training"] > 50
    # With a part of the training texts, the others would leave the ranges.
    assert ranges.n_examples == record["n_training"] + record["coverage"]["n_texts"]
    assert ranges.bounds["layer.0.row_mean"][0] > 0
    after = load_file(teacher / "model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_student_is_tried_with_both_engines_when_it_is_made(
    teacher: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stretched(*args: object, **kwargs: object) -> Ranges:
        ranges = calibrate(*args, **kwargs)  # type: ignore[arg-type]
        ranges.bounds["layer.0.row_mean"] = (1e-6, 5000.0)
        return ranges

    recipe = recipe_for(teacher, data_dir, epochs1=1, epochs2=0)
    assert distill_student(recipe, tmp_path / "narrow")["engines"] == {"lift": RUNS, "crypten": RUNS}
    calibrate = distill.student.calibrate
    monkeypatch.setattr(distill.student, "calibrate", stretched)
    verdicts = distill_student(recipe, tmp_path / "wide")["engines"]
    assert "layer.0.row_mean spans" in verdicts["lift"]
    card = (tmp_path / "wide" / "README.md").read_text()
    assert f"Engine `lift` refuses this student: {verdicts['lift']}." in card
    assert "refuses this student" not in (tmp_path / "narrow" / "README.md").read_text()


def test_a_compact_student_has_rounded_weights(teacher: Path, data_dir: Path, tmp_path: Path) -> None:
    recipe = recipe_for(teacher, data_dir, epochs1=1, epochs2=1, engine_precision="compact", weight_bits=8)
    record = distill_student(recipe, tmp_path / "student")
    assert record["engine_precision"] == "compact"
    assert record["engines"]["lift"] == RUNS
    assert abs(record["selection_score"]["student, 8 bits"] - record["selection_score"]["student"]) < 0.1
    assert is_quantised(load_file(tmp_path / "student" / "model.safetensors"))
    assert load_student(tmp_path / "student").config.precision == "compact"
    bounds = load_ranges(tmp_path / "student").bounds
    assert bounds["layer.1.output_reach"][1] >= math.sqrt(32 * bounds["layer.1.output.variance"][1])


def test_rows_that_compact_rings_do_not_carry_are_computed_in_wide_ones(
    teacher: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scales, "MAX_LENGTH", 1.0)
    recipe = recipe_for(teacher, data_dir, epochs1=1, epochs2=0, engine_precision="compact", weight_bits=8)
    record = distill_student(recipe, tmp_path / "student")
    assert record["engine_precision"] == "wide"
    assert record["engines"]["lift"] == RUNS
    assert load_student(tmp_path / "student").config.precision == "wide"
    assert not [name for name in load_ranges(tmp_path / "student").bounds if name.endswith("output_reach")]


def test_teacher_is_in_evaluation_mode_while_distilling(
    teacher: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    forward = torch.nn.Dropout.forward
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: (seen.append(self.training), forward(self, x))[1])
    distill_student(recipe_for(teacher, data_dir, epochs1=1, epochs2=1), tmp_path / "student")
    assert seen
    assert not any(seen)


def test_teacher_and_student_read_the_same_replaced_texts(
    teacher: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    forward = MPCFormerForSequenceClassification.forward

    def noted(self: MPCFormerForSequenceClassification, *args: object, **inputs: object) -> object:
        if "output_attention_scores" in inputs:
            seen.append(inputs["input_ids"].clone())  # type: ignore[attr-defined]
        return forward(self, *args, **inputs)

    monkeypatch.setattr(MPCFormerForSequenceClassification, "forward", noted)
    read = {}
    assert paper_recipe("sst2")["replaced"] == 0
    for share in (0.0, 0.5):
        seen.clear()
        distill_student(recipe_for(teacher, data_dir, epochs1=1, epochs2=1, replaced=share), tmp_path / f"{share}")
        assert all(torch.equal(theirs, ours) for theirs, ours in zip(seen[::2], seen[1::2], strict=True))
        read[share] = seen[::2]
    changed = [float((a != b).float().mean()) for a, b in zip(read[0.0], read[0.5], strict=True)]
    assert 0.05 < sum(changed) / len(changed) < 0.25


def test_a_resumed_run_ends_in_the_same_weights(
    teacher: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(teacher, data_dir, softmax="2quad-const", constant_norms=("attention",))
    whole = distill_student(recipe, tmp_path / "whole", checkpoint_minutes=1e9)
    step = distill.training.loop._Runner._step
    for n_calls in (7, 50):  # inside stage 1, inside stage 2
        out, calls = tmp_path / f"resumed-{n_calls}", []

        def interrupted(self: object, *args: object, calls: list[int] = calls, n: int = n_calls) -> float:
            calls.append(1)
            if len(calls) > n:
                raise KeyboardInterrupt
            return step(self, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(distill.training.loop._Runner, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            distill_student(recipe, out, checkpoint_minutes=0.0)
        assert not out.exists()
        monkeypatch.setattr(distill.training.loop._Runner, "_step", step)
        with pytest.raises(UserInputError, match="left from an interrupted run"):
            distill_student(recipe, out)
        with pytest.raises(UserInputError, match="had seed = 0, not 1"):
            distill_student(replace(recipe, seed=1), out, resume=True)
        resumed = distill_student(recipe, out, resume=True)
        a, b = load_file(tmp_path / "whole" / "model.safetensors"), load_file(out / "model.safetensors")
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert [row["epoch"] for row in resumed["log"]] == [row["epoch"] for row in whole["log"]]
        assert not out.with_name(f"{out.name}.partial").exists()


def test_the_reported_split_is_never_opened(teacher: Path, tmp_path: Path) -> None:
    data = save_parquet(tmp_path / "data")
    for path in data.glob("validation*"):
        path.write_bytes(b"not to be read")
    distill_student(recipe_for(teacher, data, epochs1=1, epochs2=1), tmp_path / "student")


@pytest.mark.parametrize("softmax", ["2quad", "2quad-const"])
def test_training_keeps_the_rows_in_their_range(teacher: Path, data_dir: Path, tmp_path: Path, softmax: str) -> None:
    distill_student(recipe_for(teacher, data_dir, softmax=softmax, epochs1=6), tmp_path / "student")
    bounds = load_ranges(tmp_path / "student").bounds
    for layer in range(2):
        low, high = bounds[f"layer.{layer}.row_mean"]
        assert ROW_MEANS[0] / 2 < low < high < 2 * ROW_MEANS[1]


def test_paper_recipe() -> None:
    assert paper_recipe("stsb")["epochs1"] == 100
    assert paper_recipe("imdb")["max_length"] == 512
    with pytest.raises(UserInputError, match="published no recipe for 'wnli'"):
        paper_recipe("wnli")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "sst3"}, "'sst3' is unknown"),
        ({"gelu": "cubic"}, "form 'cubic' is unknown"),
        ({"softmax": "3quad"}, "form '3quad' is unknown"),
        ({"learning_rate1": 0.0}, r"--lr1: 0\.0 is not positive"),
        ({"epochs1": -1}, "below 0"),
        ({"batch_size": 0}, "--batch-size: 0 is below 1"),
        ({"limit": 0}, "--limit: 0 is below 1"),
        ({"limit": 2, "selection_share": 0.001}, "too few to set"),
        ({"precision": "fp8"}, "--precision: 'fp8' is unknown"),
        ({"max_length": 33}, "--max-length: 33 is outside"),
        ({"task": "stsb"}, "has 2 outputs, task stsb needs 1"),
        ({"teacher": Path("nowhere")}, "nowhere is not a folder"),
        ({"layers": 3}, r"--layers: 3 is not in 1\.\.2"),
        ({"intermediate": 0}, r"--intermediate: 0 is not in 1\.\.64"),
        ({"layers": 1, "start": "teacher"}, "--layers: 1 needs another start"),
        ({"fit_tokens": 0}, "^fit_tokens: 0 is below 1"),
        ({"replaced": 1.5}, "--replaced: 1.5 is not in 0..1"),
        ({"match1": "all"}, "^match1: 'all' is unknown"),
        ({"choose_by": "luck"}, "^choose_by: 'luck' is unknown"),
        ({"also1": ("labels",)}, "^also1: 'labels' is unknown"),
        ({"also2": ("labels", "luck")}, "^also2: 'luck' is unknown"),
        ({"also1": ("directions",), "match1": "mixture"}, "^also1: directions has no place beside match1 mixture"),
        ({"also2": ("sinkhorn",), "objective": "labels"}, "^also2: sinkhorn has no place in a training on labels"),
        ({"layer_rates": 0.0}, "^layer_rates: 0.0 is not above 0"),
        ({"engine_precision": "narrow"}, "^precision: 'narrow' is unknown"),
        ({"engine_precision": "compact", "gelu": "relu"}, "^precision: compact carries quad with 2quad"),
        ({"engine_precision": "compact", "weight_bits": 5}, "^--weight-bits: 5 is unknown"),
        ({"weight_bits": 8}, "^weight_bits: weights of 8 bits need the compact precision"),
        ({"start": "scratch"}, "--from: 'scratch' is unknown"),
        ({"strides": (1, 2, 1)}, "^strides: 3 numbers for a model of 2 layers"),
        ({"strides": (1, 0)}, r"^strides: \(1, 0\) is no list of integers from 1 to 64"),
        ({"strides": (2, 1), "match1": "mixture", "also1": ()}, "^match1: mixture runs layers of the teacher"),
        ({"objective": "both"}, "--objective: 'both' is unknown"),
        ({"data_dir": Path("nowhere")}, "nowhere is not a folder"),
    ],
)
def test_bad_input_leaves_nothing(
    teacher: Path, data_dir: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserInputError, match=message):
        distill_student(recipe_for(teacher, data_dir, **changes), tmp_path / "student")
    assert not list(tmp_path.iterdir())


def test_out_must_be_new(teacher: Path, data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(UserInputError, match="is not empty"):
        distill_student(recipe_for(teacher, data_dir), tmp_path / "out")
    with pytest.raises(UserInputError, match="no interrupted run"):
        distill_student(recipe_for(teacher, data_dir), tmp_path / "new", resume=True)


def test_divergence_is_said(teacher: Path, data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(MPCFormerError, match=r"loss is (nan|inf)"):
        distill_student(recipe_for(teacher, data_dir, learning_rate1=1e30), tmp_path / "student")


@pytest.mark.parametrize("gelu", ["quad", "relu"])
@pytest.mark.parametrize("softmax", ["2quad", "2quad-const", "2relu"])
def test_all_forms_distil(teacher: Path, data_dir: Path, tmp_path: Path, gelu: str, softmax: str) -> None:
    recipe = recipe_for(teacher, data_dir, gelu=gelu, softmax=softmax, epochs1=1, epochs2=1)
    distill_student(recipe, tmp_path / "student")
    student = load_student(tmp_path / "student", gelu=gelu, softmax=softmax)
    for layer in student.bert.layers:
        divisor = layer.attention["self"].log_divisor
        assert (divisor is not None) == (softmax == "2quad-const")


@pytest.mark.parametrize("changes", [{}, {"recipe": "paper"}, {"start": "random", "layers": 1, "strides": (4,)}])
def test_a_student_that_drops_positions(teacher: Path, data_dir: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    published = paper_recipe("sst2") | {"max_length": 32, "epochs1": 2, "epochs2": 2}
    own = published if changes.pop("recipe", None) else {"weight_bits": 8, "engine_precision": COMPACT}
    recipe = recipe_for(teacher, data_dir, **({"strides": (2, 1)} | own | changes))
    record = distill_student(recipe, tmp_path / "student")
    assert record["engines"]["lift"] == RUNS
    student = load_student(tmp_path / "student")
    assert student.config.strides == list(recipe.strides)
    with torch.no_grad():
        ids = torch.tensor([[2, 4, 12, 13, 3]])
        states = student(ids, output_hidden_states=True).hidden_states
    assert [state.size(1) for state in states] == [5, *((3, 3) if len(states) == 3 else (2,))]
    with pytest.raises(UserInputError, match="holds a distilled student, not a teacher"):
        distill_student(recipe_for(tmp_path / "student", data_dir), tmp_path / "again")


def test_the_divisor_of_2quad_const_is_fitted_and_learnt(teacher: Path, data_dir: Path, tmp_path: Path) -> None:
    divisors = []
    for epochs in (0, 1):
        recipe = recipe_for(teacher, data_dir, softmax="2quad-const", epochs1=epochs, epochs2=0)
        distill_student(recipe, tmp_path / str(epochs))
        student = load_student(tmp_path / str(epochs), softmax="2quad-const")
        divisors.append([layer.attention["self"].log_divisor.item() for layer in student.bert.layers])
    for fitted, learnt in zip(*divisors, strict=True):
        assert len({math.log(QUAD_DIVISOR), fitted, learnt}) == 3


def test_constant_norms_start_at_the_teachers_deviations_and_are_learnt(
    teacher: Path, data_dir: Path, tmp_path: Path
) -> None:
    start = {}
    for epochs in (0, 2):
        recipe = recipe_for(teacher, data_dir, constant_norms=("all",), epochs1=epochs, epochs2=epochs)
        record = distill_student(recipe, tmp_path / f"student-{epochs}")
        assert record["recipe"]["constant_norms"] == ["all"]
        student = load_student(tmp_path / f"student-{epochs}")
        logs = {name: p.item() for name, p in student.named_parameters() if name.endswith("log_deviation")}
        assert len(logs) == len(student.config.constant_norms) == 5
        start[epochs] = logs
    seen: dict[str, list[torch.Tensor]] = {}
    model = load_checkpoint(teacher)
    model.observer = lambda name, values, valid: seen.setdefault(name, []).append(values[valid])
    tokenizer = load_tokenizer(teacher)
    for row in encode(tokenizer, load_examples(get_task("sst2"), "train", data_dir=data_dir), limits=Limits(32)):
        with torch.no_grad():
            model(torch.tensor([row.input_ids]))
    for name in ("embeddings", "layer.0.attention", "layer.1.output"):
        expected = torch.cat(seen[f"{name}.variance"]).log().mean() / 2
        assert start[0][f"{norm_source(name)}.log_deviation"] == pytest.approx(float(expected), abs=0.1)
    assert all(abs(start[2][name] - start[0][name]) > 1e-4 for name in start[0])


def test_deviations_come_from_the_layers_that_are_named(teacher: Path, data_dir: Path) -> None:
    tokenizer = load_tokenizer(teacher)
    encoded = encode(tokenizer, load_examples(get_task("sst2"), "train", data_dir=data_dir), limits=Limits(32))
    found = []
    for layers in (None, (0, 1), (1, 0)):
        student = load_checkpoint(teacher, constant_norms=["all"])
        set_deviations(student, load_checkpoint(teacher), encoded, pad_id=0, teacher_layers=layers)
        norms = [layer.output.LayerNorm for layer in student.bert.layers]
        found.append([float(norm.log_deviation.detach()) for norm in norms])
    assert found[0] == found[1] == found[2][::-1]
    assert found[0] != found[2]


def test_a_norm_that_the_teacher_has_not(teacher: Path, data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"constant_norms: 'layer\.7\.output' is no LayerNorm"):
        distill_student(recipe_for(teacher, data_dir, constant_norms=("layer.7.output",)), tmp_path / "student")
    assert not list(tmp_path.iterdir())


def test_the_baselines(teacher: Path, data_dir: Path, tmp_path: Path) -> None:
    recipe = recipe_for(teacher, data_dir, objective="labels", epochs1=2, epochs2=1)
    record = distill_student(recipe, tmp_path / "labels")
    assert [row["stage"] for row in record["log"]] == ["labels"] * 3
    assert record["log"][-1]["loss"] < record["log"][0]["loss"]
    theirs = load_file(teacher / "model.safetensors")
    for seed in (0, 1):
        untrained = recipe_for(teacher, data_dir, start="random", epochs1=0, epochs2=0, seed=seed)
        distill_student(untrained, tmp_path / f"random-{seed}")
    fresh, other = (load_file(tmp_path / f"random-{seed}" / "model.safetensors") for seed in (0, 1))
    name = next(key for key in fresh if key.endswith("word_embeddings.weight"))
    assert not torch.allclose(fresh[name], theirs[name], atol=1e-3)
    assert not torch.equal(fresh[name], other[name])


def test_regression(tmp_path: Path) -> None:
    data = save_parquet(tmp_path / "stsb", task="stsb")
    settings = TRAINING | {"task": "stsb"}
    base = save_bert(tmp_path / "base", num_labels=1)
    train_teacher(
        TeacherRecipe(model=str(base), data_dir=data, epochs=1, learning_rate=1e-3, **settings), tmp_path / "teacher"
    )
    record = distill_student(
        DistillRecipe(teacher=tmp_path / "teacher", data_dir=data, epochs1=1, epochs2=1, **settings), tmp_path / "s"
    )
    assert record["task"] == "stsb"
    assert load_checkpoint(tmp_path / "teacher").num_labels == 1


def test_of_epochs_that_select_the_same_the_last_is_kept(
    teacher: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    save = Workspace.save

    def noted(self: Workspace, name: str, tensors: Any, values: Any) -> None:
        if name == "best":
            kept.append(values["step"])
        save(self, name, tensors, values)

    scores = iter([0.5, 0.7, 0.7, 0.6])
    monkeypatch.setattr(Workspace, "save", noted)
    monkeypatch.setattr(Prepared, "scorer", lambda self, model: lambda: next(scores, 0.1))
    recipe = TeacherRecipe("sst2", model=str(teacher), data_dir=data_dir, epochs=4, batch_size=64, max_length=32)
    log = train_teacher(recipe, tmp_path / "out")["log"]
    assert [row["selection_score"] for row in log] == [0.5, 0.7, 0.7, 0.6]
    first = kept[0]
    assert kept == [first, 2 * first, 3 * first]


def test_a_student_is_chosen_by_how_near_its_logits_are_to_its_teachers(
    teacher: Path, data_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    log = distill_student(recipe_for(teacher, data_dir, epochs1=3, epochs2=1), out)["log"]
    _, selection = carve_selection(load_examples(get_task("sst2"), "train", data_dir=data_dir), 0.15)
    encoded = encode(load_tokenizer(teacher), selection, limits=Limits(64), max_length=32)
    theirs, ours = (
        torch.from_numpy(predict(model, encoded, pad_id=0, batch_size=64)[0])
        for model in (load_checkpoint(teacher), load_student(out))
    )
    assert max(row["selection_score"] for row in log) == pytest.approx(
        -float(logit_loss(theirs, ours, False)), abs=2e-6
    )


@pytest.mark.parametrize("changes", [{"objective": "labels", "start": "teacher"}, paper_recipe("sst2")])
def test_published_and_without_distillation_a_student_is_chosen_by_its_score(
    teacher: Path, data_dir: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    changes = changes | {"epochs1": 1, "epochs2": 2, "max_length": 32}
    record = distill_student(recipe_for(teacher, data_dir, **changes), tmp_path / "student")
    scores = [row["selection_score"] for row in record["log"] if "selection_score" in row]
    assert max(scores) == pytest.approx(record["selection_score"]["student"], abs=1e-6)
