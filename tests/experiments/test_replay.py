"""A replay at scale smoke: everything for real but tiny; nothing is done twice; a record holds or is refused."""

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

import distill.loop
from distill.recipe import DistillRecipe, TeacherRecipe
from experiments import commands, models, record, replay, students
from experiments.figures import draw, pareto
from experiments.madeup import write_data, write_model
from experiments.outputs import BarsFigure, TableSpec
from experiments.quantities import Row
from experiments.replay import ReplayOptions, run
from experiments.scales import StudentsScale
from experiments.spec import StudentsExperiment, find
from experiments.tables import build, csv_text, latex, markdown
from experiments.trainings import Teacher
from experiments.work import Found
from mpcformer.errors import MPCFormerError, UserInputError
from mpcformer.files import read_json, sha256_file, write_json
from mpcformer.modeling import load_checkpoint
from mpcformer.tasks import get_task, load_examples
from parties import evaluate

RESULTS = find("glue").parent / "results"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replay")


def glue(shop: Path, name: str = "glue", **changes: Any) -> ReplayOptions:
    return ReplayOptions("glue", scale="smoke", out=shop / name, models=shop / "models", **changes)


@pytest.fixture(scope="module")
def folder(shop: Path) -> Path:
    run(glue(shop))
    return shop / "glue"


