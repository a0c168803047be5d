"""Test replays at scale smoke: all steps run on tiny models, none runs twice, and records are compared and saved."""

import re
import shutil
import socket
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from experiments import commands
from experiments.kinds import models
from experiments.kinds.madeup import write_data, write_model
from experiments.records import save
from experiments.replay import ReplayOptions, run
from experiments.spec.quantities import Row
from experiments.spec.spec import find
from mpcformer.approximations.gelu_exact import GELU_ERROR
from mpcformer.errors import MPCFormerError, UserInputError
from mpcformer.files import read_json, sha256_file, write_json
from mpcformer.tasks import get_task, load_examples
from parties.runs import local_run
from parties.settings.threat_model import THREAT_MODEL
from tests.browser import check_page
from tests.experiments.test_replay_spec import NAMES
from tests.replays import Counted, glue

RESULTS = find("glue").parent / "results"


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
        assert private["score_share"] == pytest.approx(private["score"] / by_model[task, "teacher"]["score"])
        start = by_model[task, "the fit alone, untrained"]
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
    # The paper's scores mean nothing beside made-up sentences.
    assert "Published, not measured here" not in html
    for promise in THREAT_MODEL.values():
        assert escape(promise.split("; ")[0]) in html
    links = re.findall(r'href="([^#"]*)"', html)
    assert len(links) == 2
    assert all((folder / link).is_file() for link in links)


def test_a_browser_renders_the_report(folder: Path, tmp_path: Path) -> None:
    check_page(folder / "report.html", tmp_path, "What private inference costs", "Threat model")


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
    write = local_run.report.write

    def stopped(*values: Any) -> None:
        if len(counted.private) == 2:
            raise KeyboardInterrupt
        write(*values)

    with monkeypatch.context() as patch:
        patch.setattr(local_run.report, "write", stopped)
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
    # The same models and the same data give the same scores at the same cost.
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
    for _ in range(2):  # the second record overwrites the first
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
        save.target(tmp_path / "records", "glue", "cpu", {"tasks": ["rte"], "teacher": {"from": place}})
    with pytest.raises(UserInputError, match="is a path of this machine"):
        save.write(tmp_path / "records" / "a.json", {"rows": [{place: 1}]})
    assert not list(tmp_path.iterdir())


def test_what_is_no_path_is_recorded(tmp_path: Path) -> None:
    for text in ("google-bert/bert-base-uncased", "s/example", "and/or", "none", "5,200", "1/2, 3/4"):
        assert save.target(tmp_path, "glue", "cpu", {"a": text}) == tmp_path / "glue-cpu.json"


def test_a_folder_of_something_else_is_refused(shop: Path, folder: Path) -> None:
    with pytest.raises(UserInputError, match="holds glue at scale smoke"):
        run(ReplayOptions("approximations", scale="smoke", out=folder, models=shop / "models"))
    (shop / "other").mkdir()
    (shop / "other" / "precious").touch()
    with pytest.raises(UserInputError, match="is not from a replay"):
        run(glue(shop, "other"))


def test_another_table_is_made_from_the_same_steps(folder: Path, shop: Path, tmp_path: Path, counted: Counted) -> None:
    text = find("glue").read_text().replace('title = "Scores in plaintext"', 'title = "Other words"')
    (tmp_path / "glue.toml").write_text(text)
    shutil.copytree(folder, shop / "words")
    run(ReplayOptions(str(tmp_path / "glue.toml"), scale="smoke", out=shop / "words", models=shop / "models"))
    assert counted.trained == counted.private == []
    assert "Other words" in (shop / "words" / "tables" / "plaintext.md").read_text()


@pytest.mark.parametrize(
    ("output", "file"),
    [
        ('[[tables]]\nrows = ["model"]\ncolumns = "task"\nvalues = ["distance"]', "tables/far.md"),
        ('[[figures]]\nkind = "bars"\nx = "task"\nseries = "model"\ny = "distance"', "figures/far.svg"),
    ],
)
def test_where_distances_are_shown_they_are_measured_and_nowhere_else(
    folder: Path, shop: Path, tmp_path: Path, counted: Counted, output: str, file: str
) -> None:
    (tmp_path / "glue.toml").write_text(f'{find("glue").read_text()}\n{output}\nname = "far"\ntitle = "Far"\n')
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    options = ReplayOptions(str(tmp_path / "glue.toml"), scale="smoke", out=out, models=shop / "models")
    rows = run(options)["rows"]
    assert counted.trained == counted.private == []
    assert not any("distance" in row["values"] for row in read_json(folder / "results.json")["rows"])
    assert all(row["values"].get("distance", 1) > 0 for row in rows)
    distances = {row["key"]["model"]: row["values"].get("distance") for row in rows if row["key"]["task"] == "stsb"}
    assert distances.pop("teacher") is None
    assert len(distances) > 2
    (ours,) = (row for row in rows if (row["key"]["task"], row["key"]["model"]) == ("stsb", "our recipe"))
    log = read_json(shop / "models" / ours["origin"]["model"] / "distillation.json")["log"]
    assert distances["our recipe"] == pytest.approx(-max(row["selection_score"] for row in log), rel=1e-3, abs=2e-6)
    # The fit of a tiny model on made-up sentences is almost exact, so no student of general weights is as close.
    assert distances["the fit alone, untrained"] < distances["our recipe"] < distances["random initialisation"]
    assert (out / file).is_file()


def test_approximations_on_the_command_line(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(commands.replay)
    check = ["--check", str(RESULTS / "approximations-smoke.json")]
    done = CliRunner().invoke(app, ["approximations", "--scale", "smoke", "--out", str(tmp_path / "out"), *check])
    assert done.exit_code == 0, done.output
    assert "as recorded" in done.output
    rows = {row["key"]["form"]: row["values"] for row in read_json(tmp_path / "out" / "results.json")["rows"]}
    assert rows["pieces"]["max_error"] < GELU_ERROR
    assert rows["quad"]["max_error"] == pytest.approx(3.5)  # (x + 1)^2 / 8 + 3 / 8 at 6, and at -6
    assert rows["squaring"]["max_error"] < rows["2relu"]["max_error"] < rows["2quad"]["max_error"]


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
@pytest.mark.parametrize(
    # Quick tests compare these two.
    "name",
    [name for name in NAMES if name not in ("approximations", "counts")],
)
def test_the_others_are_as_recorded(name: str, tmp_path: Path) -> None:
    record = RESULTS / f"{name}-smoke.json"  # this fails if the bytes or rounds of a protocol change
    run(ReplayOptions(name, scale="smoke", out=tmp_path / name, models=tmp_path / "models", check=record))
    assert (tmp_path / name / "manifest.json").is_file()
    assert list((tmp_path / name / "figures").iterdir()) or name in ("imdb", "mpnet", "sentences")


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
