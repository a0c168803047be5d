"""Test the TOML of experiments: shipped files are complete; wrong files are refused with all errors before work."""

from pathlib import Path
from typing import Any

import pytest

from experiments.records.compare import check_settings, differences, settings_of
from experiments.records.recorded import load_recorded
from experiments.replay import ReplayOptions, run
from experiments.spec.outputs import Tolerance, Tolerances
from experiments.spec.quantities import AXES, QUANTITIES, Row
from experiments.spec.scales import StudentsScale
from experiments.spec.spec import SCALES, find, load, models_of, scale_of, shipped
from mpcformer.errors import UserInputError
from mpcformer.files import write_json

NAMES = [
    "ablation-data",
    "ablation-recipe",
    "approximations",
    "breakdown",
    "counts",
    "forms",
    "glue",
    "imdb",
    "mpnet",
    "networks",
    "pareto",
    "sentences",
]


def wrong(tmp_path: Path, name: str, *changes: tuple[str, str]) -> Path:
    """Write a shipped experiment with some words replaced, and return the file."""
    text = find(name).read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    return path


def test_all_ship_at_all_scales_with_their_launch_line() -> None:
    assert sorted(shipped()) == NAMES
    for name, path in shipped().items():
        assert set(load(path).scale) == set(SCALES)
        head = path.read_text().split("\nkind =")[0]
        assert f"mpcformer replay {name} --scale" in head
        assert all(line.startswith("#") for line in head.strip().splitlines())


def test_found_by_name_by_file_name_and_by_path(tmp_path: Path) -> None:
    assert find("glue") == find("glue.toml") == find(str(find("glue")))
    with pytest.raises(UserInputError, match=r"'blue' is neither a file nor shipped(.|\n)*glue"):
        find("blue")
    with pytest.raises(UserInputError, match="neither a file"):
        find(str(tmp_path / "glue.toml"))