class Counted:
    """Trainings and private runs, counted."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.trained: list[Path] = []
        self.private: list[Path] = []
        teacher, student, private = models.train_teacher, models.distill_student, evaluate.run
        patch.setattr(models, "train_teacher", lambda r, out, **k: (self.trained.append(out), teacher(r, out, **k))[1])
        patch.setattr(
            models, "distill_student", lambda r, out, **k: (self.trained.append(out), student(r, out, **k))[1]
        )
        patch.setattr(evaluate, "run", lambda j, out, **k: (self.private.append(out), private(j, out, **k))[1])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def test_the_folder_is_whole(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "made-up", "runs", "tables", "figures", "report.html", "replay.json", "results.json", "manifest.json",
    }  # fmt: skip
    tables = {"plaintext", "kept", "private", "cost"}
    assert {p.name for p in (folder / "tables").iterdir()} == {
        f"{t}.{end}" for t in tables for end in ("md", "csv", "tex")
    }
    assert {p.name for p in (folder / "figures").iterdir()} == {"scores.svg", "scores.png"}
    manifest = read_json(folder / "manifest.json")
    for name, digest in manifest["sha256"].items():
        assert sha256_file(folder / name) == digest
    assert "results.json" in manifest["sha256"]
    assert not [path for path in folder.rglob("*") if "partial" in path.name or "failed" in path.name]


def test_what_was_measured(folder: Path) -> None:
    rows = [Row.from_json(row) for row in read_json(folder / "results.json")["rows"]]
    by_model = {(row.key["task"], row.key["model"]): row.values for row in rows}
    assert len(rows) == len(by_model) == 2 * 6
    for task in ("sst2", "stsb"):
        assert by_model[task, "teacher"]["score"] > 0.5
        private = by_model[task, "our recipe"]
        assert private["label_agreement"] > 0.9
        assert abs(private["private_score"] - private["compared_score"]) < 0.05
        assert private["kept"] == pytest.approx(private["score"] / by_model[task, "teacher"]["score"])
        start = by_model[task, "our start, untrained"]
        assert start["score"] > by_model[task, "random initialisation"]["score"] - 0.2
        assert private["rounds"] > 10
        assert "private_score" not in by_model[task, "random initialisation"]


def test_the_report_is_one_file_that_loads_nothing(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    assert "made-up" in html
    assert "data:image/svg+xml;base64," in html
    assert html.count("<table>") == 4
    for word in ("http://", "https://", "<script", 'src="/'):
        assert word not in html
    # beside made-up sentences the paper's scores would say nothing
    assert "Published, not measured here" not in html


def test_a_second_call_keeps_all(folder: Path, shop: Path, counted: Counted) -> None:
    before = (folder / "manifest.json").read_bytes()
    run(glue(shop))
    assert (folder / "manifest.json").read_bytes() == before
    assert counted.trained == counted.private == []


def test_results_of_an_older_version_are_made_anew_from_the_steps(folder: Path, shop: Path, counted: Counted) -> None:
    shutil.copytree(folder, shop / "older")
    manifest, results = read_json(folder / "manifest.json"), read_json(folder / "results.json")
    del manifest["asked"]["format"], results["models"]
    write_json(shop / "older" / "manifest.json", manifest)
    write_json(shop / "older" / "results.json", results)
    assert run(glue(shop, "older")) == read_json(folder / "results.json")
    assert counted.trained == counted.private == []


def test_results_of_models_made_another_way_are_not_kept(
    folder: Path, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.FORMAT, "student", 10_000)
    monkeypatch.setattr(models.ModelCache, "provide", lambda self, trainings: pytest.fail("trains"))
    with pytest.raises(pytest.fail.Exception, match="trains"):
        run(replace(glue(shop), out=shutil.copytree(folder, shop / "other way")))


def test_stopped_between_steps_it_goes_on_and_trains_nothing_twice(
    folder: Path, shop: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = evaluate.report.write

    def stopped(*values: Any) -> None:
        if len(counted.private) == 2:
            raise KeyboardInterrupt
        write(*values)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate.report, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(glue(shop, "again"))
    assert not (shop / "again" / "manifest.json").exists()
    assert not (shop / "again" / "results.json").exists()
    values = run(glue(shop, "again"))
    assert counted.trained == []
    first_run, second_run, resumed = counted.private
    assert second_run == resumed != first_run
    batches = read_json(resumed / "results.json")["batches"]
    assert batches["all"] == batches["of_a_run_before"] > 0
    assert not list((shop / "again" / "runs").glob("*.failed"))
    # the same models of the same data give the same scores, and cost the same
    first = read_json(folder / "results.json")
    for key in ("score", "online_bytes", "dealer_bytes", "rounds"):
        assert [row["values"].get(key) for row in values["rows"]] == [row["values"].get(key) for row in first["rows"]]


def test_its_own_record_holds_and_a_changed_number_is_refused(
    folder: Path, shop: Path, tmp_path: Path, counted: Counted, capsys: pytest.CaptureFixture[str]
) -> None:
    run(glue(shop, check=folder / "results.json"))
    assert "within the tolerances" in capsys.readouterr().out
    for name, change in (("private_score", -0.2), ("rounds", 1), ("online_bytes", 1)):
        changed = read_json(folder / "results.json")
        row = next(row for row in changed["rows"] if name in row["values"])
        row["values"][name] += change
        write_json(tmp_path / "record.json", changed)
        with pytest.raises(MPCFormerError, match=rf"1 of \d+ rows differ from .*{row['key']['model']}.*: {name}"):
            run(glue(shop, check=tmp_path / "record.json"))
    assert counted.trained == counted.private == []


def test_a_record_is_the_results_and_says_nothing_of_the_machine_or_the_sentences(
    folder: Path, shop: Path, tmp_path: Path, counted: Counted, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / "new" / "records"
    for _ in range(2):  # the second overwrites the first
        run(glue(shop, record=records, check=folder / "results.json"))
        assert f"recorded: {records / 'glue-smoke.json'}" in capsys.readouterr().out.replace("\n", "")
    text = (records / "glue-smoke.json").read_text()
    assert text == (folder / "results.json").read_text()
    assert [path.name for path in records.iterdir()] == ["glue-smoke.json"]
    for place in (shop, shop.parent, find("glue").parent, Path.home(), Path.cwd()):
        assert str(place) not in text
    assert socket.gethostname() not in text
    for name in ("sst2", "stsb"):
        task = get_task(name)
        for split in (task.train_split, "eval"):
            for texts in load_examples(task, split, data_dir=folder / "made-up").texts:
                assert not [sentence for sentence in texts if sentence in text]
    assert len(text) < 20_000
    assert counted.trained == counted.private == []


def test_rows_of_the_same_models_are_kept_without_the_models(
    folder: Path, shop: Path, tmp_path: Path, counted: Counted
) -> None:
    options = replace(glue(shop, keep=folder / "results.json"), out=tmp_path / "out", models=tmp_path / "models")
    values, before = run(options), read_json(folder / "results.json")
    assert (values["n_kept"], before["n_kept"]) == (len(before["rows"]), 0)
    assert values | {"n_kept": 0} == before
    assert counted.trained == counted.private == []
    assert f"{len(before['rows'])} of {len(before['rows'])}, of the same" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("task", "model", "what", "n_trained", "n_private"),
    [
        ("sst2", "our recipe", "model", 2, 1),  # with its teacher
        ("stsb", "published recipe", "model", 2, 0),
        ("stsb", "teacher", "measured", 1, 0),
    ],
)
def test_only_what_a_record_lacks_is_done(
    folder: Path,
    shop: Path,
    tmp_path: Path,
    counted: Counted,
    task: str,
    model: str,
    what: str,
    n_trained: int,
    n_private: int,
) -> None:
    record = read_json(folder / "results.json")
    (row,) = (row for row in record["rows"] if (row["key"]["task"], row["key"]["model"]) == (task, model))
    row["origin"][what] = "another"
    row["values"]["score"] = 2.0
    write_json(tmp_path / "record.json", record)
    options = replace(glue(shop, keep=tmp_path / "record.json"), out=tmp_path / "out", models=tmp_path / "models")
    values, before = run(options), read_json(folder / "results.json")
    assert values["n_kept"] == len(before["rows"]) - 1
    assert [row["values"]["score"] for row in values["rows"]] == [row["values"]["score"] for row in before["rows"]]
    assert (len(counted.trained), len(counted.private)) == (n_trained, n_private)


def test_students_of_a_teacher_that_came_out_otherwise_are_made_anew(folder: Path, shop: Path, tmp_path: Path) -> None:
    record = read_json(folder / "results.json")
    rows = [row for row in record["rows"] if row["key"]["task"] == "sst2"]
    for row in rows:
        row["origin"]["weights" if row["key"]["model"] == "teacher" else "model"] = "of another machine"
        row["values"]["score"] = 2.0
    write_json(tmp_path / "record.json", record)
    values = run(replace(glue(shop, keep=tmp_path / "record.json"), out=tmp_path / "out"))
    assert values["n_kept"] == len(record["rows"]) - len(rows)
    assert max(row["values"]["score"] for row in values["rows"]) <= 1


def test_what_cannot_be_kept_is_refused(folder: Path, shop: Path, tmp_path: Path) -> None:
    record = read_json(folder / "results.json")
    for row in record["rows"]:
        del row["origin"]
    write_json(tmp_path / "record.json", record)
    out = {"out": tmp_path / "out"}
    with pytest.raises(UserInputError, match=r"--keep: no row of .*record\.json says which model"):
        run(replace(glue(shop, keep=tmp_path / "record.json"), **out))
    with pytest.raises(UserInputError, match=r"--keep: .* is of glue at scale smoke, not pareto"):
        run(replace(glue(shop, keep=folder / "results.json"), experiment="pareto", **out))
    with pytest.raises(UserInputError, match="--keep: counts trains nothing"):
        run(replace(glue(shop, keep=folder / "results.json"), experiment="counts", **out))
    assert not (tmp_path / "out").exists()


def test_what_differs_from_a_record_is_not_recorded(folder: Path, shop: Path, tmp_path: Path) -> None:
    changed = read_json(folder / "results.json")
    changed["rows"][0]["values"]["score"] -= 0.3
    write_json(tmp_path / "old.json", changed)
    with pytest.raises(MPCFormerError, match=r"1 of \d+ rows differ"):
        run(glue(shop, check=tmp_path / "old.json", record=tmp_path / "records"))
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize(
    "place", ["/models/bert", "~/bert", "../bert", "weights of /models/bert", "C:\\bert", "tests/tiny.py"]
)
def test_a_path_is_not_recorded(tmp_path: Path, place: str) -> None:
    with pytest.raises(UserInputError, match="is a path of this machine"):
        record.target(tmp_path / "records", "glue", "cpu", {"tasks": ["rte"], "teacher": {"from": place}})
    with pytest.raises(UserInputError, match="is a path of this machine"):
        record.write(tmp_path / "records" / "a.json", {"rows": [{place: 1}]})
    assert not list(tmp_path.iterdir())


def test_what_is_no_path_is_recorded(tmp_path: Path) -> None:
    for text in ("google-bert/bert-base-uncased", "s/example", "and/or", "none", "5,200", "1/2, 3/4"):
        assert record.target(tmp_path, "glue", "cpu", {"a": text}) == tmp_path / "glue-cpu.json"


def test_a_folder_of_something_else_is_refused(shop: Path, folder: Path) -> None:
    with pytest.raises(UserInputError, match="holds glue at scale smoke"):
        run(ReplayOptions("approximations", scale="smoke", out=folder, models=shop / "models"))
    (shop / "other").mkdir()
    (shop / "other" / "precious").touch()
    with pytest.raises(UserInputError, match="is not a replay's"):
        run(glue(shop, "other"))


def test_another_table_is_made_from_the_same_steps(folder: Path, shop: Path, tmp_path: Path, counted: Counted) -> None:
    text = find("glue").read_text().replace('title = "Scores in plaintext"', 'title = "Other words"')
    (tmp_path / "glue.toml").write_text(text)
    shutil.copytree(folder, shop / "words")
    run(ReplayOptions(str(tmp_path / "glue.toml"), scale="smoke", out=shop / "words", models=shop / "models"))
    assert counted.trained == counted.private == []
    assert "Other words" in (shop / "words" / "tables" / "plaintext.md").read_text()


def test_other_data_recipe_or_start_is_another_model(folder: Path, shop: Path) -> None:
    facts = [json.loads(path.read_text()) for path in (shop / "models").glob("*.json")]
    assert len(facts) == 12
    assert {fact["kind"] for fact in facts} == {"teacher", "student"}
    place = replay.Place(shop / "glue", None, models.ModelCache(shop / "models"))
    spec = replay.load(find("glue"))
    work = students.Students(spec, spec.scale["smoke"], place)  # type: ignore[arg-type]
    work._load()
    training = work.trainings.teacher("sst2", 0, 3e-3)
    assert place.models.path(training).is_dir()
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
student = { epochs1 = 3, paper_share = 0.2, labels_rate = 7e-4 }

[scale.cpu]"""
    (tmp_path / "glue.toml").write_text(find("glue").read_text().replace("[scale.cpu]", section))
    plain, other = (
        students.Students(spec, spec.scale["smoke"], replay.Place(shop / "glue", None, models.ModelCache(shop / "m")))  # type: ignore[arg-type]
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
    jobs: list[Any] = []

    def stopped(job: Any, out: Path) -> None:
        jobs.append(job)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "check", stopped)
    with pytest.raises(KeyboardInterrupt):
        other._infer({"task": "stsb", "engine": "mpcformer", "network": "none"}, some, some, Found())
    assert (jobs[0].limit, jobs[0].batch_size, jobs[0].max_length) == (8, 4, 24)


