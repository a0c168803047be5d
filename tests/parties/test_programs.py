"""Programs between processes: dealer, model owner and data owner, on this machine."""

import time
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from mpcformer.errors import MPCFormerError, PartyError, ProtocolError, UserInputError
from parties.programs import command, local

FILES = Path(__file__).parents[1] / "programs" / "files"


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """Save inputs of the regressions."""
    generator = np.random.default_rng(0)
    shapes = {"x": (100, 20), "w": (20, 1), "b": (1,)}
    for name, shape in shapes.items():
        np.save(tmp_path / f"{name}.npy", generator.uniform(-1, 1, shape))
    return {name: tmp_path / f"{name}.npy" for name in shapes}


def program(folder: Path, body: str) -> Path:
    """Write a program of x (3,), the data owner's, that the model owner has a number for."""
    text = "import time\nimport crypten\nimport mpcformer\nfrom mpcformer import owner\n"
    text += 'INPUTS = {"x": owner("data", (3,)), "w": owner("model", (3,))}\n'
    text += "def real():\n    return type(crypten.communicator.get()._state.channel).__name__ == 'PeerChannel'\n"
    text += '@mpcformer.program(inputs=INPUTS, reveal={"y": "data"})\ndef p(x, w):\n'
    path = folder / "program.py"
    path.write_text(text + "".join(f"    {line}\n" for line in body.splitlines()))
    for name in "xw":
        np.save(folder / f"{name}.npy", np.array([1.0, 2.0, 3.0]))
    return path


def run_small(folder: Path, body: str, **options: float) -> local.ProgramRun:
    path = program(folder, body)
    files = {name: folder / f"{name}.npy" for name in "xw"}
    return local.run_here(str(path), files, folder / "out", **options)  # type: ignore[arg-type]


def test_a_run_leaves_the_declared_results_and_costs_what_was_told(inputs: dict[str, Path], tmp_path: Path) -> None:
    name = str(FILES / "regression.py:logistic")
    done = local.run_here(name, inputs, tmp_path / "out")
    x, w, b = (np.load(inputs[key]) for key in "xwb")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["y.npy"]
    assert np.abs(np.load(tmp_path / "out" / "y.npy") - 1 / (1 + np.exp(-x @ w - b))).max() <= 0.003
    data, model = done.reports["data-owner"], done.reports["model-owner"]
    assert data["rounds"] == done.plan.rounds
    assert data["correlations"] == model["correlations"] == len(done.plan.requests)
    measured = data["bytes_received"] + model["bytes_received"]
    told = sum(done.plan.bytes_sent) + command.FRAME_BYTES * 2 * done.plan.n_messages
    assert measured == pytest.approx(told, rel=0.1)
    assert model["bytes_from_dealer"] == pytest.approx(done.plan.dealer_bytes, rel=0.1)
    with pytest.raises(UserInputError, match="exists"):
        local.run_here(name, inputs, tmp_path / "out")


@pytest.mark.slow
def test_a_plan_that_exceeds_the_pool_is_dealt_while_it_runs(tmp_path: Path) -> None:
    done = run_small(tmp_path, 'return {"y": (x * w).square()}', pool_mib=0)
    assert np.load(tmp_path / "out" / "y.npy") == pytest.approx([1, 16, 81], abs=0.01)
    assert done.reports["model-owner"]["correlations"] == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        # What the dry run cannot see: only the model owner, and only in a run, gets here.
        (
            'me = crypten.communicator.get()\nif me.rank == 0 and real():\n    time.sleep(600)\nreturn {"y": x * w}',
            PartyError,
            "model-owner: .*3 s",
        ),
        (
            'if real():\n    x.get_plain_text()\nreturn {"y": x * w}',
            UserInputError,
            "opens a value",
        ),
        (
            'y = x * w if not real() else x.square()\nreturn {"y": y}',
            ProtocolError,
            "was planned as",
        ),
        (
            'if real():\n    raise ValueError(x)\nreturn {"y": x * w}',
            UserInputError,
            "ValueError at",
        ),
    ],
    ids=["waits for ever", "opens", "asks for another correlation", "fails"],
)
def test_what_shows_in_a_run_alone_is_refused_by_name_and_leaves_nothing(
    tmp_path: Path, body: str, error: type[MPCFormerError], message: str
) -> None:
    start = time.monotonic()
    with pytest.raises(error, match=message):
        run_small(tmp_path, body, patience_s=3.0)
    assert not (tmp_path / "out").exists()
    assert time.monotonic() - start < 120


def test_inputs_that_are_not_as_declared_are_refused_before_anything_starts(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "make_certificates", lambda *_: pytest.fail("something was started"))
    name, out = str(FILES / "regression.py:linear"), tmp_path / "out"
    np.save(tmp_path / "short.npy", np.zeros((99, 20)))
    for changed, message in [
        (inputs | {"x": tmp_path / "short.npy"}, r"shape \(99, 20\), declared is \(100, 20\)"),
        (inputs | {"v": inputs["x"]}, "has no such input"),
        ({"x": inputs["x"]}, "w, b is missing"),
        (inputs | {"x": tmp_path / "none.npy"}, "there is no file"),
    ]:
        with pytest.raises(UserInputError, match=message):
            local.run_here(name, changed, out)
    assert not out.exists()


def test_the_command_tells_the_cost_alone(inputs: dict[str, Path]) -> None:
    app = typer.Typer()
    app.command()(command.run)
    told = CliRunner().invoke(app, [str(FILES / "regression.py:logistic"), "--plan"])
    assert told.exit_code == 0, told.output
    assert "planned by a run on zeros" in " ".join(told.output.split())
    assert "rounds" in told.output
    for arguments, message in [
        ([], "--out: there is none"),
        (["--out", "o"], "--input: there is none"),
        (["--input", "x"], "is not NAME=FILE"),
        (["--input", "x=a", "--input", "x=b"], "is given twice"),
    ]:
        failed = CliRunner().invoke(app, [str(FILES / "regression.py:logistic"), *arguments])
        assert isinstance(failed.exception, UserInputError)
        assert message in failed.exception.what


@pytest.mark.slow
def test_owners_with_different_files_do_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data owner's copy of the file differs in a line that changes no shape and no correlation."""
    tasks = local._tasks

    def changed(*args: object) -> list[local.Task]:
        from dataclasses import replace

        from mpcformer.programs import load_program

        dealer, model, data = tasks(*args)  # type: ignore[arg-type]
        other = tmp_path / "other"
        other.mkdir()
        path = program(other, 'return {"y": w * x}')
        return [dealer, model, replace(data, program=str(path), digest=load_program(path).digest)]

    monkeypatch.setattr(local, "_tasks", changed)
    with pytest.raises(ProtocolError, match="the program's file"):
        run_small(tmp_path, 'return {"y": x * w}')
    assert not (tmp_path / "out").exists()
