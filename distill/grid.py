"""Train several teachers that differ only in their learning rate, one after the other, and keep the best.

Each teacher is saved in `<out>.partial/lr-<rate>/` until all are trained; then the best one becomes `<out>`. Teachers
are scored on the part of the training set that was set aside, never on the task's evaluation split.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.recipe import TeacherRecipe
from distill.teacher import load_material, train_teacher
from distill.training.checks import check_numbers
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
    """Train a teacher at each learning rate, and keep the one with the best selection score, the first among equals.

    Args:
        recipe: the recipe of all teachers; its own learning rate is ignored.
        learning_rates: the rates to try. A single rate makes an ordinary training.
        out: the new folder for the best teacher; the others are removed.
        resume: whether to continue an interrupted call with the same recipe and rates.
        checkpoint_minutes: the time between two checkpoints, in minutes.
        tensorboard: a folder that gets one folder of TensorBoard's events per rate; None writes none.

    Returns:
        The contents of teacher.json. With several rates, `grid` lists each rate and its selection score.

    Raises:
        UserInputError: an option is wrong; all are checked before training starts.
        MPCFormerError: the loss is no longer finite at one of the rates.
    """
    rates = list(learning_rates)
    _check(rates)
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
    load_material(recipe)  # raises errors before anything is written
    work.open()
    folders = [work.folder / f"lr-{rate!r}" for rate in rates]
    scores: list[float] = []
    for number, (rate, folder) in enumerate(zip(rates, folders, strict=True), 1):
        if work.processes.is_main:
            console.rule(f"{number}/{len(rates)} learning rate {rate:g}", align="left")
        record, resumable = work.processes.on_main(functools.partial(_trained, folder))
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


def _check(rates: list[float]) -> None:
    for rate in rates:
        check_numbers(lr=rate)
        if rates.count(rate) > 1:
            raise UserInputError(f"--lr: {rate} is given twice", "give each rate once")


def _trained(folder: Path) -> tuple[dict[str, Any] | None, bool]:
    """Return a rate's record if its teacher is trained, and whether an interrupted training of it can be continued.

    What is left of a training that cannot be continued is removed.
    """
    if folder.is_dir():
        console.print(f"already trained: {folder}")
        return dict(read_json(folder / "teacher.json")), False
    resumable = interrupted_recipe(folder) is not None
    if not resumable:
        RunFolder(folder).discard()
    return None, resumable


def _keep(best: Path, grid: list[dict[str, float]], work: Workspace) -> dict[str, Any]:
    """Add the grid to the best teacher's record, move this teacher to its place, and remove the others."""
    record = dict(read_json(best / "teacher.json")) | {"grid": grid}
    write_json(best / "teacher.json", record)
    work.run.publish(best)
    return record
