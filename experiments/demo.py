"""The demo: train a teacher, distil a student and infer privately, on sentences from a PyPI package.

A second call keeps the parts that are finished.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.recipe import DistillRecipe, TeacherRecipe
from distill.student import distill_student
from distill.teacher import train_teacher
from distill.training.workspace import interrupted_recipe
from mpcformer.console import console
from mpcformer.errors import UserInputError
from mpcformer.files import read_json, remove
from mpcformer.run_folder import RunFolder
from mpcformer.tasks import EVAL, get_task, load_examples
from parties.runs import local_run, report
from parties.runs.simulation import LocalRunOptions
from parties.settings.job import JobDescription

TASK = "movie-sentiment"
# These settings were chosen on the part of the training set that is set aside.
TEACHER = {"epochs": 2, "max_length": 64}
# With fewer sentences too few are left to choose epochs by.
MIN_TRAINING = 100
STUDENT = {"epochs1": 4, "epochs2": 2, "max_length": 64}


@dataclass(frozen=True)
class DemoOptions:
    """The size of the demo and its folder.

    Args:
        out: the folder of all parts.
        examples: the number of unseen sentences that are inferred privately.
        train_limit: the number of training sentences.
        batch_size: the number of sentences that share every round.
    """

    out: Path
    examples: int
    train_limit: int
    batch_size: int


def run(options: DemoOptions) -> dict[str, Any]:
    """Make the parts that are missing in `options.out`, run privately, and put results.json at the top of the folder.

    Raises:
        MPCFormerError: an option is wrong, or a part failed.
    """
    out, start = options.out, time.perf_counter()
    _check(options)
    out.mkdir(parents=True, exist_ok=True)
    with console.status(f"data: {TASK}"):
        n_examples = len(load_examples(get_task(TASK), EVAL, limit=options.examples))
    teacher, student = out / "teacher", out / "student"

    def stage(folder: Path, what: str) -> bool:
        """Print whether a part is kept or made, and return whether it must be made."""
        if folder.is_dir() and any(folder.iterdir()):
            console.print(f"{what}: kept from {folder}")
            return False
        console.rule(f"{what} ({time.perf_counter() - start:.0f} s so far)", align="left")
        return True

    if stage(teacher, "1/3 teacher: fine-tune a MiniLM"):
        teacher_recipe = TeacherRecipe(task=TASK, limit=options.train_limit, **TEACHER)  # type: ignore[arg-type]
        train_teacher(teacher_recipe, teacher, resume=interrupted_recipe(teacher) is not None)
    if stage(student, "2/3 student: distil it with Quad and 2Quad"):
        student_recipe = DistillRecipe(teacher=teacher, task=TASK, limit=options.train_limit, **STUDENT)  # type: ignore[arg-type]
        distill_student(student_recipe, student, resume=interrupted_recipe(student) is not None)
    console.rule(f"3/3 private inference on {n_examples} unseen sentences", align="left")
    run_folder = out / "run"
    remove(run_folder)
    job = JobDescription(task=TASK, limit=options.examples, batch_size=options.batch_size)
    asked = LocalRunOptions(student=student, teacher=teacher, job=job)
    local_run.check(asked, run_folder)
    values = local_run.run(asked, run_folder)
    RunFolder(run_folder).move_into(out)
    values = read_json(out / "results.json")
    console.print(f"The demo took {time.perf_counter() - start:.0f} s.")
    report.show(values, out)
    return dict(values)


def _check(options: DemoOptions) -> None:
    """Refuse wrong numbers, and a folder whose models were trained on another number of sentences."""
    for name, low in (("examples", 1), ("train_limit", MIN_TRAINING), ("batch_size", 1)):
        if (value := getattr(options, name)) < low:
            raise UserInputError(f"--{name.replace('_', '-')}: {value} is below {low}", f"give {low} or more")
    out = options.out
    if out.exists() and not out.is_dir():
        raise UserInputError(f"--out: {out} is a file", "choose another folder")
    for name in ("teacher", "student"):
        for folder in (out / name, RunFolder(out / name).partial):
            made = _recipe(folder)
            if made is not None and made.get("limit") != options.train_limit:
                raise UserInputError(
                    f"--train-limit: {options.train_limit}, but {folder} was made with {made.get('limit')} sentences",
                    f"give --train-limit {made.get('limit')}, another --out, or remove {out}",
                )


def _recipe(folder: Path) -> dict[str, Any] | None:
    """Return the recipe of a finished or interrupted training in `folder`, or None if there is none."""
    for name in ("teacher.json", "distillation.json"):
        if (folder / name).is_file():
            return dict(read_json(folder / name)["recipe"])
    return dict(read_json(folder / "recipe.json")) if (folder / "recipe.json").is_file() else None
