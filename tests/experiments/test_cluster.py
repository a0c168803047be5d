"""Test trainings on other machines with a made-up Ray: numbers of calls and cores, and the errors.

`test_replay.py` has a test with the real Ray.
"""

import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill.recipe import TeacherRecipe
from experiments.kinds import models
from experiments.kinds.madeup import write_data, write_model
from experiments.kinds.models import ModelCache, Training, examples_digest, make_elsewhere, model_digest
from experiments.replay import ReplayOptions, run
from mpcformer.errors import DependencyError, MPCFormerError, UserInputError
from mpcformer.tasks import get_task, load_examples
from parties.runs import cluster
from parties.runs.cluster import Call
from tests.ports import free_port


class RayError(Exception):
    """An error like Ray's own; `cause` is the exception that the call raised."""

    def __init__(self, text: str, cause: Exception | None = None) -> None:
        super().__init__(text)
        self.cause = cause


class MadeUpRay:
    """A cluster that runs the newest task first, when somebody waits for a task. `at` is called before each task."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, *machines: dict[str, float]) -> None:
        self.machines = machines or ({"CPU": 4.0},)
        self.asked: list[dict[str, Any]] = []
        self.tasks: dict[int, Callable[[], None]] = {}
        self.most, self.up, self.resources = 0, False, dict[str, int]()
        self.refusal: Exception | None = None
        self.at: Callable[[], None] = lambda: None

    def init(self, **options: Any) -> None:
        if self.refusal:
            raise self.refusal
        self.asked.append(options)
        self.up = True

    def shutdown(self) -> None:
        self.up = False

    def nodes(self) -> list[dict[str, Any]]:
        dead = {"Alive": False, "Resources": {"CPU": 1.0}}
        return [dead, *({"Alive": True, "Resources": machine} for machine in self.machines)]

    def remote(self, **resources: int) -> Callable[..., Any]:
        self.resources = resources

        def submit(function: Callable[..., None], *arguments: Any) -> int:
            number = len(self.asked) + len(self.tasks) + self.most * 1000
            while number in self.tasks:
                number += 1
            self.tasks[number] = lambda: function(*arguments)
            return number

        return lambda function: SimpleNamespace(remote=lambda *arguments: submit(function, *arguments))

    def wait(self, tasks: list[int], num_returns: int) -> tuple[list[int], list[int]]:
        assert self.up
        assert num_returns == 1
        self.most = max(self.most, len(tasks))
        return tasks[-1:], tasks[:-1]

    def get(self, task: int) -> None:
        self.at()
        try:
            self.tasks.pop(task)()
        except RayError:
            raise
        except Exception as error:
            raise RayError("a stack\nof many lines", error) from error


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> MadeUpRay:
    made_up = MadeUpRay()
    monkeypatch.setitem(sys.modules, "ray", made_up)  # type: ignore[arg-type]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    return made_up


def calls(n: int) -> list[Call]:
    return [Call(f"call {number}", (number,)) for number in range(n)]


def test_so_many_at_a_time_and_all_are_done(ray: MadeUpRay, capsys: pytest.CaptureFixture[str]) -> None:
    done: list[tuple[int, int]] = []
    cluster.run(lambda number, threads: done.append((number, threads)), calls(5), jobs=2, address=None, gpu=False)
    assert sorted(done) == [(number, 2) for number in range(5)]
    assert (ray.most, ray.up, ray.tasks) == (2, False, {})
    assert ray.asked[0]["address"] == "local"
    said = capsys.readouterr().out
    assert "1/5 trained" in said
    assert "5/5 trained" in said


@pytest.mark.parametrize(
    ("machines", "jobs", "gpu", "threads"),
    [
        ([{"CPU": 16.0}, {"CPU": 16.0}], 2, False, 16),
        ([{"CPU": 16.0}, {"CPU": 16.0}], 1, False, 16),  # a call runs on one machine
        ([{"CPU": 16.0}, {"CPU": 4.0}], 2, False, 4),  # the call must fit on either machine
        ([{"CPU": 2.0}], 5, False, 1),
        ([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 2.0}], 8, True, 8),
        ([{}, {"CPU": 8.0}], 2, False, 4),  # a head node without cores
    ],
)
def test_cores_of_a_call(ray: MadeUpRay, machines: Any, jobs: int, gpu: bool, threads: int) -> None:
    ray.machines, given = machines, list[int]()
    cluster.run(lambda number, threads: given.append(threads), calls(1), jobs=jobs, address=None, gpu=gpu)
    assert given == [threads]
    assert ray.resources == {"num_cpus": threads, "num_gpus": int(gpu)}


def test_without_a_machine_that_would_do_nothing_waits_for_ever(ray: MadeUpRay) -> None:
    with pytest.raises(UserInputError, match="none of 1 machines has a GPU, as this one does"):
        cluster.run(lambda *_: None, calls(1), jobs=1, address=None, gpu=True)
    ray.machines = ({"memory": 1.0},)
    with pytest.raises(UserInputError, match="none of 1 machines has a core"):
        cluster.run(lambda *_: None, calls(1), jobs=1, address=None, gpu=False)
    assert not ray.up


def test_after_a_failure_what_is_under_way_is_finished_and_no_more(ray: MadeUpRay) -> None:
    done: list[int] = []

    def work(number: int, threads: int) -> None:
        done.append(number)
        if number in (1, 0):
            raise UserInputError(f"{number} is bad", "mend it")

    with pytest.raises(UserInputError, match="1 is bad") as caught:
        cluster.run(work, calls(5), jobs=2, address=None, gpu=False)
    assert done == [1, 0]
    assert (caught.value.remedy, ray.up) == ("mend it", False)


def test_a_failure_of_rays_own_is_told_by_its_last_line(ray: MadeUpRay) -> None:
    def work(number: int, threads: int) -> None:
        raise RayError("Traceback\n  in a worker\nThe worker died: out of memory\n")

    with pytest.raises(MPCFormerError, match=r"call 0: The worker died: out of memory\n.*same command again"):
        cluster.run(work, calls(1), jobs=1, address=None, gpu=False)
    with pytest.raises(MPCFormerError, match="call 0: of many lines"):
        cluster.run(lambda *_: 1 / 0, calls(1), jobs=1, address=None, gpu=False)  # type: ignore[arg-type, return-value]


def test_without_ray_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DependencyError, match=r"--pool ray: the ray package is missing\n.*pip install 'ray>="):
        run(ReplayOptions("glue", scale="smoke", out=tmp_path / "out", models=tmp_path / "models", pool="ray"))
    assert not list(tmp_path.iterdir())


def test_nobody_at_the_address(ray: MadeUpRay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    for where in (address, f"ray://{address}", "127.0.0.1:99999999"):
        with pytest.raises(UserInputError, match=f"--ray-address: no Ray cluster at '{where}'"):
            ModelCache(tmp_path / "models", pool="ray", ray_address=where)
    with monkeypatch.context() as patch:
        patch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserInputError, match=f"no Ray cluster at '{address}'"):
            ModelCache(tmp_path / "models", pool="ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        ModelCache(tmp_path / "models", pool="ray", ray_address=f"127.0.0.1:{server.getsockname()[1]}")
    ModelCache(tmp_path / "models", pool="ray", ray_address="auto")
    ray.refusal = ConnectionError("Could not find any running Ray instance")
    with pytest.raises(UserInputError, match=r"no Ray cluster at 'auto': Could not find(.|\n)*ray start --head"):
        cluster.run(lambda *_: None, calls(1), jobs=1, address="auto", gpu=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "spark"}, "--pool: 'spark' is unknown"),
        ({"ray_address": "auto"}, "--ray-address: auto is for --pool ray"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        run(ReplayOptions("glue", scale="smoke", out=tmp_path / "out", models=tmp_path / "models", **options))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    """The training of a teacher on made-up data, with relative paths."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    base, data, task = write_model(Path("base")), write_data(Path("data"), get_task("sst2")), get_task("sst2")
    recipe = TeacherRecipe(
        task="sst2", model=str(base), data_dir=data, limit=64, epochs=1, max_length=32, precision="fp32"
    )
    digest = examples_digest(load_examples(task, task.train_split, data_dir=data, limit=64))
    return Training("the teacher", recipe, digest, model_digest(base), torch_threads=1)


