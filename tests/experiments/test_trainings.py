"""Test which trainings an experiment asks for, and that none is repeated or restarted from the beginning."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import distill.training.loop
from distill.recipe import DistillRecipe, TeacherRecipe
from experiments import replay
from experiments.kinds import models, students
from experiments.kinds.experiment import Measured, Workplace
from experiments.kinds.trainings import Teacher, TrainingData, Trainings
from experiments.replay import ReplayOptions, run
from experiments.spec.scales import StudentsScale
from experiments.spec.spec import StudentsExperiment, find
from mpcformer.files import read_json, sha256_file, write_json
from mpcformer.modeling import load_checkpoint
from parties.runs import local_run
from tests.replays import Counted


def test_other_data_recipe_or_start_is_another_model(folder: Path, shop: Path) -> None:
    facts = [json.loads(path.read_text()) for path in (shop / "models").glob("*.json")]
    kinds = Counter(fact["kind"] for fact in facts)
    assert kinds == {"teacher": 2, "general": 1, "student": 10}
    workplace = Workplace(shop / "glue", None, models.ModelCache(shop / "models"))
    spec = replay.load(find("glue"))
    work = students.Students(spec, spec.scale["smoke"], workplace)  # type: ignore[arg-type]
    work._load()
    training = work.trainings.teacher("sst2", 0, 3e-3)
    assert workplace.models.path(training).is_dir()
    for change in ({"data": "other"}, {"source": "other"}, {"torch_threads": 2}):
        assert replace(training, **change).name != training.name
    assert work.trainings.teacher("sst2", 1, 3e-3).name != training.name
    elsewhere = replace(training, recipe=replace(training.recipe, data_dir=Path("/elsewhere")))
    assert elsewhere.name == training.name


def test_a_task_of_other_settings_has_other_models_and_jobs_the_others_keep_theirs(
    folder: Path, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = """[scale.smoke.by_task.stsb]
train_limit = 128
eval_limit = 8
seeds = [1, 2]
max_length = 24
batch_size = 4
train_batch_size = 8
selection_share = 0.25
teacher = { epochs = 5 }
student = { epochs1 = 3, paper_share = 0.2, labels_rate = 7e-4, replaced = 0.1 }

