"""Programs between deployed parties: what is refused, by whom, and what is left afterwards."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpcformer.engines.crypten.compat import crypten
from mpcformer.errors import MPCFormerError, PartyError, ProtocolError, UserInputError
from parties.diagnosis import holdings
from parties.program_process.process import Part, task_of
from parties.programs.deployed import _own_words, run_deployed
from parties.session.data_side import BudgetError
from parties.settings.config import DataOwnerConfig, ProgramEntry
from tests.parties.program_site import DATA_OWNER, MODEL_OWNER, Site, program_site

HEAD = """
import time
import crypten
import mpcformer
import torch
from mpcformer import owner

INPUTS = {"x": owner("data", (3,)), "w": owner("model", (3,))}


def real():
    return type(crypten.communicator.get()._state.channel).__name__ == "PeerChannel"


@mpcformer.program(inputs=INPUTS, reveal={"y": "data", "z": "model"})
def p(x, w):
"""
SLOW = pytest.mark.slow
X, W = np.array([1.0, 2.0, 3.0]), np.array([0.5, -1.0, 2.0])
GOOD = 'return {"y": x * w, "z": x + w}'


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Any]:
    """Start a deployment of one program `score`, whose two copies may differ."""
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "w.npy", W)
    with ExitStack() as running:

        def start(
            model: str = GOOD, data: str | None = None, entries: dict[str, Any] | None = None, **changes: Any
        ) -> Site:
            files = []
            for owner, body in ((MODEL_OWNER, model), (DATA_OWNER, model if data is None else data)):
                path = tmp_path / f"{owner}.py"
                path.write_text(HEAD + "".join(f"    {line}\n" for line in body.splitlines()))
                files.append(path)
            mine = {"name": "score", "file": files[0], "inputs": {"w": tmp_path / "w.npy"}, "limit_s": 30.0}
            theirs = {"name": "score", "file": files[1], "inputs": {"x": tmp_path / "x.npy"}, "limit_s": 30.0}
            more = entries or {}
            programs = [mine | more.get(MODEL_OWNER, {})], [theirs | more.get(DATA_OWNER, {})]
            return running.enter_context(program_site(tmp_path, *programs, **changes))

        yield start


def test_results_are_written_where_they_belong_and_nowhere_else(site: Any) -> None:
    running, told = site(), []
    done = run_deployed(running.config, "score", told.append)
    assert done is not None
    (y,), (z,) = running.results(DATA_OWNER), running.results(MODEL_OWNER)
    assert done.files == [y]
    assert (y.name, z.name) == ("y.npy", "z.npy")
    assert y.parent.name == z.parent.name
    assert np.load(y) == pytest.approx(X * W, abs=0.003)
    assert np.load(z) == pytest.approx(X + W, abs=0.003)
    assert done.report["correlations"] == told[0]["n_requests"]
    # A second run has folders of its own.
    run_deployed(running.config, str(Path(running.folder) / "data-owner.py"))
    assert len(running.results(DATA_OWNER)) == len(running.results(MODEL_OWNER)) == 2
    assert running.is_clean()


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (GOOD, GOOD.replace("x * w", "w * x"), "the owners disagree on: the program's file\n"),
        pytest.param(
            GOOD, GOOD.replace("x * w", "x.square()"), "disagree on: the program's file, the program's plan", marks=SLOW
        ),
        ('x.get_plain_text()\nreturn {"y": x, "z": w}', GOOD, "model-owner: program: get_plain_text at .* opens"),
        (GOOD, 'x.get_plain_text()\nreturn {"y": x, "z": w}', "^program: get_plain_text at data-owner.py:17 opens"),
        pytest.param(
            'return {"y": x + torch.rand(3), "z": w}',
            GOOD,
            "model-owner: program: aten::rand at .* draws from torch's",
            marks=SLOW,
        ),
        (GOOD, 'return {"y": x + torch.rand(3), "z": w}', "^program: aten::rand at .* draws from torch's generator"),
    ],
    ids=["another file", "another plan", "opens there", "opens here", "draws there", "draws here"],
)
def test_owners_that_do_not_agree_share_nothing(site: Any, model: str, data: str, message: str) -> None:
    running = site(model, data)
    with pytest.raises(MPCFormerError, match=message):
        run_deployed(running.config, "score")
    assert not running.results(DATA_OWNER) + running.results(MODEL_OWNER)
    assert not (running.folder / DATA_OWNER).exists()
    assert running.is_clean()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({MODEL_OWNER: {"name": "other"}}, "model-owner: program 'score' is not in model-owner's configuration"),
        ({DATA_OWNER: {"name": "other"}}, "^program 'score' is not in data-owner's configuration"),
        ({MODEL_OWNER: {"inputs": {}}}, "model-owner: input: w of score is missing"),
        ({DATA_OWNER: {"inputs": {}}}, "^input: x of score is missing"),
        pytest.param(
            {MODEL_OWNER: {"inputs": {"w": Path("none.npy")}}},
            "model-owner: input w: the file that its owner names is",
            marks=SLOW,
        ),
        ({DATA_OWNER: {"inputs": {"x": Path("none.npy")}}}, "^--input x: there is no file .*none.npy"),
        pytest.param(
            {MODEL_OWNER: {"inputs": {"x": Path("x.npy")}}},
            "model-owner: input x: score has no such input of this own",
            marks=SLOW,
        ),
        pytest.param(
            {MODEL_OWNER: {"file": Path("none.py")}}, "model-owner: program: its file is not there", marks=SLOW
        ),
        ({MODEL_OWNER: {"out": None}}, "model-owner: programs: this owner learns z of score, and no folder"),
        pytest.param({DATA_OWNER: {"out": None}}, "^programs: this owner learns y of score, and no folder", marks=SLOW),
    ],
    ids=lambda value: "" if isinstance(value, str) else json.dumps(value, default=str),
)
def test_a_file_that_does_not_fit_is_named(site: Any, entries: dict[str, Any], message: str) -> None:
    running = site(entries=entries)
    with pytest.raises(MPCFormerError, match=message):
        run_deployed(running.config, "score")
    assert not running.results(DATA_OWNER) + running.results(MODEL_OWNER)
    assert running.is_clean()


def test_inputs_of_another_shape_are_refused_and_their_shape_is_not_told(site: Any, tmp_path: Path) -> None:
    running = site()
    np.save(tmp_path / "w.npy", np.zeros(7))
    with pytest.raises(PartyError, match="input w: the file that its owner names") as caught:
        run_deployed(running.config, "score")
    assert "7" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    np.save(tmp_path / "w.npy", W)
    np.save(tmp_path / "x.npy", np.zeros((3, 1)))
    with pytest.raises(UserInputError, match=r"has the shape \(3, 1\), declared is \(3,\)"):
        run_deployed(running.config, "score")
    np.save(tmp_path / "x.npy", X)
    run_deployed(running.config, "score")  # the services are well
    assert np.load(running.results(DATA_OWNER)[0]) == pytest.approx(X * W, abs=0.003)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("me = crypten.communicator.get().rank\nif me == 0 and real():\n    time.sleep(600)\n", "model-owner: .* 3 s"),
        pytest.param(
            "me = crypten.communicator.get().rank\nif me == 1 and real():\n    time.sleep(600)\n",
            "data-owner: .* 3 s",
            marks=SLOW,
        ),
        pytest.param(
            "if real():\n    time.sleep(600)\n",
            "-owner: its program score is not done after 8 s",
            marks=SLOW,
        ),
        ("if real():\n    x.get_plain_text()\n", "program: get_plain_text at .* opens a value"),
        ("x = x.square() if real() else x * w\n", "was planned as additive_triple, now square_pair"),
        ("if real():\n    raise ValueError(x)\n", "program: ValueError at .*:18"),
        (
            "import os\nif real() and crypten.communicator.get().rank == 0:\n    os._exit(9)\n",
            "model-owner: .* status 9",
        ),
    ],
    ids=["model owner waits", "data owner waits", "both wait", "opens", "another correlation", "fails", "dies"],
)
def test_what_shows_in_a_run_alone_is_refused_by_name_and_leaves_nothing(site: Any, body: str, message: str) -> None:
    waiting = {"deadline_s": 3.0}
    entries = {party: {"limit_s": 8.0} for party in (MODEL_OWNER, DATA_OWNER)}
    running = site(body + GOOD, entries=entries, model_owner=waiting, data_owner=waiting)
    start = time.monotonic()
    with pytest.raises(MPCFormerError, match=message):
        run_deployed(running.config, "score")
    assert time.monotonic() - start < 40
    assert not running.results(DATA_OWNER) + running.results(MODEL_OWNER)
    assert running.is_clean()


def test_what_a_program_changes_in_its_process_changes_no_other_session(site: Any) -> None:
    """The service is this process: torch's defaults, the working folder and CrypTen's parts stay as they are."""
    body = "import os\nos.chdir('/')\ntorch.set_default_dtype(torch.float64)\n"
    body += "torch.use_deterministic_algorithms(True)\ncrypten.mpc.MPCTensor.relu = None\n"
    running, folder = site(body + GOOD), Path.cwd()
    run_deployed(running.config, "score")
    assert running.results(DATA_OWNER)
    assert running.results(MODEL_OWNER)
    assert folder == Path.cwd()
    assert torch.get_default_dtype() == torch.float32
    assert not torch.are_deterministic_algorithms_enabled()
    assert crypten.mpc.MPCTensor.relu is not None


def test_a_run_counts_against_the_budget_of_the_data_owners_certificate(site: Any) -> None:
    running = site(model_owner={"max_sentences_per_day": 7, "max_sentences": "unlimited"})
    for _ in range(2):  # three numbers each
        run_deployed(running.config, "score")
    with pytest.raises(BudgetError, match="model-owner: the budget of sentences for today is used up") as caught:
        run_deployed(running.config, "score")
    assert caught.value.exit_code == 8
    counts = json.loads((running.folder / "budget.json").read_text())
    assert counts["sentences"] == {DATA_OWNER: 6}
    assert len(running.results(DATA_OWNER)) == 2
    assert running.is_clean()


def test_a_model_owner_can_say_what_a_run_counts_as(site: Any) -> None:
    running = site(entries={MODEL_OWNER: {"counts_as": 5}}, model_owner={"max_sentences_per_day": 9})
    run_deployed(running.config, "score")
    with pytest.raises(BudgetError):
        run_deployed(running.config, "score")
    assert json.loads((running.folder / "budget.json").read_text())["sentences"] == {DATA_OWNER: 5}


def test_audits_hold_for_programs(site: Any) -> None:
    """With a rate of 0.9 hardly a plan is used that was not dealt again before."""
    auditing = {"audit_rate": 0.9}
    running = site(model_owner=auditing, data_owner=auditing)
    done = run_deployed(running.config, "score")
    assert done is not None
    assert np.load(done.files[0]) == pytest.approx(X * W, abs=0.003)
    n_audited = done.report["audited"]
    assert n_audited >= 0
    # On a busy machine the model owner's word may be all that there is; it says the same.
    with pytest.raises((ProtocolError, PartyError), match=r"^(model-owner: )?the owners disagree on: audit_rate\n"):
        run_deployed(changed(running, audit_rate=0.5), "score")


@pytest.mark.parametrize(
    ("own", "verdict", "first"),
    [
        (ProtocolError("they disagree"), PartyError(MODEL_OWNER, "they disagree"), "own"),
        (ProtocolError("they disagree"), PartyError(DATA_OWNER, "it failed"), "own"),
        (ProtocolError("they disagree"), PartyError(MODEL_OWNER, "it ended"), "verdict"),
        (PartyError(MODEL_OWNER, "it ended"), PartyError(DATA_OWNER, "it failed"), "verdict"),
    ],
    ids=["both noticed", "told without words", "another cause", "an accusation"],
)
def test_own_words_are_told_of_what_this_owner_noticed_itself(
    own: MPCFormerError, verdict: MPCFormerError, first: str
) -> None:
    assert _own_words(own, verdict, DATA_OWNER) is (own if first == "own" else verdict)


def changed(running: Site, **keys: Any) -> Path:
    """Write the data owner's file with other keys."""
    text = "".join(f"{name} = {value}\n" for name, value in keys.items())
    lines = [line for line in running.config.read_text().splitlines(True) if line.split(" =")[0] not in keys]
    path = running.config.with_name("changed.toml")
    path.write_text(text + "".join(lines))
    return path


