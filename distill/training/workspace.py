"""Where a training run lives until it is whole: `<out>.partial/`, renamed to `<out>` at the end.

Checkpoints are safetensors and JSON, never pickles. A resumed run continues exactly: batches and dropout follow from
the seed and the step alone, so model, optimiser and step are the whole state. Of several processes the main one alone
looks at the folder and writes; the others get what it read, so a run may go on with another number of them.
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
    """The folder of one run.

    Args:
        out: where the result goes.
        recipe: a dataclass; a resumed run must have the same.
        resume: go on from the last checkpoint.

    Raises:
        UserInputError: `out` is taken, an interrupted run is in the way, there is none to resume, or it differs.
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
        """Make the folder; called when all input is checked."""
        self.processes.on_main(self._open)

    def _open(self) -> None:
        self.run.start()
        write_json(self.folder / RECIPE, self.recipe)

    def save(self, name: str, tensors: Tensors, facts: dict[str, Any]) -> None:
        """A checkpoint, whole or not at all: tensors first under a new name, then the JSON that points to it."""
        if not self.processes.is_main:
            return
        path = self.folder / f"{name}-{facts['stage']}-{facts['step']}.safetensors"
        save_file({key: value.detach().contiguous() for key, value in tensors.items()}, path)
        write_json(self.folder / f"{name}.json", {**facts, "file": path.name})
        for old in self.folder.glob(f"{name}-*.safetensors"):
            if old != path:
                old.unlink()

    def load(self, name: str) -> tuple[Tensors, dict[str, Any]] | None:
        """The last checkpoint of that name, if there is one."""
        path = self.folder / f"{name}.json"
        facts = self.processes.on_main(lambda: read_json(path) if path.is_file() else None)
        if facts is None:
            return None
        return self.processes.tensors_of_main(lambda: load_file(self.folder / facts["file"])), facts

    def finish(self) -> None:
        """Drop checkpoints and move the folder to its place; for the main process."""
        for pattern in ("*-*-*.safetensors", "last.json", "best.json", "fit.json", RECIPE):
            for path in self.folder.glob(pattern):
                path.unlink()
        self.run.publish()


def interrupted_recipe(out: Path) -> dict[str, Any] | None:
    """Return the recipe of an interrupted training that was to become `out`, or None if there is none to resume."""
    path = RunFolder(out).partial / RECIPE
    return dict(read_json(path)) if path.is_file() else None


def as_json(recipe: Any) -> dict[str, Any]:
    """A recipe, a dataclass, as JSON gives it back."""
    return {key: _plain(value) for key, value in asdict(recipe).items()}


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