[scale.cpu]"""
    (tmp_path / "glue.toml").write_text(find("glue").read_text().replace("[scale.cpu]", section))
    plain, other = (
        students.Students(spec, spec.scale["smoke"], Workplace(shop / "glue", None, models.ModelCache(shop / "m")))  # type: ignore[arg-type]
        for spec in (replay.load(find("glue")), replay.load(tmp_path / "glue.toml"))
    )
    plain._load()
    other._load()
    assert plain.trainings.teacher("sst2", 0, 3e-3).name == other.trainings.teacher("sst2", 0, 3e-3).name
    assert {task: data.n for task, data in other.trainings.train.items()} == {"sst2": 192, "stsb": 128}
    teacher = other.trainings.teacher("stsb", 1, 3e-3).recipe
    assert (teacher.limit, teacher.batch_size, teacher.max_length, teacher.selection_share) == (128, 8, 24, 0.25)
    assert isinstance(teacher, TeacherRecipe)
    assert (teacher.epochs, teacher.learning_rate) == (5, 3e-3)
    variants = list(other.trainings.variants())
    assert [(v.task, v.seed) for v in variants[:1] + variants[-2:]] == [("sst2", 0), ("stsb", 1), ("stsb", 2)]
    some = next(path.parent for path in (shop / "models").glob("*/teacher.json"))
    teacher_of_all = Teacher(plain.trainings.teacher("sst2", 0, 3e-3), models.model_digest(some), some)
    teachers = {(task, seed): teacher_of_all for task in ("sst2", "stsb") for seed in (0, 1, 2)}
    for variant in variants:
        recipe, published = other.trainings.student(variant, teachers).recipe, variant.model.recipe == "paper"
        if variant.task == "sst2":
            assert recipe == plain.trainings.student(variant, teachers).recipe
        else:
            assert (recipe.limit, recipe.batch_size, recipe.max_length) == (128, 8, 24)
            epochs = 0 if variant.model.untrained else 20 if published else 3
            assert isinstance(recipe, DistillRecipe)
            assert recipe.epochs1 == epochs
            rate = 5e-5 if published else 7e-4 if variant.model.objective == "labels" else 1e-3
            assert recipe.learning_rate1 == rate
            assert recipe.replaced == (0.0 if published else 0.1)
    jobs: list[Any] = []

    def stopped(job: Any, out: Path) -> None:
        jobs.append(job)
        raise KeyboardInterrupt

    monkeypatch.setattr(local_run, "check", stopped)
    with pytest.raises(KeyboardInterrupt):
        other._infer({"task": "stsb", "engine": "lift", "network": "none"}, some, some, Measured())
    job = jobs[0].job
    assert (job.limit, job.batch_size, job.max_length) == (8, 4, 24)


def test_what_a_model_asks_for_is_in_its_recipe_and_what_it_does_not_leaves_the_hash() -> None:
    spec = replay.load(find("ablation-recipe"))
    assert isinstance(spec, StudentsExperiment)
    data = {"stsb": TrainingData(5000, "d")}
    scale = spec.scale["cpu"].model_copy(update={"models": None})
    trainings = Trainings(spec.models, scale, data, "texts", None, Path("backbone"), "b", Path("models"))
    teacher = Teacher(trainings.teacher("stsb", 0, 1e-4), "w", Path("teacher"))
    of = {v.model.name: trainings.student(v, {("stsb", 0): teacher}) for v in trainings.variants()}
    ours = of.pop("our recipe")
    assert isinstance(ours.recipe, DistillRecipe)
    expected: dict[str, dict[str, Any]] = {
        "nor attention probabilities": {},
        "nor replaced words": {"replaced": 0.0},
        "nor the fit: the teacher's weights": {"start": "teacher"},
        "the fit alone, untrained": {"epochs1": 0, "epochs2": 0},
        "but directions of hidden states": {"also1": ("directions",)},
        "but Sinkhorn's distance of logits": {"also2": ("sinkhorn",)},
        "but labels": {"also2": ("labels",)},
        "but lower layers slower": {"layer_rates": 0.9},
        "but gradual replacement in stage 1": {"match1": "mixture"},
    }
    assert (ours.recipe.start, ours.recipe.learning_rate1, ours.recipe.also1) == ("general", 3e-4, ("probabilities",))
    assert ours.recipe.general == Path("models") / trainings.general("quad", "2quad").name
    assert trainings.general("quad", "2quad").name != trainings.general("quad", "2quad-const").name
    fitted = of.pop("no general student")
    assert fitted.recipe == replace(ours.recipe, start="fitted", general=None)
    slow = of.pop("nor so high a rate").recipe
    assert slow == replace(fitted.recipe, learning_rate1=1e-4)
    plain = of["nor attention probabilities"]
    for name, changes in expected.items():
        assert of.pop(name).recipe == replace(slow, **({"also1": ()} | changes))
    assert not of
    assert not set(plain.facts()["recipe"]) & {"also1", "also2", "layer_rates"}


def test_rounded_weights_are_asked_for_with_compact_rings_and_change_no_other_hash() -> None:
    spec = replay.load(find("pareto"))
    assert isinstance(spec, StudentsExperiment)
    data = {"sst2": TrainingData(192, "d")}
    trainings = Trainings(spec.models, spec.scale["smoke"], data, "texts", None, Path("backbone"), "b", Path("models"))
    teacher = Teacher(trainings.teacher("sst2", 0, 3e-3), "w", Path("teacher"))
    of = {v.model.name: trainings.student(v, {("sst2", 0): teacher}) for v in trainings.variants()}
    full = of["full"]
    assert isinstance(full.recipe, DistillRecipe)
    for bits in (8, 6, 4):
        rounded = of[f"weights of {bits} bits"]
        assert rounded.recipe == replace(full.recipe, engine_precision="compact", weight_bits=bits)
        assert rounded.facts()["recipe"]["weight_bits"] == bits
    assert not set(full.facts()["recipe"]) & {"engine_precision", "weight_bits"}
    assert len({training.name for training in of.values()}) == len(of)


def test_a_baseline_matches_no_attention() -> None:
    spec = replay.load(find("glue"))
    assert isinstance(spec, StudentsExperiment)
    scale = spec.scale["cpu"].model_copy(update={"models": None, "tasks": ("stsb",), "by_task": {}})
    trainings = Trainings(
        spec.models, scale, {"stsb": TrainingData(5000, "d")}, "texts", None, Path("backbone"), "b", Path("models")
    )
    teacher = Teacher(trainings.teacher("stsb", 0, 1e-4), "w", Path("teacher"))
    of = {v.model.name: trainings.student(v, {("stsb", 0): teacher}).recipe for v in trainings.variants()}
    matching = {name for name, recipe in of.items() if isinstance(recipe, DistillRecipe) and recipe.also1}
    assert len(of) == 5
    assert matching == {"our recipe"}


def test_of_several_rates_the_best_teacher_is_taken(folder: Path, shop: Path, tmp_path: Path, counted: Counted) -> None:
    text = find("glue").read_text()
    for old, new in (
        ('tasks = ["sst2", "stsb"]', 'tasks = ["sst2"]'),
        ('private = ["our recipe"]', "private = []"),
        ("teacher = { epochs = 6, learning_rate = 3e-3 }", "teacher = { epochs = 6, learning_rates = [1e-6, 3e-3] }"),
        ("general = { epochs = 4,", 'general = { tasks = ["sst2", "stsb"], epochs = 4,'),
    ):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "glue.toml").write_text(text)
    values = run(
        ReplayOptions(str(tmp_path / "glue.toml"), scale="smoke", out=tmp_path / "out", models=shop / "models")
    )
    assert len(counted.trained) == 1, "the other teacher, and its students, are there already"
    (chosen,) = values["teachers"]
    assert (chosen["task"], chosen["seed"], chosen["learning_rate"]) == ("sst2", 0, 3e-3)
    tried = [(row["learning_rate"], row["selection_score"]) for row in chosen["grid"]]
    assert [rate for rate, _ in tried] == [1e-6, 3e-3]
    assert tried[0][1] < tried[1][1]
    before = {row["key"]["model"]: row["values"]["score"] for row in read_json(folder / "results.json")["rows"][:1]}
    assert {row["key"]["model"]: row["values"]["score"] for row in values["rows"][:1]} == before
    assert "at 1e-06" in (tmp_path / "out" / "report.html").read_text()


def test_a_teacher_may_start_from_another_tasks(folder: Path, shop: Path, counted: Counted) -> None:
    spec = replay.load(find("glue"))
    assert isinstance(spec, StudentsExperiment)
    own = {"by_task": {"stsb": {"teacher": {"epochs": 1, "learning_rate": 1e-5, "after": "sst2"}}}}
    scale = StudentsScale.model_validate(spec.scale["smoke"].model_dump(mode="json") | own)
    assert scale.model_dump(mode="json")["by_task"] == own["by_task"]
    workplace = Workplace(shop / "glue", None, models.ModelCache(shop / "models"))
    work = students.Students(spec, scale, workplace)
    work._load()
    teachers = work._teachers(Measured())
    first, second = (teachers[name, 0].folder for name in ("sst2", "stsb"))
    assert list(teachers) == [("sst2", 0), ("stsb", 0)]
    assert len(counted.trained) == 1, "the one it starts from is there already"
    assert read_json(second / "teacher.json")["after"] == ["sst2"]
    assert "trained for sst2 before" in (second / "README.md").read_text()
    # It began with the weights of the other teacher, so after one pass it is nearer to them than to the backbone.
    start, end = (load_checkpoint(path).bert.state_dict() for path in (first, second))
    backbone = load_checkpoint(work.trainings.backbone).bert.state_dict()
    distance = [sum(float((end[k] - other[k]).norm()) for k in end) for other in (start, backbone)]
    assert distance[0] < distance[1] / 2


def test_students_of_all_tasks_start_from_one_general_student(
    folder: Path, shop: Path, tmp_path: Path, counted: Counted
) -> None:
    made = {path.stem: read_json(path) for path in (shop / "models").glob("*.json")}
    ours = [row for row in read_json(folder / "results.json")["rows"] if row["key"]["model"] == "our recipe"]
    (general,) = {made[row["origin"]["model"]]["general"] for row in ours}
    assert made[general]["recipe"]["tasks"] == ["sst2", "stsb"]
    from_it = [name for name, fact in made.items() if fact.get("general") == general]
    assert len(from_it) == 2, "ours, of each task"
    for name in from_it:
        assert "general" not in made[name]["recipe"], "a place"
        record = read_json(shop / "models" / name / "distillation.json")
        assert record["general"]["sha256"] == sha256_file(shop / "models" / general / "model.safetensors")
    text = find("glue").read_text()
    for old, new in (
        ("general = { epochs = 4, learning_rate = 1e-3 }", 'general = { epochs = 1, tasks = ["mrpc"] }'),
        ('private = ["our recipe"]', "private = []"),
        ('tasks = ["sst2", "stsb"]', 'tasks = ["stsb"]'),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    (tmp_path / "glue.toml").write_text(text)
    run(ReplayOptions(str(tmp_path / "glue.toml"), scale="smoke", out=tmp_path / "out", models=shop / "models"))
    other, student = (read_json(path.with_suffix(".json")) for path in counted.trained)
    assert (other["kind"], other["recipe"]["tasks"], other["recipe"]["epochs"]) == ("general", ["mrpc"], 1)
    assert student["general"] == counted.trained[0].name != general


def test_of_teachers_that_score_the_same_the_first_is_taken(shop: Path, tmp_path: Path) -> None:
    rates = {"teacher": {"learning_rates": [1e-4, 5e-5, 2e-5]}}
    spec = replay.load(find("glue"))
    assert isinstance(spec, StudentsExperiment)
    scale = StudentsScale(backbone="made-up", data="made-up", tasks=("sst2",), **rates)  # type: ignore[arg-type]
    work = students.Students(spec, scale, Workplace(shop / "glue", None, models.ModelCache(tmp_path)))
    work._load()
    grid, measured = [work.trainings.teacher("sst2", 0, rate) for rate in scale.teacher.rates], Measured()
    for training, score in zip(grid, (0.7, 0.8, 0.8), strict=True):
        work.workplace.models.path(training).mkdir()
        write_json(work.workplace.models.path(training) / "teacher.json", {"selection_score": score})
    assert work._best(("sst2", 0), grid, measured) == grid[1]
    assert measured.teachers[0]["learning_rate"] == 5e-5


def test_a_training_goes_on_from_its_last_checkpoint(
    folder: Path, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replay.load(find("glue"))
    workplace = Workplace(shop / "glue", None, models.ModelCache(tmp_path / "models"))
    work = students.Students(spec, spec.scale["smoke"], workplace)  # type: ignore[arg-type]
    work._load()
    training, calls = work.trainings.teacher("sst2", 0, 3e-3), []
    step, teacher = distill.training.loop._Runner._step, models.train_teacher

    def stopped(self: Any, number: int, indices: list[int]) -> float:
        if number == 30:
            raise KeyboardInterrupt
        return step(self, number, indices)

    with monkeypatch.context() as patch:
        patch.setattr(distill.training.loop._Runner, "_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            workplace.models.provide([training])
    monkeypatch.setattr(
        models, "train_teacher", lambda r, out, **k: (calls.append(k["resume"]), teacher(r, out, **k))[1]
    )
    assert workplace.models.provide([training]) == 1
    assert workplace.models.provide([training, training]) == 0
    assert calls == [True]
    weights = [cache / training.name / "model.safetensors" for cache in (shop / "models", tmp_path / "models")]
    assert sha256_file(weights[0]) == sha256_file(weights[1])
