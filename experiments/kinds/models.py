"""Trained models by what they are made of: a teacher or student with the same facts is trained once.

`<cache>/<hash>/` is the model, `<cache>/<hash>.json` what the hash is of: recipe, digest of the training examples,
weights it starts from, device, precision and versions. Bump FORMAT when a recipe's meaning changes.
"""

import contextlib
import fcntl
import multiprocessing
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distill.general import distill_general
from distill.recipe import DistillRecipe, GeneralRecipe, TeacherRecipe, asked
from distill.student import distill_student
from distill.teacher import train_teacher
from distill.training.loop import autocast, pick_device
from distill.training.workspace import as_json
from distill.versions import versions
from experiments.kinds import POOLS, cluster
from experiments.spec.spec import digest
from mpcformer.console import console
from mpcformer.errors import MPCFormerError, UserInputError
from mpcformer.files import read_json, sha256_file, write_json
from mpcformer.modeling.load import WEIGHTS
from mpcformer.tasks import Examples

Recipe = TeacherRecipe | GeneralRecipe | DistillRecipe

FORMAT = {"teacher": 3, "general": 1, "student": 5}
CHECKPOINT_MINUTES = 5.0
# How long a shared folder may take to show what another machine put there: NFS keeps what it knew for up to a minute.
SHARED_S = 90.0
# Where things lie says nothing about what they are: digests stand in for these.
PLACES = ("teacher", "general", "model", "data_dir")
PARTS = ("config.json", WEIGHTS, "tokenizer.json", "vocab.txt")


def examples_digest(examples: Examples) -> str:
    """Hex SHA-256 of texts, labels and splits."""
    return digest([examples.texts, examples.labels, examples.groups])


def model_digest(folder: Path) -> str:
    """Hex SHA-256 of a checkpoint's weights, configuration and tokenizer."""
    return digest({name: sha256_file(folder / name) for name in PARTS if (folder / name).is_file()})


@dataclass(frozen=True)
class Training:
    """A model to be had.

    Args:
        label: for the reader.
        recipe: how it is made.
        data: digest of the training examples.
        source: digest of the checkpoint it starts from.
        torch_threads: of the training; None: torch's own choice.
        general: name of the training of the general student whose body it starts from, if it does.
    """

    label: str
    recipe: Recipe
    data: str
    source: str
    torch_threads: int | None = None
    general: str | None = None

    def facts(self) -> dict[str, Any]:
        """What the model's hash is of."""
        device = pick_device()
        # A teacher's limit, if none, is in the hash of every one there is.
        recipe = asdict(self.recipe) if isinstance(self.recipe, TeacherRecipe) else asked(self.recipe)
        recipe = {key: value for key, value in recipe.items() if key not in PLACES}
        return {
            "format": FORMAT[self.kind],
            "kind": self.kind,
            "recipe": recipe,
            "data": self.data,
            "source": self.source,
            **({"general": self.general} if self.general else {}),
            "device": device.type,
            "bf16": not isinstance(autocast(self.recipe.precision, device), contextlib.nullcontext),
            "torch_threads": self.torch_threads,
            "versions": versions(),
        }

    @property
    def name(self) -> str:
        """Its folder's name in the cache."""
        return digest(self.facts())[:20]

    @property
    def kind(self) -> str:
        """What comes out."""
        kinds = {TeacherRecipe: "teacher", GeneralRecipe: "general", DistillRecipe: "student"}
        return kinds[type(self.recipe)]

    @property
    def start(self) -> Path:
        """The checkpoint that `source` is the digest of."""
        return self.recipe.teacher if isinstance(self.recipe, DistillRecipe) else Path(self.recipe.model)

    @property
    def places(self) -> dict[str, Path]:
        """Data and checkpoints, by the recipe's words for them."""
        return {name: Path(value) for name in PLACES if (value := getattr(self.recipe, name, None)) is not None}

    def absolute(self) -> "Training":
        """The same with whole paths, for a process that works in another folder."""
        whole = {name: type(getattr(self.recipe, name))(path.absolute()) for name, path in self.places.items()}
        return replace(self, recipe=replace(self.recipe, **whole))


