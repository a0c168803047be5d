"""The folder of a training run with its checkpoints; `RunFolder` says which names the folder has.

Checkpoints are safetensors and JSON, never pickles. A resumed run continues exactly as if it had not been interrupted:
batches and dropout follow from the seed and the step, so the model, the optimiser and the step are the whole state. If
a run has several processes, only the main process reads and writes the folder and sends the others what it read. A run
can therefore be resumed with another number of processes.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from distill.training.processes import Tensors, current
from mpcformer.errors import UserInputError
from mpcformer.files import read_json, write_json
from mpcformer.run_folder import RunFolder

RECIPE = "recipe.json"


class Workspace:
    """The folder of one training run.

    Args:
        out: the folder for the result.
        recipe: a dataclass. A resumed run must have the same recipe.
        resume: continue from the last checkpoint.

    Raises:
        UserInputError: `out` is not empty; without `resume`, an interrupted run is there; with `resume`, there is none,
            or its recipe differs.
    """

    def __init__(self, out: Path, recipe: Any, *, resume: bool) -> None:
        self.processes = current()
        self.run = RunFolder(out)
        self.folder = self.run.partial
        self.recipe = as_json(recipe)
        self.processes.on_main(lambda: self._check(resume))

    def _check(self, resume: bool) -> None:
        self.run.check_new()
        if resume:
            self._check_resumable()
        else:
            self.run.check_not_interrupted()

    def _check_resumable(self) -> None:
        before = interrupted_recipe(self.run.path)
        if before is None:
            raise UserInputError(f"--resume: there is no interrupted run in {self.folder}", "leave --resume out")
        for key, value in self.recipe.items():
            if before.get(key) != value:
                raise UserInputError(
                    f"--resume: the interrupted run had {key} = {before.get(key)}, not {value}",
                    f"give the same options, or remove {self.folder}",
                )

    def open(self) -> None:
        """Create the folder. Call this after all input has been checked."""
        self.processes.on_main(self._open)

    def _open(self) -> None:
        self.run.start()
        write_json(self.folder / RECIPE, self.recipe)

    def save(self, name: str, tensors: Tensors, facts: dict[str, Any]) -> None:
        """Write a checkpoint: first the tensors to a new file, then the JSON that names it. It is never incomplete.

        Args:
            name: the name of the checkpoint, which replaces an older one of that name.
            tensors: the tensors to save.
            facts: JSON values to save with them, among them `stage` and `step`.
        """
        if not self.processes.is_main:
            return
        path = self.folder / f"{name}-{facts['stage']}-{facts['step']}.safetensors"
        save_file(_apart(tensors), path)
        write_json(self.folder / f"{name}.json", {**facts, "file": path.name})
        for old in self.folder.glob(f"{name}-*.safetensors"):
            if old != path:
                old.unlink()

    def load(self, name: str) -> tuple[Tensors, dict[str, Any]] | None:
        """Return the tensors and the facts of the last checkpoint of that name, or None if there is none."""
        path = self.folder / f"{name}.json"
        facts = self.processes.on_main(lambda: read_json(path) if path.is_file() else None)
        if facts is None:
            return None
        return self.processes.tensors_of_main(lambda: load_file(self.folder / facts["file"])), facts

    def finish(self) -> None:
        """Remove the checkpoints and rename the folder to its final name. Only the main process may call this."""
        for pattern in ("*-*-*.safetensors", "last.json", "best.json", "fit.json", RECIPE):
            for path in self.folder.glob(pattern):
                path.unlink()
        self.run.publish()


def interrupted_recipe(out: Path) -> dict[str, Any] | None:
    """Return the recipe of an interrupted training that was to become `out`, or None if there is none to resume."""
    path = RunFolder(out).partial / RECIPE
    return dict(read_json(path)) if path.is_file() else None


def as_json(recipe: Any) -> dict[str, Any]:
    """Return a recipe, which is a dataclass, with the values that JSON gives back after writing and reading it."""
    return {key: _plain(value) for key, value in asdict(recipe).items()}


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _apart(tensors: Tensors) -> Tensors:
    """Return tensors that share no memory; the layers of some families share weights."""
    seen: set[int] = set()
    apart: Tensors = {}
    for name, tensor in tensors.items():
        kept = tensor.detach().contiguous()
        apart[name] = kept.clone() if kept.data_ptr() in seen else kept
        seen.add(kept.data_ptr())
    return apart