def test_of_several_rates_the_best_teacher_is_taken(folder: Path, shop: Path, tmp_path: Path, counted: Counted) -> None:
    text = find("glue").read_text()
    for old, new in (
        ('tasks = ["sst2", "stsb"]', 'tasks = ["sst2"]'),
        ('private = ["our recipe"]', "private = []"),
        ("teacher = { epochs = 6, learning_rate = 3e-3 }", "teacher = { epochs = 6, learning_rates = [1e-6, 3e-3] }"),
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
    place = replay.Place(shop / "glue", None, models.ModelCache(shop / "models"))
    work = students.Students(spec, scale, place)
    work._load()
    found = work._teachers(Found())
    first, second = (found[name, 0].folder for name in ("sst2", "stsb"))
    assert list(found) == [("sst2", 0), ("stsb", 0)]
    assert len(counted.trained) == 1, "the one it starts from is there already"
    assert read_json(second / "teacher.json")["after"] == ["sst2"]
    assert "trained for sst2 before" in (second / "README.md").read_text()
    # It began with the other's weights: one pass leaves it nearer to them than to the backbone.
    start, end = (load_checkpoint(path).bert.state_dict() for path in (first, second))
    backbone = load_checkpoint(work.trainings.backbone).bert.state_dict()
    distance = [sum(float((end[k] - other[k]).norm()) for k in end) for other in (start, backbone)]
    assert distance[0] < distance[1] / 2


def test_of_teachers_that_score_the_same_the_first_is_taken(shop: Path, tmp_path: Path) -> None:
    rates = {"teacher": {"learning_rates": [1e-4, 5e-5, 2e-5]}}
    spec = replay.load(find("glue"))
    assert isinstance(spec, StudentsExperiment)
    scale = StudentsScale(backbone="made-up", data="made-up", tasks=("sst2",), **rates)  # type: ignore[arg-type]
    work = students.Students(spec, scale, replay.Place(shop / "glue", None, models.ModelCache(tmp_path)))
    work._load()
    grid, found = [work.trainings.teacher("sst2", 0, rate) for rate in scale.teacher.rates], Found()
    for training, score in zip(grid, (0.7, 0.8, 0.8), strict=True):
        work.place.models.path(training).mkdir()
        write_json(work.place.models.path(training) / "teacher.json", {"selection_score": score})
    assert work._best(("sst2", 0), grid, found) == grid[1]
    assert found.teachers[0]["learning_rate"] == 5e-5


def test_a_training_goes_on_from_its_last_checkpoint(
    folder: Path, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replay.load(find("glue"))
    place = replay.Place(shop / "glue", None, models.ModelCache(tmp_path / "models"))
    work = students.Students(spec, spec.scale["smoke"], place)  # type: ignore[arg-type]
    work._load()
    training, calls = work.trainings.teacher("sst2", 0, 3e-3), []
    step, teacher = distill.loop._Runner._step, models.train_teacher

    def stopped(self: Any, number: int, indices: list[int]) -> float:
        if number == 30:
            raise KeyboardInterrupt
        return step(self, number, indices)

    with monkeypatch.context() as patch:
        patch.setattr(distill.loop._Runner, "_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            place.models.provide([training])
    monkeypatch.setattr(
        models, "train_teacher", lambda r, out, **k: (calls.append(k["resume"]), teacher(r, out, **k))[1]
    )
    assert place.models.provide([training]) == 1
    assert place.models.provide([training, training]) == 0
    assert calls == [True]
    weights = [cache / training.name / "model.safetensors" for cache in (shop / "models", tmp_path / "models")]
    assert sha256_file(weights[0]) == sha256_file(weights[1])


def test_approximations_on_the_command_line(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(commands.replay)
    check = ["--check", str(RESULTS / "approximations-smoke.json")]
    done = CliRunner().invoke(app, ["approximations", "--scale", "smoke", "--out", str(tmp_path / "out"), *check])
    assert done.exit_code == 0, done.output
    assert "as recorded" in done.output
    rows = {row["key"]["form"]: row["values"] for row in read_json(tmp_path / "out" / "results.json")["rows"]}
    assert rows["pieces"]["max_error"] < 0.0023  # what approximations/exact.py promises
    assert rows["quad"]["max_error"] == pytest.approx(3.5)  # (x + 1)^2 / 8 + 3 / 8 at 6, and at -6
    assert rows["squaring"]["max_error"] < rows["2relu"]["max_error"] < rows["2quad"]["max_error"]


def test_figures_are_the_same_bytes_each_time(folder: Path) -> None:
    found = Found([Row.from_json(row) for row in read_json(folder / "results.json")["rows"]])
    spec = BarsFigure(name="a", title="b", kind="bars", x="model", series="task", y="score")
    first, second = draw(spec, found), draw(spec, found)
    assert [(d.svg, d.png) for d in first] == [(d.svg, d.png) for d in second]
    assert b"<dc:date>" not in first[0].svg


def test_the_best_compromises() -> None:
    assert list(pareto([(3, 5), (1, 2), (2, 2), (2, 4), (4, 4), (1, 1)])) == [(1, 2), (2, 4), (3, 5)]


def test_tables_average_seeds_and_mark_what_was_published() -> None:
    rows = [
        Row({"task": task, "model": model, "seed": seed}, {"score": score})
        for task, model, seed, score in [
            ("sst2", "A & B", 0, 0.8), ("sst2", "A & B", 1, 0.9), ("mrpc", "A & B", 0, 0.7), ("sst2", "C", 0, 0.5),
        ]
    ]  # fmt: skip
    table = build(
        TableSpec(name="t", title="T", rows=["model"], columns="task", values=["score"], published=True), rows
    )
    assert table.head == ["model", "sst2", "mrpc", "average"]
    assert table.lines[0] == ["A & B", "0.8500 ± 0.0707", "0.7000", "0.7750"]
    assert table.lines[1] == ["C", "0.5000", "-", "-"]
    assert table.n_published == 3
    assert table.lines[2][1:] == ["0.931", "0.903", "0.917"]
    assert all("MPCFormer, ICLR 2023" in line[0] for line in table.lines[2:])
    assert "| A & B | 0.8500 ± 0.0707 |" in markdown(table)
    assert r"A \& B & 0.8500 $\pm$ 0.0707" in latex(table)
    assert csv_text(table).splitlines()[2] == "C,0.5,,"


def test_made_up_data_serves_every_task(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    for name in ("sst2", "mrpc", "stsb", "mnli", "imdb", "movie-sentiment"):
        task = get_task(name)
        folder = write_data(tmp_path, task)
        for split in (task.train_split, "eval"):
            assert len(set(load_examples(task, split, data_dir=folder, limit=40).labels)) == (
                task.num_labels if task.labels else 2
            )
    weights = [sha256_file(write_model(tmp_path / name) / "model.safetensors") for name in ("a", "b")]
    assert weights[0] == weights[1]
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ablation-data", "ablation-recipe", "breakdown", "forms", "imdb", "networks"])
def test_the_others_are_as_recorded(name: str, tmp_path: Path) -> None:
    record = RESULTS / f"{name}-smoke.json"  # were a protocol's bytes or rounds changed, this would say so
    run(ReplayOptions(name, scale="smoke", out=tmp_path / name, models=tmp_path / "models", check=record))
    assert (tmp_path / name / "manifest.json").is_file()
    assert list((tmp_path / name / "figures").iterdir()) or name == "imdb"


@pytest.mark.slow
def test_two_trainings_at_a_time_give_the_same_models(folder: Path, shop: Path, tmp_path: Path) -> None:
    out, cache = tmp_path / "out", tmp_path / "models"
    run(ReplayOptions("glue", scale="smoke", out=out, models=cache, jobs=2))
    for path in cache.glob("*/model.safetensors"):
        assert sha256_file(path) == sha256_file(shop / "models" / path.parent.name / path.name)


@pytest.mark.slow
def test_a_cluster_gives_the_same_models(folder: Path, shop: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the real ray is not installed: pip install 'ray>=2.60'")
    out, cache = tmp_path / "out", tmp_path / "models"
    run(ReplayOptions("glue", scale="smoke", out=out, models=cache, jobs=2, pool="ray", ray_address="local"))
    made = sorted(path.parent.name for path in cache.glob("*/model.safetensors"))
    assert len(made) == 12
    for name in made:
        weights = (folder_of / name / "model.safetensors" for folder_of in (cache, shop / "models"))
        assert len({sha256_file(path) for path in weights}) == 1
