"""What reaches the terminal is what was said: no bracket is taken for markup, in any command's table or message."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import distill.commands
import experiments
import mpcformer
import parties
from distill.ready import RUNS
from experiments import bench_command, estimate, replay, transport
from experiments.records import compare
from experiments.spec.outputs import Tolerances
from experiments.spec.spec import find, load
from mpcformer import doctor
from mpcformer.console import PlainTable, console, err_console, progress, show_error
from mpcformer.engines.stopwatch import OPERATIONS
from mpcformer.errors import MPCFormerError
from parties.runs import report
from parties.runs.network import PROFILES
from parties.settings.config import Insecure
from parties.settings.insecure import warn

ODD = "[red]runs[/red]/[s] :lock:"


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def test_a_table_shows_what_it_is_given_on_any_console() -> None:
    grid = PlainTable(f"title {ODD}", "time [s]", f"size {ODD}")
    grid.add_row("[MiB]", ODD, end_section=True)
    for markup in (True, False):
        file = io.StringIO()
        Console(file=file, width=200, markup=markup).print(grid)
        for text in (f"title {ODD}", "time [s]", f"size {ODD}", "[MiB]"):
            assert text in file.getvalue()


def test_messages_rules_and_progress_show_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    console.print(ODD)
    console.rule(f"rule {ODD}", align="left")
    err_console.print(f"error {ODD}")
    with progress() as bar:
        bar.add_task("task [s]", total=1, info="info [MiB]")
    said = capsys.readouterr()
    assert said.out.count(ODD) == 2
    assert f"error {ODD}" in said.err
    assert "task [s]" in said.out
    assert "info [MiB]" in said.out


def test_a_spinner_shows_brackets() -> None:
    assert str(console.status(ODD).renderable.text) == ODD  # type: ignore[attr-defined]


def test_an_error_is_labelled_and_has_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(f"--out: {ODD} is a file\x1b[2J", f"remove {ODD}")
    show_error("no remedy")
    said = capsys.readouterr().err.splitlines()
    assert said == [f"error: --out: {ODD} is a file\\x1b[2J", f"fix: remove {ODD}", "error: no remedy"]


def test_the_insecure_warning_shows_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    warn(Insecure(plaintext=True))
    assert "INSECURE" in capsys.readouterr().err


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    doctor._show(ODD, [doctor.Finding(f"check {ODD}", f"found {ODD}", f"fix {ODD}")], "all well")
    said = capsys.readouterr().out
    for text in (ODD, f"check {ODD}", f"found {ODD}", f"fix {ODD}"):
        assert text in said


def test_distill(capsys: pytest.CaptureFixture[str]) -> None:
    record = {"task": ODD, "n_selection": 5, "n_training": 9, "engines": {"e": RUNS, "f": f"no {ODD}"}}
    distill.commands._report(Path(f"out {ODD}"), record, {f"model {ODD}": 0.5})
    said = capsys.readouterr().out
    for text in (f"{ODD}: out {ODD}", f"model {ODD}", f"no {ODD}"):
        assert text in said


def test_infer_and_coordinate(capsys: pytest.CaptureFixture[str]) -> None:
    report.show(run_values(), Path(ODD))
    said = capsys.readouterr().out
    assert f"task {ODD}: 2 examples of split {ODD}" in said
    assert f"Everything is in {ODD} (" in said
    assert f"{ODD}/report.html" in said


def run_values() -> dict[str, Any]:
    times = {"median": 0.1, "p95": 0.2}
    return {
        "task": f"task {ODD}",
        "examples": 2,
        "split": [f"split {ODD}"],
        "student": None,
        "engine": "e",
        "embeddings": "private_table",
        "metrics": {"teacher": None, "student": None, "private": {"accuracy": 0.5}},
        "plaintext": {"seconds_per_example": {}},
        "refused": {"examples": 0, "ids": []},
        "whole": {"seconds": 2.0, "seconds_per_example": 0.5},
        "online": {"seconds_per_example": times, "seconds": 1.0, "bytes": {"a->b": 5}, "rounds_per_batch": 7},
        "offline": {"seconds": 1.0, "bytes": {"dealer->model-owner": 5}},
        "setup": {"seconds": 1.0},
        "batch_size": 2,
        "threat_model": {"parties": "p", "network": "n", "leaks": "l"},
    }


def test_estimate(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    estimate.run(str(student), None, 8, 1, ("crypten",), PROFILES["lan"])
    said = capsys.readouterr().out
    assert re.search(r"│ online bytes \[MiB\] ", said)
    assert re.search(r"│ .* Mbit/s \[s\] ", said)
    assert "┃ quantity" in said


def test_bench(capsys: pytest.CaptureFixture[str]) -> None:
    engine: dict[str, Any] = dict.fromkeys(
        ["online_seconds", "offline_seconds", "online_bytes", "offline_bytes", "dealer_bytes", "setup_bytes", "rounds"],
        1,
    )
    engine |= {
        "peak_rss_bytes": dict.fromkeys(("model-owner", "data-owner", "dealer"), 1),
        "breakdown": dict.fromkeys(OPERATIONS, 1.0),
        "sentences_per_second": 2.5,
    }
    values = {
        "model": f"model {ODD}", "layers": 1, "gelu": "quad", "softmax": "2quad", "strides": [], "precision": "wide",
        "batch_size": 1, "batches": 3, "overlap": False, "seq_len": 8,
        "threads_per_party": 1, "network": {"profile": "none"}, "engines": {"e": engine},
    }  # fmt: skip
    bench_command.show(values)
    said = capsys.readouterr().out
    for text in (
        f"model {ODD}: ",
        "┃ quantity",
        "│ online seconds [s] ",
        "│ dealer bytes [MiB] ",
        "dealer [MiB] ",
        "second, 3 batches",
    ):
        assert text in said
    both = {transport.TLS: 0.5, transport.PLAINTEXT: 0.25}
    found = {"online_seconds": both, "online_seconds_fastest": both, "ratio": 2.0, "ratio_fastest": 2.0, "ratios": [2]}
    transport._show(values | {"engines": {"e": found}})
    said = capsys.readouterr().out
    for text in (f"model {ODD}: ", "mutual TLS [s] ", "plaintext [s] ", "┃ engine, batch"):
        assert text in said


@pytest.mark.parametrize("name", ["breakdown", "ablation-data", "forms"])
def test_replay(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    spec = load(find(name))
    points: dict[str, list[Any]] = {"share": [0.01, 1.0], "engine": ["crypten"], "operation": ["linear [s]"]}
    rows = [
        {
            "key": {axis: points.get(axis, [ODD])[-1] for axis in table.rows}
            | ({table.columns: point} if point else {}),
            "values": dict.fromkeys(table.values, 1.0),
        }
        for table in spec.tables
        for point in points.get(table.columns or "", [None])
    ]
    replay._show(spec, {"settings": {"data": "real"}, "rows": rows})
    said = capsys.readouterr().out
    for table in spec.tables:
        assert table.title in said
    for text in {
        "breakdown": ["online [s/batch]", "online traffic [MiB/batch]", "[s/batch], by engine", "│ linear [s] "],
        "ablation-data": ["by share of the training data", "┃ share 0.01 ┃ share 1 ", f"│ {ODD} "],
        "forms": ["form of GeLU", "form of softmax", "dealer traffic [MiB/example]", f"│ {ODD} "],
    }[name]:
        assert text in said
    heads = [line for line in said.splitlines() if line.startswith("┃")]
    assert heads
    assert not [line for line in heads if re.search(r"┃ +┃", line)]


def test_replay_compared_with_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    recorded, new = ({"rows": [{"key": {"model": ODD}, "values": {"score": x}}]} for x in (0.0, 1.0))
    with pytest.raises(MPCFormerError, match="1 of 1 rows differ"):
        compare.check(recorded, new, Tolerances(), Path(f"record {ODD}"))
    said = capsys.readouterr().out
    assert f"Differences from record {ODD}" in said
    assert f"│ {ODD} " in said


def test_no_other_module_makes_a_console_or_a_table() -> None:
    for package in (mpcformer, parties, distill, experiments):
        folder = Path(str(package.__file__)).parent
        for path in folder.rglob("*.py"):
            if path.name != "console.py":
                made = re.findall(r"^ *from rich\.(?:table|console|progress|markup) import .*", path.read_text(), re.M)
                assert made in ([], ["from rich.console import Group"]), path
