"""Programs between processes: dealer, model owner and data owner, on this machine."""

import time
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from experiments.programs import cases
from mpcformer.errors import MPCFormerError, UserInputError
from parties.programs import command, local
from parties.runs import local_services

FILES = Path(cases.__file__).parent


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
    assert done.report["rounds"] == done.told["owner_rounds"][1] == done.told["rounds"]
    assert done.report["correlations"] == done.told["n_requests"]
    measured = done.report["bytes_received"] + done.report["bytes_sent"]
    assert measured == pytest.approx(command.told_bytes(done.told), rel=0.1)
    with pytest.raises(UserInputError, match="exists"):
        local.run_here(name, inputs, tmp_path / "out")


@pytest.mark.slow
def test_a_plan_that_exceeds_the_pool_is_dealt_while_it_runs(tmp_path: Path) -> None:
    body = "wide = x.view(3, 1).expand(3, 40000)\nfor _ in range(3):\n    wide = wide * w.view(3, 1)\n"
    done = run_small(tmp_path, body + 'return {"y": wide.sum(dim=1) / 40000}', pool_mib=1)
    assert done.told["dealer_bytes"] > 4 << 20
    assert np.load(tmp_path / "out" / "y.npy") == pytest.approx([1, 16, 81], abs=0.01)
    assert done.report["correlations"] == done.told["n_requests"]


@pytest.mark.slow
def test_keys_that_exceed_the_pool_are_passed_on_while_it_runs(tmp_path: Path) -> None:
    body = "wide = x.view(3, 1).expand(3, 400)\nfor _ in range(3):\n    wide = (wide > w.view(3, 1)) + wide\n"
    path = program(tmp_path, body + 'return {"y": wide.sum(dim=1) / 400}')
    path.write_text(path.read_text().replace('reveal={"y": "data"}', 'reveal={"y": "data"}, comparisons="keys"'))
    np.save(tmp_path / "w.npy", np.array([0.0, 3.5, 3.0]))
    done = local.run_here(str(path), {name: tmp_path / f"{name}.npy" for name in "xw"}, tmp_path / "out", pool_mib=1)
    assert done.told["passed_on_bytes"] > 4 << 20
    assert np.load(tmp_path / "out" / "y.npy") == pytest.approx([4, 2, 3], abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        # What the dry run cannot see; tests/parties/test_deployed_programs.py has more of it.
        (
            'me = crypten.communicator.get()\nif me.rank == 0 and real():\n    time.sleep(600)\nreturn {"y": x * w}',
            3,
            "model-owner: .*3 s",
        ),
        ('if real():\n    x.get_plain_text()\nreturn {"y": x * w}', 2, "opens a value"),
        ('y = x * w if not real() else x.square()\nreturn {"y": y}', 4, "was planned as"),
    ],
    ids=["waits for ever", "opens", "asks for another correlation"],
)
def test_what_shows_in_a_run_alone_is_refused_by_name_and_leaves_nothing(
    tmp_path: Path, body: str, status: int, message: str
) -> None:
    start = time.monotonic()
    with pytest.raises(MPCFormerError, match=message) as caught:
        run_small(tmp_path, body, patience_s=3.0)
    assert caught.value.exit_code == status
    assert not (tmp_path / "out").exists()
    assert time.monotonic() - start < 120


def test_inputs_that_are_not_as_declared_are_refused_before_anything_starts(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_services, "make_certificates", lambda *_: pytest.fail("something was started"))
    name, out = str(FILES / "regression.py:linear"), tmp_path / "out"
    np.save(tmp_path / "short.npy", np.zeros((99, 20)))
    for changed, message in [
        (inputs | {"x": tmp_path / "short.npy"}, r"shape \(99, 20\), declared is \(100, 20\)"),
        (inputs | {"v": inputs["x"]}, "has no such input"),
        ({"x": inputs["x"]}, "w, b of linear is missing"),
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
        (["--out", "o"], "input: x, w, b of logistic is missing"),
        (["--config", str(FILES / "regression.py"), "--out", "o"], "--config: inputs, results, threads and limits"),
        (["--input", "x"], "is not NAME=FILE"),
        (["--input", "x=a", "--input", "x=b"], "is given twice"),
    ]:
        failed = CliRunner().invoke(app, [str(FILES / "regression.py:logistic"), *arguments])
        assert isinstance(failed.exception, UserInputError)
        assert message in failed.exception.what
