"""Own data and own labels in private runs: any file, classes in any order, no labels, and ties that are told."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mpcformer.cli import build_app
from mpcformer.errors import UserInputError
from mpcformer.files import read_json, write_json
from mpcformer.tasks import OWN_DATA, OwnData
from parties.runs import local_run, report
from parties.runs.html_report import render
from parties.settings.config import DataOwnerConfig
from parties.settings.config_file import load_party, to_toml
from parties.settings.job import JobDescription
from tests.parties.test_end_to_end import job_for
from tests.tiny import save_bert, save_student, sentences


def infer(*options: object) -> None:
    CliRunner().invoke(build_app(), ["infer", *map(str, options)], catch_exceptions=False)


def own_file(folder: Path, *, labels: bool, n: int = 8) -> Path:
    """Write made-up sentences as a CSV file with classes by name, or as lines of text."""
    if not labels:
        path = folder / "unlabelled.txt"
        path.write_text("".join(f"{text}\n" for text, _ in sentences(n)))
        return path
    path = folder / "mine.csv"
    names = ("junk", "good mail")
    path.write_text("review,category\n" + "".join(f"{text},{names[label]}\n" for text, label in sentences(n)))
    return path


def with_classes(student: Path, folder: Path, names: list[str], *, swapped: bool = False) -> Path:
    """Copy a student; its classes get these names, and its outputs change places if `swapped`."""
    folder.mkdir()
    for path in student.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = read_json(folder / "config.json")
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    write_json(folder / "config.json", config)
    if swapped:
        weights = load_file(folder / "model.safetensors")
        for key in ("classifier.weight", "classifier.bias"):
            weights[key] = weights[key].flip(0).contiguous()
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def labelled(student: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """results.json and predictions.parquet of a run on a CSV file, with classes that the model has in reverse."""
    folder = tmp_path_factory.mktemp("own")
    model = with_classes(student, folder / "student", ["Good-Mail", "Junk"])
    infer("--student", model, "--data", own_file(folder, labels=True), "--batch-size", 4, "--out", folder / "run")
    return read_json(folder / "run" / "results.json"), pq.read_table(folder / "run" / "predictions.parquet").to_pydict()


def test_a_file_of_ones_own(labelled: tuple[dict[str, Any], dict[str, Any]]) -> None:
    values, table = labelled
    assert (values["task"], values["split"], values["classes"]) == (OWN_DATA, ["data"], ["Good-Mail", "Junk"])
    assert table["label"] == [1 - label for _, label in sentences(8)], "by name, and not by number"
    assert set(values["metrics"]["private"]) == {"accuracy", "f1"}
    hits = np.mean(np.array(table["label"]) == np.argmax(table["private_logits"], axis=1))
    assert values["metrics"]["private"]["accuracy"] == pytest.approx(hits)
    assert table["private_class"] == [values["classes"][int(n)] for n in table["private_prediction"]]


def test_texts_without_labels(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    infer("--student", student, "--data", own_file(tmp_path, labels=False), "--metrics", "accuracy", "--out", out)
    values, table = read_json(out / "results.json"), pq.read_table(out / "predictions.parquet").to_pydict()
    assert values["metrics"]["private"] == values["metrics"]["student"] == {}
    assert table["label"] == [None] * 8
    assert len(table["private_logits"]) == 8
    assert "None: the data have no labels" in (out / "report.html").read_text()
    report.show(values, out)
    assert "score (the data have no labels)" in capsys.readouterr().out


def test_a_task_of_the_registry_without_labels_and_with_reversed_classes(
    student: Path, data_dir: Path, tmp_path: Path
) -> None:
    """The student's outputs are the other way round than the task's classes; the file has no labels, then has them."""
    model = with_classes(student, tmp_path / "student", ["POSITIVE", "NEGATIVE"], swapped=True)
    teacher = save_bert(tmp_path / "teacher", id2label={0: "pos", 1: "neg"})
    options = replace(job_for(model, data_dir, limit=5), teacher=teacher)
    local_run.check(options, tmp_path / "run")
    values = local_run.run(options, tmp_path / "run")
    table = pq.read_table(tmp_path / "run" / "predictions.parquet").to_pydict()
    straight = replace(options, student=student, teacher=save_bert(tmp_path / "straight"))
    expected = straight_logits(straight, tmp_path)
    assert np.allclose(table["student_logits"], expected["student"], atol=1e-5)
    assert np.allclose(np.array(table["teacher_logits"])[:, ::-1], expected["teacher"], atol=1e-5)
    assert np.abs(np.array(table["private_logits"]) - expected["student"]).max() < 0.005
    assert values["label_agreement"] == 1.0

    unlabelled = tmp_path / "sst2"
    unlabelled.mkdir()
    whole = pq.read_table(next(data_dir.glob("validation*"))).drop_columns(["label"])
    pq.write_table(whole, unlabelled / "validation.parquet")
    options = replace(options, data_dir=unlabelled)
    local_run.check(options, tmp_path / "again")
    values = local_run.run(options, tmp_path / "again")
    assert values["metrics"] == {"teacher": {}, "student": {}, "private": {}}


def straight_logits(options: Any, folder: Path) -> dict[str, np.ndarray]:
    from parties.runs.plaintext import PlaintextOptions, run

    out = folder / "plain"
    out.mkdir()
    models = {"student": options.student, "teacher": options.teacher}
    run(PlaintextOptions(options.job, models, options.data_dir, 1), out)
    return report.twin_logits(out)


BAD = [
    ("--data {csv} --task sst2", "--data: it was given with --task"),
    ("--data {csv} --data-dir {folder}", "--data: it was given with --data-dir"),
    ("--data {csv} --split test", "--data: it was given with --split"),
    ("--data {csv}x", "--data: {csv}x does not exist"),
    ("--data {csv} --text-column body", "--text-column: {csv} has no column 'body'; it has review, category"),
    ("--data {csv} --label-column body", "--label-column: {csv} has no column 'body'"),
    ("--data {csv}", "{csv}: the file's classes are good mail, junk; those of the model are LABEL_0, LABEL_1"),
    ("--data {csv} --label-column= --metrics pearson", "--metrics: 'pearson' is no metric of a task of 2 classes"),
    ("--text-column review", "--text-column: it names a column of --data, which is missing"),
    ("--task own-data", "--task: 'own-data' is unknown"),
]


@pytest.mark.parametrize(("line", "what"), BAD, ids=[b[0] for b in BAD])
def test_options_that_do_not_fit(student: Path, tmp_path: Path, line: str, what: str) -> None:
    places = {"csv": own_file(tmp_path, labels=True), "folder": tmp_path}
    with pytest.raises(UserInputError) as caught:
        infer("--student", student, *line.format(**places).split(), "--out", tmp_path / "run")
    assert what.format(**places) in caught.value.what
    assert caught.value.remedy
    assert not (tmp_path / "run").exists()


def test_other_classes_than_the_tasks_are_refused(student: Path, data_dir: Path, tmp_path: Path) -> None:
    model = with_classes(student, tmp_path / "student", ["ham", "spam"])
    with pytest.raises(UserInputError, match="--student: the model's classes are ham, spam; those of sst2"):
        local_run.check(job_for(model, data_dir), tmp_path / "run")
    options = replace(job_for(student, data_dir), teacher=save_bert(tmp_path / "t", id2label={0: "ham", 1: "spam"}))
    with pytest.raises(UserInputError, match="--teacher: the model's classes are ham, spam"):
        local_run.check(options, tmp_path / "run")


def test_a_student_of_own_data_needs_data(student: Path, tmp_path: Path) -> None:
    folder = with_classes(student, tmp_path / "student", ["ham", "spam"])
    write_json(folder / "config.json", read_json(folder / "config.json") | {"task": OWN_DATA})
    with pytest.raises(UserInputError, match="names no task of the registry") as caught:
        infer("--student", folder)
    assert "--data" in caught.value.remedy


def test_no_folder_for_temporary_files(
    student: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    missing = str(tmp_path / "file" / "folder")
    monkeypatch.setenv("TMPDIR", missing)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [missing])
    for run in (
        lambda: infer("--student", student, "--data-dir", data_dir),
        lambda: local_run.check(job_for(student, data_dir), tmp_path / "run"),
    ):
        with pytest.raises(UserInputError, match=f"TMPDIR: temporary files can be written neither to {missing}"):
            run()


def test_ties_are_told_and_counted_apart(tmp_path: Path, data_dir: Path) -> None:
    """A classifier whose two outputs are nearly alike: all predictions are ties, and none is held against the run."""
    model = save_student(tmp_path / "student", data_dir)
    weights = load_file(model / "model.safetensors")
    weights["classifier.weight"][1] = weights["classifier.weight"][0] + 1e-5
    weights["classifier.bias"] = torch.zeros(2)
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    options = job_for(model, data_dir)
    local_run.check(options, tmp_path / "run")
    values = local_run.run(options, tmp_path / "run")
    assert values["ties"]["predictions"] == 12
    assert 0 <= values["ties"]["agreeing"] <= 12
    assert values["label_agreement"] is None
    told = report.ties_text(values)[0]
    assert told.startswith("12 of 12 predictions are ties: their two largest logits are closer than 0.005")
    assert "12 of 12 predictions: their two largest logits" in render(json.loads(json.dumps(values)))


def test_a_data_owners_file_in_its_configuration(tmp_path: Path) -> None:
    common = {"id": "data-owner", "role": "data-owner", "insecure": {"plaintext": True}}
    peers = {"coordinator": {"id": "c", "address": "127.0.0.1:1"}, "model_owners": ["m"], "dealers": ["d"]}
    config = DataOwnerConfig.model_validate(
        common | peers | {"public_model": "p", "data": {"path": "mine.csv", "text_columns": ["a", "b"]}}
    )
    path = tmp_path / "data-owner.toml"
    path.write_text(to_toml(config))
    loaded = load_party(path)
    assert isinstance(loaded, DataOwnerConfig)
    assert loaded.data == OwnData(tmp_path.resolve() / "mine.csv", ("a", "b"))
    path.write_text(path.read_text() + 'column = "x"\n')
    with pytest.raises(UserInputError, match=r"data\.column"):
        load_party(path)


def test_a_coordinator_knows_own_data_by_the_number_of_outputs_alone() -> None:
    from mpcformer.tasks import job_task

    assert JobDescription(task=OWN_DATA).task == OWN_DATA
    assert job_task(OWN_DATA, 3).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert job_task(OWN_DATA, 1).is_regression