def test_all_errors_at_once(tmp_path: Path) -> None:
    path = wrong(
        tmp_path,
        "forms",
        ('gelu = ["quad", "gelu"]', 'gelu = ["cubic"]'),
        ("eval_limit = 32", "eval_limit = 0\nspeed = 3"),
        ('tasks = ["sst2", "mrpc", "rte", "qnli"]', 'tasks = ["sst3"]'),
        ('x = "rounds"', 'x = "luck"'),
    )
    with pytest.raises(UserInputError) as caught:
        load(path)
    for piece in ("scale.smoke.gelu", "'cubic'", "scale.smoke.eval_limit", "scale.smoke.speed", "'sst3'", "'luck'"):
        assert piece in caught.value.what


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("forms", "[scale.cpu]", "[scale.laptop]", "scale.laptop is unknown; choose one of: smoke, cpu, full"),
        ("glue", 'private = ["our recipe"]', 'private = ["theirs"]', "private: model 'theirs' is unknown"),
        ("glue", 'tasks = ["sst2", "stsb"]', 'tasks = ["wnli"]', "wnli has no published recipe"),
        ("glue", 'name = "no distillation"', 'name = "our recipe"', "'our recipe' appears twice"),
        ("glue", 'name = "no distillation"', 'name = "teacher"', "the teacher's own name"),
        ("glue", 'name = "private"', 'name = "cost"', "'cost' appears twice"),
        ("glue", "score = { absolute = 0.07 }", "score = { absolute = 1, ratio = 2 }", "give absolute or ratio"),
        ("glue", 'kind = "students"', 'kind = "pupils"', "pupils"),
        ("forms", 'rows = ["task", "gelu", "softmax"]', 'rows = ["task", "gelu"]', "forms: scale.smoke varies softmax"),
        ("networks", '"5,200"', '"5,0"', "'5,0' is no network"),
        ("networks", 'engines = ["lift"]', 'engines = ["spdz"]', "engine 'spdz' is unknown"),
        ("glue", "[scale.cpu]", "[scale.smoke.by_task.sst3]\n[scale.cpu]", r"by_task.sst3.*'sst3' is unknown"),
        (
            "glue",
            "[scale.cpu]",
            "[scale.smoke.by_task.rte]\n[scale.cpu]",
            r"by_task.rte: not among tasks \(sst2, stsb\)",
        ),
        (
            "glue",
            "[scale.cpu]",
            '[scale.smoke.by_task.stsb]\nengines = ["crypten"]\n[scale.cpu]',
            "by_task.stsb.engines",
        ),
        ("glue", "[scale.cpu]", "[scale.smoke.by_task.stsb]\nseeds = []\n[scale.cpu]", "by_task.stsb.seeds"),
        (
            "glue",
            "[scale.cpu]",
            "[scale.smoke.by_task.stsb]\nteacher = { epoch = 1 }\n[scale.cpu]",
            "teacher.epoch: Extra",
        ),
        ("glue", "learning_rate = 3e-3", "learning_rate = 3e-3, learning_rates = [1e-3]", "learning_rates, not both"),
        ("glue", "learning_rate = 3e-3", "learning_rates = []", r"teacher: learning_rates: \[\] is not a list"),
        ("glue", "learning_rate = 3e-3", "learning_rates = [1e-3, 1e-3]", "is not a list of different rates"),
        ("glue", "learning_rate = 3e-3", "learning_rates = [1e-3, 0]", r"teacher.learning_rates.1: .*greater than 0"),
        *(
            ("glue", "[scale.cpu]", f"[scale.smoke.by_task.stsb]\n{own}\n[scale.cpu]", message)
            for own, message in (
                (
                    'teacher = { after = "mrpc" }',
                    "stsb cannot start from 'mrpc'.* choose another of tasks .sst2, stsb.",
                ),
                ('teacher = { after = "stsb" }', "of stsb cannot start from 'stsb'"),
                ('seeds = [0, 1]\nteacher = { after = "sst2" }', r"stsb has seeds \[1\], which sst2 lacks"),
            )
        ),
        ("glue", "learning_rate = 3e-3", 'learning_rate = 3e-3, after = "sst2"', "of sst2 cannot start from 'sst2'"),
        (
            "pareto",
            'models = ["full", "weights of 8 bits", "weights of 6 bits", "weights of 4 bits", "1 layer',
            'models = ["whole", "1 layer',
            "scale.smoke.models: model 'whole' is unknown",
        ),
        ("pareto", "weight_bits = 6", "weight_bits = 5", "weight_bits: number of bits '5' is unknown.* 8, 6, 4"),
        (
            "pareto",
            "weight_bits = 6",
            'weight_bits = 6\nsoftmax = "2quad-const"',
            "6 bits': weight_bits 6 needs quad with 2quad .* scale.smoke makes it of quad with 2quad-const; change",
        ),
        (
            "pareto",
            "weight_bits = 6",
            'weight_bits = 6\nconstant_norms = ["attention"]',
            "2quad and constant_norms; change that, or leave weight_bits out",
        ),
        (
            "forms",
            'name = "our recipe"',
            'name = "our recipe"\nweight_bits = 8',
            "'our recipe': weight_bits 8 needs .* scale.smoke makes it of gelu with softmax",
        ),
        (
            "forms",
            'name = "our recipe"',
            'name = "our recipe"\ngelu = "relu"',
            "of its own, and scale.smoke varies gelu",
        ),
        ("approximations", "points = 1001", "gelu_range = [2.0, 1.0]", r"2\.0 is not below 1\.0"),
        ("approximations", 'kind = "functions"', 'kind = "functions"\nseed = 1', "seed"),
        ("counts", 'models = ["MiniLM, quad', 'models = ["TinyLM, quad', "scale.smoke.models: model 'TinyLM, quad"),
        ("counts", 'name = "BERT-base, relu + 2relu"', 'name = "BERT-base, quad + 2quad"', "appears twice"),
        ("counts", 'model = "minilm"', 'model = "maxilm"', "model 'maxilm' is unknown"),
        ("counts", 'columns = "engine"', "", "rounds: scale.smoke varies engine"),
    ],
)
def test_one_error(tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        load(wrong(tmp_path, name, (old, new)))


def test_a_task_has_the_scales_settings_but_for_its_own(tmp_path: Path) -> None:
    section = """[scale.smoke.by_task.stsb]
eval_limit = 8
seeds = [3, 4]
teacher = { epochs = 2 }
student = { learning_rate2 = 2e-3 }

[scale.cpu]"""
    scale = scale_of(load(wrong(tmp_path, "glue", ("[scale.cpu]", section))), "smoke")
    plain = scale_of(load(find("glue")), "smoke")
    assert isinstance(scale, StudentsScale)
    assert isinstance(plain, StudentsScale)
    assert scale.of("sst2") == plain.of("sst2") == plain
    own = scale.of("stsb")
    assert (own.eval_limit, own.train_limit, own.seeds) == (8, 192, (3, 4))
    assert (own.teacher.epochs, own.teacher.learning_rate) == (2, 3e-3)
    assert (own.student.epochs1, own.student.learning_rate2, own.student.paper_share) == (6, 2e-3, 0.1)
    assert scale.axes() == {**plain.axes(), "seed": 2}
    # A dump contains only the settings that were given, so that older records and finished steps stay valid.
    assert "by_task" not in plain.model_dump(mode="json")
    assert scale.model_dump(mode="json")["by_task"] == {
        "stsb": {"eval_limit": 8, "seeds": [3, 4], "teacher": {"epochs": 2}, "student": {"learning_rate2": 2e-3}}
    }


def test_one_rate_of_a_task_replaces_several_and_several_one() -> None:
    one, several = {"learning_rate": 1e-3}, {"epochs": 5, "learning_rates": [1e-4, 5e-5]}
    for whole, own, rates, epochs in (
        (one, several, (1e-4, 5e-5), 5),
        (several, one, (1e-3,), 5),
        (one, {}, (1e-3,), 3),
    ):
        settings = {"tasks": ["rte"], "teacher": whole, "by_task": {"rte": {"teacher": own} if own else {}}}
        scale = StudentsScale.model_validate(settings)
        teacher = scale.of("rte").teacher
        assert (teacher.rates, teacher.epochs) == (rates, epochs)
        assert len({"learning_rate", "learning_rates"} & teacher.model_dump().keys()) == 1
        assert StudentsScale.model_validate(scale.model_dump(mode="json")) == scale


def test_not_toml(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("kind = ")
    with pytest.raises(UserInputError, match=r"a\.toml"):
        load(path)


def test_wrong_options_leave_nothing(tmp_path: Path) -> None:
    out, models = tmp_path / "out", tmp_path / "models"
    record = tmp_path / "record.json"
    write_json(record, {"experiment": "glue", "scale": "full", "rows": []})
    file = tmp_path / "file"
    file.touch()
    records = tmp_path / "records"
    records.mkdir()
    write_json(records / "glue-smoke.json", {"experiment": "imdb", "scale": "smoke", "rows": []})
    others = tmp_path / "others"
    others.mkdir()
    write_json(others / "glue-smoke.json", {"precious": 1})
    before = set(tmp_path.iterdir())
    cases = [
        ({"scale": "huge"}, "--scale: 'huge' is unknown"),
        ({"jobs": 0}, "--jobs: 0"),
        ({"data_dir": tmp_path}, "--data-dir: .* is not for this"),
        ({"check": record}, "belongs to glue at scale full, not glue at smoke"),
        ({"check": tmp_path / "none.json"}, "does not exist"),
        ({"record": records}, "--record: .*glue-smoke.json belongs to imdb at scale smoke, not glue at smoke"),
        ({"record": others}, "--record: .*glue-smoke.json holds no results"),
        ({"record": file}, "--record: .* is a file"),
        ({"out": file}, "--out: .* is a file"),
        ({"models": file}, "--models: .* is a file"),
        ({"scale": "cpu", "data_dir": tmp_path / "nowhere"}, "is not a folder"),
    ]
    for changes, message in cases:
        options = {"experiment": "glue", "scale": "smoke", "out": out, "models": models} | changes
        with pytest.raises(UserInputError, match=message):
            run(ReplayOptions(**options))  # type: ignore[arg-type]
        assert set(tmp_path.iterdir()) == before, message


def test_tolerances() -> None:
    rules = Tolerances(score=Tolerance(absolute=0.1), seconds=Tolerance(ratio=2.0), error=Tolerance(ratio=3.0))
    assert rules.allow("score", 0.5, 0.6)
    assert not rules.allow("score", 0.5, 0.61)
    assert rules.allow("seconds", 1.0, 2.0)
    assert rules.allow("seconds", 2.0, 1.0)
    assert not rules.allow("seconds", 1.0, 2.1)
    assert not rules.allow("error", 0.0, 0.1)
    assert rules.allow("error", 0.0, 0.0)
    assert not rules.allow("bytes", 100, 101)
    assert Tolerances(seconds="ignore").allow("seconds", 1.0, 1e9)
    assert rules.allow("agreement", 1.0, 0.996)
    assert not rules.allow("agreement", 1.0, 0.99), "what is promised is 99.5%"


def test_a_row_that_only_one_run_has_is_a_difference() -> None:
    row = {"key": {"task": "sst2", "model": "teacher"}, "values": {"score": 0.5}}
    other = {"key": {"task": "sst2", "model": "ours"}, "values": {"score": 0.5, "rounds": 3}}
    found = differences({"rows": [row, other]}, {"rows": [other | {"values": {"score": 0.5}}]}, Tolerances())
    assert found == [
        ("sst2, teacher", "the row", "there", "missing"),
        ("sst2, ours", "rounds", "3", "None"),
    ]


RECORDS = sorted((find("glue").parent / "results").glob("*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_records_are_of_shipped_experiments_as_they_are_now(path: Path) -> None:
    name, _, scale_name = path.stem.rpartition("-")
    assert name in shipped()
    spec = load(find(name))
    scale = scale_of(spec, scale_name)
    recorded = load_recorded(path, name, scale_name)
    check_settings(recorded, spec, scale, path)
    # check_settings fills in defaults for settings that an older version lacked; a committed record must have them all.
    assert settings_of(scale, recorded["models"]) == settings_of(scale, models_of(spec))
    assert recorded["examples"] or spec.kind != "students"
    rows = [Row.from_json(row) for row in recorded["rows"]]
    assert rows
    for row in rows:
        assert set(row.key) <= set(AXES)
        assert set(row.values) <= set(QUANTITIES)
    assert len({tuple(row.key.items()) for row in rows}) == len(rows)
    assert differences(recorded, recorded, Tolerances(score="exact", error="exact", seconds="exact")) == []


def test_a_record_stays_valid_when_other_models_are_added_and_not_when_its_scale_makes_them(tmp_path: Path) -> None:
    recorded, path = record_of("pareto", "cpu"), tmp_path / "record.json"
    added = ("[scale.smoke]", '[[models]]\nname = "5 layers"\nlayers = 5\n\n[scale.smoke]')
    spec = load(wrong(tmp_path, "pareto", added))
    check_settings(recorded, spec, scale_of(spec, "cpu"), path)
    made = ('models = ["full", "3 layers, 2quad-const"]', 'models = ["full", "5 layers"]')
    spec = load(wrong(tmp_path, "pareto", added, made))
    with pytest.raises(UserInputError, match=r"other settings: models .*'3 layers, 2quad-const'.*, not .*'5 layers'"):
        check_settings(recorded, spec, scale_of(spec, "cpu"), path)


def record_of(name: str, scale: str) -> dict[str, Any]:
    """Return a record without rows of a shipped experiment as it is now."""
    spec = load(find(name))
    settings = scale_of(spec, scale).model_dump(mode="json")
    return {"experiment": name, "scale": scale, "rows": [], "settings": settings, "models": models_of(spec)}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("train_limit = 192", "train_limit = 128", r"other settings: train_limit 192, not 128\n"),
        ("[scale.cpu]", "[scale.smoke.by_task.stsb]\nseeds = [1]\n[scale.cpu]", r"by_task None, not \{'stsb'"),
        ('start = "random"', 'start = "teacher"', r"other settings: models .*'random'.*, not "),
        ('title = "Scores in plaintext"', 'title = "Scores"', None),
        ("score = { absolute = 0.07 }", "score = { absolute = 0.01 }", None),
        ('"google-bert/bert-base-uncased"', '"google-bert/bert-large-uncased"', None),
    ],
)
def test_a_record_of_other_settings_is_refused_before_work(
    tmp_path: Path, old: str, new: str, message: str | None
) -> None:
    path = tmp_path / "record.json"
    write_json(path, record_of("glue", "smoke"))
    spec = load(wrong(tmp_path, "glue", (old, new)))
    recorded, scale = load_recorded(path, "glue", "smoke"), scale_of(spec, "smoke")
    if message is None:
        check_settings(recorded, spec, scale, path)
        return
    with pytest.raises(UserInputError, match=message):
        check_settings(recorded, spec, scale, path)
    (tmp_path / "glue.toml").write_text((tmp_path / "wrong.toml").read_text())
    options = {"scale": "smoke", "check": path, "out": tmp_path / "out", "models": tmp_path / "models"}
    with pytest.raises(UserInputError, match=message):
        run(ReplayOptions(str(tmp_path / "glue.toml"), **options))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_record_of_another_version(tmp_path: Path) -> None:
    spec, recorded = load(find("glue")), record_of("glue", "smoke")
    scale, path = scale_of(spec, "smoke"), tmp_path / "record.json"
    del recorded["settings"]["device"], recorded["models"]  # as if these had been introduced later
    check_settings(recorded, spec, scale, path)
    recorded["settings"]["speed"] = 3
    with pytest.raises(UserInputError, match="keys that this version does not know"):
        check_settings(recorded, spec, scale, path)
