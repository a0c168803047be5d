"""Teachers that differ in their learning rate alone: trained in turn, the one that selects best is kept.

Each lives in `<out>.partial/lr-<rate>/` until all are there; then the best becomes `<out>`. They are scored on the part
of the training set that was set aside, never on the reported split.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.recipe import TeacherRecipe
from distill.teacher import load_material, train_teacher
from distill.training.prepare import check_numbers
from distill.training.workspace import Workspace, interrupted_recipe
from mpcformer.console import console
from mpcformer.errors import UserInputError
from mpcformer.files import read_json, write_json
from mpcformer.run_folder import RunFolder


def train_teachers(
    recipe: TeacherRecipe,
    learning_rates: Sequence[float],
    out: Path,
    *,
    resume: bool = False,
    checkpoint_minutes: float = 5.0,
    tensorboard: Path | None = None,
) -> dict[str, Any]:
    """Train a teacher at each rate and keep the one of the best selection score, of equals the first.

    Args:
        recipe: of all; its own learning rate does not count.
        learning_rates: one is an ordinary training.
        out: where the best goes; the others are removed.
        resume: go on where an interrupted call of the same recipe and rates was.
        checkpoint_minutes: between checkpoints.
        tensorboard: a folder that gets one a rate.

    Returns:
        What teacher.json holds; of several rates also `grid`, each with its selection score.

    Raises:
        UserInputError: anything wrong with the recipe or a rate, found before training.
        MPCFormerError: a rate's loss is no longer finite.
    """
    rates = list(learning_rates)
    for rate in rates:
        check_numbers(lr=rate)
        if rates.count(rate) > 1:
            raise UserInputError(f"--lr: {rate} is given twice", "give each rate once")
    if len(rates) == 1:
        return train_teacher(
            replace(recipe, learning_rate=rates[0]),
            out,
            resume=resume,
            checkpoint_minutes=checkpoint_minutes,
            tensorboard=tensorboard,
        )
    several: dict[str, Any] = {"learning_rate": rates}
    work = Workspace(out, replace(recipe, **several), resume=resume)
    load_material(recipe)  # for its errors: nothing is left where one is found
    work.open()
    folders = {rate: work.folder / f"lr-{rate!r}" for rate in rates}
    grid: list[dict[str, float]] = []
    for number, (rate, folder) in enumerate(folders.items(), 1):
        if work.processes.is_main:
            console.rule(f"{number}/{len(rates)} learning rate {rate:g}", align="left")
        record, resumable = work.processes.on_main(functools.partial(_found, folder))
        if record is None:
            record = train_teacher(
                replace(recipe, learning_rate=rate),
                folder,
                resume=resumable,
                checkpoint_minutes=checkpoint_minutes,
                tensorboard=tensorboard / folder.name if tensorboard else None,
            )
        grid.append({"learning_rate": rate, "selection_score": record["selection_score"]})
    best = folders[max(grid, key=lambda row: row["selection_score"])["learning_rate"]]
    return work.processes.on_main(lambda: _keep(best, grid, work))


def _found(folder: Path) -> tuple[dict[str, Any] | None, bool]:
    """A rate's record, if it is trained; whether its training can be gone on with. One barely begun is removed."""
    if folder.is_dir():
        console.print(f"kept from {folder}")
        return dict(read_json(folder / "teacher.json")), False
    resumable = interrupted_recipe(folder) is not None
    if not resumable:
        RunFolder(folder).discard()
    return None, resumable


def _keep(best: Path, grid: list[dict[str, float]], work: Workspace) -> dict[str, Any]:
    """Move the best to its place, with the grid in its record, and remove the others."""
    record = dict(read_json(best / "teacher.json")) | {"grid": grid}
    write_json(best / "teacher.json", record)
    work.run.publish(best)
    return record
