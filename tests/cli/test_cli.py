"""The command line: help fits a screen, a wrong argument gives a short error, and exit statuses are right."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mpcformer import doctor
from mpcformer.cli import build_app
from mpcformer.engines.crypten.compat import crypten

COMMANDS = ["demo", "teacher", "distill", "infer", "doctor"]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mpcformer", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen(command: str) -> None:
    result = CliRunner().invoke(build_app(), [command, "--help"], terminal_width=120, env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert len(result.output.splitlines()) <= 60


def test_help_lists_the_commands_in_the_order_of_use_without_loading_torch() -> None:
    code = "import sys; from mpcformer.cli import build_app; build_app(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    output = CliRunner().invoke(build_app(), ["--help"]).output
    places = [output.index(f" {name} ") for name in COMMANDS]
    assert places == sorted(places)


def test_an_expected_error_is_two_lines_and_a_status(tmp_path: Path) -> None:
    result = run("infer", "--student", tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "has no config.json" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 3


def test_a_wrong_task_names_the_right_ones(tmp_path: Path) -> None:
    result = run("teacher", "--task", "sst-2", "--out", tmp_path / "t")
    assert result.returncode == 2
    assert "'sst-2' is unknown" in result.stderr
    assert "sst2" in result.stderr
    assert not list(tmp_path.iterdir())


def test_version() -> None:
    assert CliRunner().invoke(build_app(), ["--version"]).output.startswith("mpcformer ")


def test_doctor_finds_everything_here() -> None:
    result = CliRunner().invoke(build_app(), ["doctor"])
    assert result.exit_code == 0, result.output
    assert torch.__version__.startswith("2.13.0")
    assert crypten.__version__ == "0.4.1"


def test_doctor_names_what_is_missing_and_the_line_that_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.PACKAGES, "nowhere-to-be-found", (None, "pip install nowhere"))
    monkeypatch.setitem(doctor.PACKAGES, "torch", ("1.0.0", "pip install torch==1.0.0"))
    result = CliRunner().invoke(build_app(), ["doctor"], env={"COLUMNS": "160"})
    assert result.exit_code == 6
    for text in (
        "nowhere-to-be-found",
        "missing",
        "pip install nowhere",
        "pip install torch==1.0.0",
        "2 of the checks",
    ):
        assert text in result.output