class ModelCache:
    """Models below one folder.

    Args:
        folder: made when the first model is.
        jobs: trainings at a time.
        pool: where they run: local, processes of this machine; ray, machines of a Ray cluster that share the folder.
        ray_address: of the cluster; None: see `cluster.run`.

    Raises:
        UserInputError: jobs below 1, an unknown pool, an address that is not asked for or where nobody listens, or a
            file in the folder's place.
        DependencyError: Ray is asked for and is not installed.
    """

    def __init__(self, folder: Path, jobs: int = 1, pool: str = "local", ray_address: str | None = None) -> None:
        if jobs < 1:
            raise UserInputError(f"--jobs: {jobs} is below 1", "give a positive number")
        if pool not in POOLS:
            raise UserInputError(f"--pool: {pool!r} is unknown", f"choose one of: {', '.join(POOLS)}")
        if ray_address and pool != "ray":
            raise UserInputError(f"--ray-address: {ray_address} is for --pool ray", "add --pool ray, or leave it out")
        if pool == "ray":
            cluster.check(ray_address)
        if folder.exists() and not folder.is_dir():
            raise UserInputError(f"--models: {folder} is a file", "choose another folder")
        self.folder, self.jobs, self.pool, self.ray_address = folder, jobs, pool, ray_address

    def path(self, training: Training) -> Path:
        """Where a model is, or will be."""
        return self.folder / training.name

    def provide(self, trainings: Sequence[Training]) -> int:
        """Train what is missing; returns how many were.

        Raises:
            MPCFormerError: a training failed; others that were under way are finished first.
        """
        by_name = {training.name: training for training in trainings}
        missing = [training for name, training in by_name.items() if not (self.folder / name).is_dir()]
        console.print(f"models: {len(by_name) - len(missing)} of {len(by_name)} are there already, in {self.folder}")
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.pool == "ray" and missing:
            self._on_cluster(missing)
        elif self.jobs == 1 or len(missing) < 2:
            for number, training in enumerate(missing, 1):
                console.rule(f"{number}/{len(missing)} {training.label}", align="left")
                make(training, self.folder)
        else:
            self._in_processes(missing)
        return len(missing)

    def _in_processes(self, missing: list[Training]) -> None:
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        context = multiprocessing.get_context("spawn")  # torch's threads and CUDA do not survive a fork
        with ProcessPoolExecutor(self.jobs, mp_context=context) as pool:
            pending = {pool.submit(make, training, self.folder, threads, quiet=True): training for training in missing}
            try:
                for number, done in enumerate(as_completed(pending), 1):
                    done.result()
                    console.print(f"{number}/{len(missing)} trained: {pending[done].label}")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _on_cluster(self, missing: list[Training]) -> None:
        folder, gpu = self.folder.absolute(), pick_device().type == "cuda"
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".sign-") as sign:
            calls = [
                cluster.Call(training.label, (training.absolute(), folder, training.facts(), Path(sign.name)))
                for training in missing
            ]
            cluster.run(make_elsewhere, calls, jobs=self.jobs, address=self.ray_address, gpu=gpu)
        end = time.monotonic() + SHARED_S
        for training in missing:
            while not self.path(training).is_dir():
                if time.monotonic() > end:
                    raise MPCFormerError(
                        f"--models: {self.path(training)} was made elsewhere and is not here",
                        "check that all machines mount the same folder there",
                    )
                time.sleep(1)


def make_elsewhere(training: Training, cache: Path, facts: dict[str, Any], sign: Path, threads: int) -> None:
    """`make` on another machine, if it sees what the asking one sees and would make the same model.

    Args:
        training: what to make, with whole paths.
        cache: the folder of all.
        facts: the training's, where it was asked for.
        sign: a file that was put into the cache there.
        threads: torch's, where the training does not say.

    Raises:
        UserInputError: naming this machine, and what it lacks or has otherwise.
    """
    host = socket.gethostname()
    shared = "all machines must see --models, --out, --data-dir and the same environment under the same paths"
    if not sign.is_file():
        raise UserInputError(f"--models: machine {host} does not see {cache} as the asking one does", shared)
    for place in training.places.values():
        if not place.is_dir():
            raise UserInputError(f"--pool ray: machine {host} has no folder {place}", shared)
    if model_digest(training.start) != training.source:
        raise UserInputError(f"--pool ray: on machine {host}, {training.start} is another checkpoint", shared)
    here, there = ({**f, **f["versions"]} for f in (training.facts(), facts))
    other = [
        f"{key} {here.get(key)}, not {there.get(key)}"
        for key in dict.fromkeys([*there, *here])
        if key != "versions" and here.get(key) != there.get(key)
    ]
    if other:
        raise UserInputError(
            f"--pool ray: machine {host} would make another model: {'; '.join(other)}",
            "give all machines the same packages and processors; where bf16 alone differs, set precision in the TOML",
        )
    make(training, cache, threads, quiet=True)


def make(training: Training, cache: Path, threads: int | None = None, *, quiet: bool = False) -> None:
    """Train one model into the cache, going on from its last checkpoint if there is one; nothing if it is there.

    Args:
        training: what to make.
        cache: the folder of all.
        threads: torch's, where the training does not say.
        quiet: show no progress.
    """
    out = cache / training.name
    with _alone(cache / f".{training.name}.lock"), _torch_threads(training.torch_threads or threads), _hushed(quiet):
        if out.is_dir():
            return
        write_json(cache / f"{training.name}.json", training.facts())
        resume = _resumable(out, training)
        how: dict[str, Any] = {"resume": resume, "checkpoint_minutes": CHECKPOINT_MINUTES}
        if isinstance(training.recipe, TeacherRecipe):
            train_teacher(training.recipe, out, **how)
        elif isinstance(training.recipe, GeneralRecipe):
            distill_general(training.recipe, out, **how)
        else:
            distill_student(training.recipe, out, **how)


def _resumable(out: Path, training: Training) -> bool:
    """Whether an interrupted training of the same recipe is there; what cannot be gone on with is removed."""
    partial = out.with_name(f"{out.name}.partial")
    if (partial / "recipe.json").is_file() and read_json(partial / "recipe.json") == as_json(training.recipe):
        return True
    shutil.rmtree(partial, ignore_errors=True)
    return False


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time makes a model; another waits and then finds it."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _torch_threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _hushed(quiet: bool) -> Iterator[None]:
    """Progress bars of several processes on one terminal are unreadable."""
    before, console.quiet = console.quiet, quiet or console.quiet
    try:
        yield
    finally:
        console.quiet = before
