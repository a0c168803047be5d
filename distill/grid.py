"""Teachers that differ in their learning rate alone: trained in turn, the one that selects best is kept.

Each lives in `<out>.partial/lr-<rate>/` until all are there; then the best becomes `<out>`. They are scored on the part
of the training set that was set aside, never on the reported split.
"""

import functools
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.recipe import TeacherRecipe
from distill.teacher import load_material, train_teacher
from distill.training.prepare import check_numbers
from distill.training.workspace import Workspace
from mpcformer.console import console
from mpcformer.errors import UserInputError
from mpcformer.files import read_json, write_json


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
    folders = [work.folder / f"lr-{rate!r}" for rate in rates]
    scores: list[float] = []
    for number, (rate, folder) in enumerate(zip(rates, folders, strict=True), 1):
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
        scores.append(record["selection_score"])
    best, grid = choose_rate(rates, scores)
    return work.processes.on_main(lambda: _keep(folders[best], grid, work))


def choose_rate(
    learning_rates: Sequence[float], selection_scores: Sequence[float]
) -> tuple[int, list[dict[str, float]]]:
    """Choose the learning rate of the best selection score, of equals the first.

    Returns:
        The index of the chosen rate, and every rate with its score, as a record lists them.
    """
    tried = [
        {"learning_rate": rate, "selection_score": score}
        for rate, score in zip(learning_rates, selection_scores, strict=True)
    ]
    return selection_scores.index(max(selection_scores)), tried


def _found(folder: Path) -> tuple[dict[str, Any] | None, bool]:
    """A rate's record, if it is trained; whether its training can be gone on with. One barely begun is removed."""
    if folder.is_dir():
        console.print(f"kept from {folder}")
        return dict(read_json(folder / "teacher.json")), False
    partial = folder.with_name(f"{folder.name}.partial")
    resumable = (partial / "recipe.json").is_file()
    if not resumable:
        shutil.rmtree(partial, ignore_errors=True)
    return None, resumable


def _keep(best: Path, grid: list[dict[str, float]], work: Workspace) -> dict[str, Any]:
    """Move the best to its place, with the grid in its record, and remove the others."""
    record = dict(read_json(best / "teacher.json")) | {"grid": grid}
    write_json(best / "teacher.json", record)
    if work.out.is_dir():
        work.out.rmdir()
    best.rename(work.out)
    shutil.rmtree(work.folder)
    return record