def test_models_are_made_by_a_process_in_another_folder(
    ray: MadeUpRay, training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ModelCache(Path("models"), jobs=2, pool="ray")
    ray.at = lambda: monkeypatch.chdir(tmp_path)
    ray.shutdown = lambda: monkeypatch.chdir(tmp_path / "here")  # type: ignore[method-assign]
    assert cache.provide([training, replace(training, torch_threads=2)]) == 2
    assert cache.provide([training]) == 0
    assert len(ray.asked) == 1, "what is there asks no cluster"
    assert (cache.path(training) / "model.safetensors").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"here"}
    assert not list((tmp_path / "here" / "models").glob(".sign*"))


def test_a_folder_that_does_not_show_what_was_made_is_named(
    ray: MadeUpRay, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "make_elsewhere", lambda *_: None)
    monkeypatch.setattr(models, "SHARED_S", 0.0)
    with pytest.raises(MPCFormerError, match=f"models/{training.name} was made on another machine and is missing here"):
        ModelCache(Path("models"), pool="ray").provide([training])


def test_a_machine_that_sees_or_would_make_something_else_makes_nothing(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, sign = tmp_path / "models", tmp_path / "models" / ".sign"
    cache.mkdir()
    whole, host = training.absolute(), socket.gethostname()

    def refused(training: Training, message: str, facts: dict[str, Any] | None = None) -> None:
        with pytest.raises(UserInputError, match=message) as caught:
            make_elsewhere(training, cache, facts or training.facts(), sign, 1)
        assert host in caught.value.what
        assert [path.name for path in cache.iterdir()] in ([], [".sign"])

    refused(whole, f"machine {host} does not see the replay's files in {cache}")
    sign.touch()
    elsewhere = replace(whole.recipe, data_dir=tmp_path / "nowhere")
    refused(replace(whole, recipe=elsewhere), f"has no {tmp_path / 'nowhere'}")
    refused(replace(whole, recipe=replace(whole.recipe, model="/no/bert")), "has no /no/bert")  # type: ignore[call-arg]
    refused(replace(whole, source="0" * 64), "base is another checkpoint")
    asked = whole.facts() | {"device": "cuda", "versions": {**whole.facts()["versions"], "torch": "1.0"}}
    ours = whole.facts()["versions"]["torch"]
    refused(whole, f"would make another model: device cpu, not cuda; torch {ours.replace('+', '.')}, not 1.0", asked)
    make_elsewhere(whole, cache, whole.facts(), sign, 1)
    assert (cache / training.name).is_dir()
