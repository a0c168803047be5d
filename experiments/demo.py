"""The demo: train a teacher, distil a student and infer privately, on sentences from a PyPI package.

A second call keeps the parts that are finished.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.recipe import DistillRecipe, TeacherRecipe
from distill.student import distill_student
from distill.teacher import train_teacher
from mpcformer.console import console
from mpcformer.errors import UserInputError
from mpcformer.files import read_json, write_json
from mpcformer.tasks import EVAL, get_task, load_examples
from parties.runs import local_run, report
from parties.runs.simulation import InferenceJob

TASK = "movie-sentiment"
RUN_FILES = (
    "results.json",
    "predictions.parquet",
    "report.html",
    "journal.jsonl",
    "logs",
    "plaintext",
    "manifest.json",
)
# Chosen on the part of the training set that is set aside.
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
        console.rule(f"{what} [dim]({time.perf_counter() - start:.0f} s so far)", align="left")
        return True

    if stage(teacher, "1/3 teacher: fine-tune a MiniLM"):
        teacher_recipe = TeacherRecipe(task=TASK, limit=options.train_limit, **TEACHER)  # type: ignore[arg-type]
        train_teacher(teacher_recipe, teacher, resume=_interrupted(teacher))
    if stage(student, "2/3 student: distil it with Quad and 2Quad"):
        student_recipe = DistillRecipe(teacher=teacher, task=TASK, limit=options.train_limit, **STUDENT)  # type: ignore[arg-type]
        distill_student(student_recipe, student, resume=_interrupted(student))
    console.rule(f"3/3 private inference on {n_examples} unseen sentences", align="left")
    run_folder = out / "run"
    _remove(run_folder)
    job = InferenceJob(
        student=student, teacher=teacher, task=TASK, limit=options.examples, batch_size=options.batch_size
    )
    local_run.check(job, run_folder)
    values = local_run.run(job, run_folder)
    _lift(run_folder, out)
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
        for folder in (out / name, out / f"{name}.partial"):
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


def _interrupted(folder: Path) -> bool:
    return (folder.with_name(f"{folder.name}.partial") / "recipe.json").is_file()


def _lift(run_folder: Path, out: Path) -> None:
    """Move the run to the top of the demo's folder, the manifest last."""
    manifest = read_json(run_folder / "manifest.json")
    (run_folder / "manifest.json").unlink()
    (out / "manifest.json").unlink(missing_ok=True)
    for name in RUN_FILES:
        if (run_folder / name).exists():
            _remove(out / name)
            (run_folder / name).rename(out / name)
    run_folder.rmdir()
    write_json(out / "manifest.json", manifest)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