def test_what_an_owner_sends_last_arrives_though_it_is_done(site: Any) -> None:
    running = site('return {"y": x, "z": x.view(3, 1).expand(3, 500000)}')
    run_deployed(running.config, "score")
    assert np.load(running.results(MODEL_OWNER)[0]).shape == (3, 500000)


def test_the_process_of_a_program_ends_with_whoever_started_it(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "p.py").write_text(HEAD + f"    {GOOD}\n")
    entry = ProgramEntry(name="score", file=tmp_path / "p.py", inputs={"x": tmp_path / "x.npy"})
    with Part(task_of(entry, rank=1, threads=1), DATA_OWNER) as part:
        assert part.prepared()["learns"] == ["y"]
        assert part._process.stdin is not None
        part._process.stdin.close()
        assert part._process.wait() == 1


def test_doctor_looks_for_the_files_of_programs(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(HEAD + f"    {GOOD}\n")
    keys = {"role": "data-owner", "id": "d", "insecure": {"plaintext": True}}
    peers = {name: {"id": name, "address": "127.0.0.1:1"} for name in ("dealer", "model_owner")}
    there = {"name": "a", "file": tmp_path / "p.py"}
    named = {"name": "b", "file": tmp_path / "p.py:p", "inputs": {"x": tmp_path / "x.npy"}}
    config = DataOwnerConfig.model_validate(keys | peers | {"programs": [there, named]})
    first, second = holdings.programs(config)
    assert first.found.startswith("p.py with sha256 ")
    assert (second.check, second.status) == ("program b", 2)
    assert "x.npy" in second.found
    assert [row.found for row in holdings.public_models(config)] == ["none: it runs programs alone"]


def test_what_a_program_starts_ends_with_it(site: Any, tmp_path: Path) -> None:
    """A process that it forks, and that would hold the pipes of its own, hinders nobody and does not stay."""
    left = tmp_path / "left"
    body = "import os\nif real() and os.fork() == 0:\n    time.sleep(6)\n"
    body += f"    open({str(left)!r}, 'w').close()\n    os._exit(0)\n"
    start = time.monotonic()
    running = site(body + GOOD)
    run_deployed(running.config, "score")
    assert running.is_clean()
    assert time.monotonic() - start < 6
    time.sleep(max(0.0, 7 + start - time.monotonic()))
    assert not left.exists()
