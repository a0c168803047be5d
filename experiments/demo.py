"""The demo: ask a student that is there, then train a teacher, distil a student from it and infer privately.

The sentences to train on come from a PyPI package. A second call keeps the parts that are finished.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.recipe import DistillRecipe, TeacherRecipe
from distill.student import distill_student
from distill.teacher import train_teacher
from distill.training.workspace import interrupted_recipe
from mpcformer.console import PlainTable, console
from mpcformer.errors import UserInputError
from mpcformer.files import read_json, remove
from mpcformer.modeling.folder import first_student
from mpcformer.run_folder import RunFolder
from mpcformer.tasks import EVAL, get_task, load_examples
from parties.ask.local import local
from parties.runs import local_run, report
from parties.runs.simulation import LocalRunOptions
from parties.settings.job import JobDescription

TASK = "movie-sentiment"
# These settings were chosen on the part of the training set that is set aside.
TEACHER = {"epochs": 2, "max_length": 64}
# With fewer sentences too few are left to choose epochs by.
MIN_TRAINING = 100
STUDENT = {"epochs1": 4, "epochs2": 2, "max_length": 64, "engine_precision": "compact", "weight_bits": 8}
# What both students are asked, one sentence at a time.
SENTENCES = (
    "A quiet film that stays with you.",
    "The plot is thin and the jokes are stale.",
    "Two hours that I would like to have back.",
)


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
    console.rule("0/4 three sentences, asked privately of the small student that comes with the package", align="left")
    ask_three(first_student())
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

    if stage(teacher, "1/4 teacher: fine-tune a MiniLM"):
        teacher_recipe = TeacherRecipe(task=TASK, limit=options.train_limit, **TEACHER)  # type: ignore[arg-type]
        train_teacher(teacher_recipe, teacher, resume=interrupted_recipe(teacher) is not None)
    if stage(student, "2/4 student: distil it with Quad and 2Quad"):
        student_recipe = DistillRecipe(teacher=teacher, task=TASK, limit=options.train_limit, **STUDENT)  # type: ignore[arg-type]
        distill_student(student_recipe, student, resume=interrupted_recipe(student) is not None)
    console.rule(f"3/4 private inference on {n_examples} unseen sentences", align="left")
    run_folder = out / "run"
    remove(run_folder)
    job = JobDescription(task=TASK, limit=options.examples, batch_size=options.batch_size)
    asked = LocalRunOptions(student=student, teacher=teacher, job=job)
    local_run.check(asked, run_folder)
    values = local_run.run(asked, run_folder)
    RunFolder(run_folder).move_into(out)
    values = read_json(out / "results.json")
    console.rule("4/4 the same three sentences, asked privately of the student of this demo", align="left")
    ask_three(student)
    console.print(f"The demo took {time.perf_counter() - start:.0f} s.")
    report.show(values, out)
    return dict(values)


def ask_three(student: Path) -> None:
    """Ask a student `SENTENCES` privately, and print a table of the answers and of what each cost.

    All parties run on this machine. Nothing is dealt ahead, so the seconds of an answer contain its dealing.

    Args:
        student: the folder of the student.

    Raises:
        MPCFormerError: the student cannot be asked, or a party failed.
    """
    headings = ("sentence", "label", "score", "seconds", "online", "rounds", "MiB online")
    start = time.perf_counter()
    with console.status("asking privately"), local(student, ahead=0) as classify:
        opened = time.perf_counter() - start
        grid = PlainTable(f"the parties were ready after {opened:.1f} s; seconds include dealing", *headings, n_left=2)
        for sentence in SENTENCES:
            (answer,) = classify.answers([sentence], details=True)
            label, score = ("refused", "-") if answer.get("refused") else (answer["label"], f"{answer['score']:.3f}")
            times = (f"{answer[name]:.2f}" for name in ("seconds", "online_seconds"))
            grid.add_row(sentence, label, score, *times, str(answer["rounds"]), f"{answer['bytes'] / 2**20:.2f}")
    console.print(grid)


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
