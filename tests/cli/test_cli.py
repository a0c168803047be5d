"""The command line: help fits a screen, a wrong argument gives a short error, and exit statuses are right."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from typer.testing import CliRunner

from distill.commands import RECIPES
from distill.recipe import CHOICES, PRECISIONS
from experiments.spec import SCALES
from experiments.spec.shapes import SHAPES
from mpcformer import doctor
from mpcformer.approximations import GELU_FORMS, SOFTMAX_FORMS
from mpcformer.cli import build_app, main
from mpcformer.engines.crypten.compat import crypten
from mpcformer.engines.registry import DEFAULT_ENGINE, EMBEDDINGS, engine_names
from mpcformer.errors import UserInputError
from mpcformer.options import INPUT, MACHINE, OUTPUT, PRIVACY, TRAINING
from mpcformer.ring.gemm import DEVICES
from mpcformer.tasks import TASKS
from mpcformer.tasks.registry import EMBEDDING
from parties.runs.cluster import POOLS
from tests.command_lines import parse

COMMANDS = ["demo", "doctor", "teacher", "distill", "infer"]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mpcformer", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def commands() -> dict[str, Any]:
    """Return every command by its words, those of groups too."""
    app: Any = typer.main.get_command(build_app())
    found = {name: command for name, command in app.commands.items() if not hasattr(command, "commands")}
    for name, group in app.commands.items():
        found |= {f"{name} {inner}": command for inner, command in getattr(group, "commands", {}).items()}
    return found


def help_of(command: str) -> list[str]:
    result = CliRunner().invoke(build_app(), [*command.split(), "--help"], env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    return result.output.strip().splitlines()


@pytest.mark.parametrize("command", ["", *commands()])
def test_help_fits_a_screen(command: str) -> None:
    lines = help_of(command)
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("command", commands())
def test_help_groups_options_and_gives_an_example(command: str) -> None:
    lines = help_of(command)
    params = [param for param in commands()[command].params if param.param_type_name == "option"]
    groups = {param.rich_help_panel for param in params}
    assert groups <= {INPUT, OUTPUT, PRIVACY, MACHINE, TRAINING}
    assert len(groups) > 1 or len(params) < 4
    assert groups == {line.split()[1] if " and " not in line else TRAINING for line in lines if line[0] == "╭"} - {
        "Arguments"
    }
    (example,) = (line for line in lines if "Example: " in line)
    assert f"mpcformer {command} " in example
    parse(example.partition("Example: ")[2])


@pytest.mark.parametrize("command", commands())
def test_help_shows_all_of_each_text(command: str) -> None:
    """Rich drops what it takes for markup; a long line may be cut."""
    shown = " ".join(" ".join(help_of(command)).replace("│", " ").split())
    for param in commands()[command].params:
        names = getattr(param.callback, "names", None)
        text = param.help.replace("{}", ", ".join(names() if names else ()))
        assert text.strip()
        # What is hidden is named where another option tells of it.
        assert (param.opts[0] if getattr(param, "hidden", False) else text) in shown
        if names:
            assert "{}" in param.help


@pytest.mark.parametrize(
    ("command", "option", "known"),
    [
        ("infer", "--task", TASKS),
        ("infer", "--engine", engine_names()),
        ("infer", "--embeddings", EMBEDDINGS),
        ("infer", "--device", DEVICES),
        ("infer", "--gelu", GELU_FORMS),
        ("infer", "--softmax", SOFTMAX_FORMS),
        ("teacher", "--task", TASKS),
        ("teacher", "--precision", PRECISIONS),
        ("distill-general", "--task", TASKS),
        ("distill-general", "--gelu", GELU_FORMS),
        ("distill", "--task", [*TASKS, EMBEDDING]),
        ("distill", "--softmax", SOFTMAX_FORMS),
        ("distill", "--objective", CHOICES["objective"]),
        ("distill", "--recipe", RECIPES),
        ("bench", "--engine", engine_names()),
        ("bench", "--device", DEVICES),
        ("bench", "--model", SHAPES),
        ("estimate", "--engine", engine_names()),
        ("estimate", "--gelu", GELU_FORMS),
        ("replay", "--scale", SCALES),
        ("replay", "--pool", POOLS),
    ],
)
def test_choices_are_listed_completed_and_refused_by_name(command: str, option: str, known: Iterable[str]) -> None:
    shown = " ".join(" ".join(help_of(command)).replace("│", " ").split())
    assert ", ".join(known) in shown
    arguments = ["glue"] if command == "replay" else []
    typed = " ".join(["mpcformer", command, *arguments, option, ""])
    assert completed(typed) == list(known)
    with pytest.raises(UserInputError, match=f"{option}: 'nothing' is unknown") as caught:
        CliRunner().invoke(build_app(), [command, *arguments, option, "nothing"], catch_exceptions=False)
    assert caught.value.exit_code == 2
    assert ", ".join(known) in caught.value.remedy


def completed(typed: str) -> list[str]:
    """Return what bash is told to offer at the end of a line."""
    asked = {"_MPCFORMER_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()))}
    result = CliRunner().invoke(build_app(), [], prog_name="mpcformer", env=asked)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_a_former_name_of_the_engine_is_taken_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    (param,) = (param for param in commands()["infer"].params if param.name == "engine")
    assert param.callback(None, param, "mpcformer") == DEFAULT_ENGINE
    assert f"the engine mpcformer is now called {DEFAULT_ENGINE}" in capsys.readouterr().err
    assert param.callback(None, param, DEFAULT_ENGINE) == DEFAULT_ENGINE
    assert capsys.readouterr().err == ""


def test_the_shell_can_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    script = CliRunner().invoke(build_app(), ["--show-completion", "bash"], prog_name="mpcformer")
    assert script.exit_code == 0
    assert "complete -o default -F _mpcformer_completion mpcformer" in script.output


def test_help_lists_the_commands_in_the_order_of_use_without_loading_torch() -> None:
    slow = "{'torch', 'starlette', 'uvicorn'}"
    code = f"import sys; from mpcformer.cli import build_app; build_app(); assert not {slow} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    output = CliRunner().invoke(build_app(), ["--help"]).output
    places = [output.index(f"│ {name} ") for name in COMMANDS]
    assert places == sorted(places)


def test_an_expected_error_is_two_lines_and_a_status(tmp_path: Path) -> None:
    result = run("infer", "--student", tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert f"{tmp_path} is not a checkpoint: config.json and model.safetensors missing" in result.stderr
    what, remedy = result.stderr.splitlines()
    assert what.startswith("error: ")
    assert remedy.startswith("fix: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["infer"], "error: mpcformer infer: Missing option '--student'"),
        (["infer", "--limit", "x", "--student", "s"], "error: mpcformer infer: Invalid value for '--limit'"),
        (["infer", "--bogus"], "error: mpcformer infer: No such option: --bogus"),
        (["nosuch"], "error: mpcformer: No such command 'nosuch'"),
        (["certs", "init"], "error: mpcformer certs init: Missing option '--party'"),
    ],
)
def test_wrong_arguments_look_like_every_other_error(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mpcformer", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    what, remedy = said.err.splitlines()
    assert what.startswith(message)
    assert remedy.startswith("fix: see mpcformer ")


def test_the_exit_status_of_a_command_is_the_programs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(doctor.PACKAGES, "nowhere-to-be-found", (None, "pip install nowhere"))
    for arguments, status in ((["doctor"], 6), (["--version"], None), ([], 2)):
        monkeypatch.setattr(sys, "argv", ["mpcformer", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert (end.value.code or None) == status
    assert capsys.readouterr().err == ""


def test_an_interrupt_is_said_and_has_its_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> list[doctor.Finding]:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "checks", interrupted)
    monkeypatch.setattr(sys, "argv", ["mpcformer", "doctor"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_wrong_task_names_the_right_ones(tmp_path: Path) -> None:
    result = run("teacher", "--task", "sst-2", "--out", tmp_path / "t")
    assert result.returncode == 2
    assert "'sst-2' is unknown" in result.stderr
    assert "sst2" in result.stderr
    assert not list(tmp_path.iterdir())


def test_loading_does_not_look_for_cycles_as_often_as_python_does() -> None:
    code = """
import gc, sys
from mpcformer.cli import main
sys.argv, usual = ["mpcformer", "--version"], gc.get_threshold()
try:
    main()
except SystemExit:
    print(gc.get_threshold() > usual)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.endswith("True\n"), result.stderr


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
