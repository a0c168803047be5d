"""A cache of trained models, named by what they are made of: teachers and students with equal facts are trained once.

`<cache>/<hash>/` holds the model. `<cache>/<hash>.json` holds the facts that were hashed: the recipe, the digest of the
training examples, the weights that training starts from, the device, the precision and the versions. Raise the number
in FORMAT when the meaning of a recipe changes.
"""

import contextlib
import fcntl
import multiprocessing
import os
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
from distill.training.device import autocast, pick_device
from distill.training.versions import versions
from distill.training.workspace import as_json, interrupted_recipe
from experiments.spec.spec import digest
from mpcformer.console import console
from mpcformer.errors import MPCFormerError, UserInputError
from mpcformer.files import sha256_file, write_json
from mpcformer.modeling.folder import WEIGHTS
from mpcformer.run_folder import RunFolder
from mpcformer.tasks import Examples
from parties.runs import cluster
from parties.runs.cluster import POOLS

Recipe = TeacherRecipe | GeneralRecipe | DistillRecipe

FORMAT = {"teacher": 3, "general": 1, "student": 5}
CHECKPOINT_MINUTES = 5.0
# The longest time until a shared folder shows a file from another machine. NFS clients cache folders up to a minute.
SHARED_S = 90.0
# The keys of a recipe that are paths. The hash contains digests of the contents instead.
PLACES = ("teacher", "general", "model", "data_dir", "train_data")
PARTS = ("config.json", WEIGHTS, "tokenizer.json", "vocab.txt")


def examples_digest(examples: Examples) -> str:
    """Return the hex SHA-256 of the texts, labels and splits."""
    return digest([examples.texts, examples.labels, examples.groups])


def model_digest(folder: Path) -> str:
    """Return the hex SHA-256 of a checkpoint's weights, configuration and tokenizer."""
    return digest({name: sha256_file(folder / name) for name in PARTS if (folder / name).is_file()})


@dataclass(frozen=True)
class Training:
    """The training of one model.

    Args:
        label: a description for the reader.
        recipe: how the model is made.
        data: the digest of the training examples.
        source: the digest of the checkpoint that training starts from.
        torch_threads: the number of torch's threads; None means torch's own choice.
        general: the name of the training of the general student whose body the model starts from; None if it does not.
    """

    label: str
    recipe: Recipe
    data: str
    source: str
    torch_threads: int | None = None
    general: str | None = None

    def facts(self) -> dict[str, Any]:
        """Return the facts that are hashed to name the model."""
        device = pick_device()
        # Existing hashes of teachers contain a limit of None; `asked` would leave it out and so change them.
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
        """The name of the model's folder in the cache."""
        return digest(self.facts())[:20]

    @property
    def kind(self) -> str:
        """The kind of the model: teacher, general or student."""
        kinds = {TeacherRecipe: "teacher", GeneralRecipe: "general", DistillRecipe: "student"}
        return kinds[type(self.recipe)]

    @property
    def start(self) -> Path:
        """The checkpoint that training starts from; `source` is its digest."""
        return self.recipe.teacher if isinstance(self.recipe, DistillRecipe) else Path(self.recipe.model)

    @property
    def places(self) -> dict[str, Path]:
        """The paths of data and checkpoints, by their keys in the recipe."""
        return {name: Path(value) for name in PLACES if (value := getattr(self.recipe, name, None)) is not None}

    def absolute(self) -> "Training":
        """Return the same training with absolute paths, for a process that works in another folder."""
        whole = {name: type(getattr(self.recipe, name))(path.absolute()) for name, path in self.places.items()}
        return replace(self, recipe=replace(self.recipe, **whole))


class ModelCache:
    """The cache of trained models in one folder.

    Args:
        folder: the folder; it is created with the first model.
        jobs: the number of trainings that run at the same time.
        pool: where trainings run: "local" for processes of this machine, "ray" for machines of a Ray cluster that share
            the folder.
        ray_address: the address of the cluster; `cluster.run` explains None.

    Raises:
        UserInputError: jobs is below 1, the pool is unknown, an address is given for another pool or nobody listens
            there, or the folder is a file.
        DependencyError: the pool is "ray", and Ray is not installed.
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
        """Return the folder of a model, which may not exist yet."""
        return self.folder / training.name

    def provide(self, trainings: Sequence[Training]) -> int:
        """Train the models that are missing and return their number.

        Raises:
            MPCFormerError: a training failed; trainings that were under way are finished first.
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
                        f"--models: {self.path(training)} was made on another machine and is missing here",
                        "check that all machines mount the same folder there",
                    )
                time.sleep(1)


def make_elsewhere(training: Training, cache: Path, facts: dict[str, Any], sign: Path, threads: int) -> None:
    """Call `make` on another machine, after checking that it sees the same files and would make the same model.

    Args:
        training: the training, with absolute paths.
        cache: the folder of all models.
        facts: the facts of the training on the machine that asks for it.
        sign: a file that the asking machine has put into the cache.
        threads: the number of torch's threads if the training does not say.

    Raises:
        UserInputError: this machine lacks a file, or would make another model; the error names the machine.
    """
    host = socket.gethostname()
    shared = "all machines must see --models, --out, --data-dir and the same environment under the same paths"
    if not sign.is_file():
        raise UserInputError(f"--models: machine {host} does not see the replay's files in {cache}", shared)
    for place in training.places.values():
        if not place.exists():
            raise UserInputError(f"--pool ray: machine {host} has no {place}", shared)
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
    """Train one model into the cache unless it is there; continue from its last checkpoint if there is one.

    Args:
        training: the training.
        cache: the folder of all models.
        threads: the number of torch's threads if the training does not say.
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
    """Return whether an interrupted training of the same recipe can continue; remove one that cannot."""
    if interrupted_recipe(out) == as_json(training.recipe):
        return True
    RunFolder(out).discard()
    return False


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time make a model; another process waits, and then finds the model."""
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
    """Silence the console if `quiet`: progress bars of several processes on one terminal are unreadable."""
    before, console.quiet = console.quiet, quiet or console.quiet
    try:
        yield
    finally:
        console.quiet = before
