"""The commands `mpcformer teacher`, `mpcformer distill-general` and `mpcformer distill`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from mpcformer import options
from mpcformer.errors import UserInputError
from mpcformer.options import INPUT, OUTPUT, TRAINING, choice, flag, option

# torch and transformers are imported inside the commands, because help must not wait for them.


def _precisions() -> Iterable[str]:
    from distill.recipe import PRECISIONS

    return PRECISIONS


def _objectives() -> Iterable[str]:
    from distill.recipe import CHOICES

    return CHOICES["objective"]


def _starts() -> list[str]:
    """Return the words that --from takes; a general student is given by its folder instead."""
    from distill.recipe import CHOICES

    return [word for word in CHOICES["start"] if word != "general"]


def _known_start(given: str) -> str:
    """Return the value of --from.

    Raises:
        UserInputError: it is neither one of the words nor a folder.
    """
    if given not in _starts() and not Path(given).is_dir():
        raise UserInputError(
            f"--from: {given!r} is unknown, and no folder",
            f"choose one of: {', '.join(_starts())}, or a general student's folder",
        )
    return given


RECIPES = ("fitted", "paper")
ONE_TASK = "One of {}."

Out = Annotated[Path, option(group=OUTPUT, about="New folder for the result.")]
DataDir = Annotated[
    Path | None, options.folder("--data-dir", group=INPUT, about="Folder of parquet files; default: download.")
]
Limit = Annotated[int | None, option(group=INPUT, about="Training sentences to use; default: all.")]
MaxLength = Annotated[int, option(group=INPUT, about="Cut texts to this many tokens.")]
Backbone = Annotated[str | None, option(group=INPUT, about="Folder or hub id of a BERT; default: a 6-layer MiniLM.")]
Gelu = Annotated[str, options.gelu(TRAINING, "One of {}.")]
Softmax = Annotated[str, options.softmax(TRAINING, "One of {}.")]
Replaced = Annotated[float, option(group=TRAINING, about="Share of tokens replaced, in half of the texts.")]
BatchSize = Annotated[int, option(group=TRAINING, about="Sentences in a training step.")]
Seed = Annotated[int, option(group=TRAINING, about="Determines everything that is drawn at random.")]
Precision = Annotated[str, choice("--precision", _precisions, group=TRAINING, about="One of {}.")]
Resume = Annotated[bool, flag("--resume", group=OUTPUT, about="Go on from the last checkpoint of the same run.")]
Minutes = Annotated[
    float, options.at_least("--checkpoint-minutes", 0, group=OUTPUT, about="Minutes between checkpoints.")
]
TensorBoard = Annotated[Path | None, option(group=OUTPUT, about="Write TensorBoard events to this folder.")]


def teacher(
    *,
    task: Annotated[str, options.task(ONE_TASK)],
    model: Backbone = None,
    data_dir: DataDir = None,
    limit: Limit = None,
    max_length: MaxLength = 128,
    epochs: Annotated[int, option(group=TRAINING, about="Passes over the training set.")] = 3,
    lr: Annotated[
        list[float] | None,
        option(group=TRAINING, about="Peak learning rate; default: 5e-5. Give it again: the best is kept."),
    ] = None,
    batch_size: BatchSize = 32,
    seed: Seed = 0,
    precision: Precision = "auto",
    resume: Resume = False,
    checkpoint_minutes: Minutes = 5.0,
    tensorboard: TensorBoard = None,
    out: Out,
) -> None:
    """Fine-tune a teacher on a task.

    Example: mpcformer teacher --task sst2 --data-dir data --out runs/teacher
    """
    from distill.grid import train_teachers
    from distill.recipe import TeacherRecipe
    from mpcformer.modeling import default_backbone

    recipe = TeacherRecipe(
        task=task,
        model=model or str(default_backbone()),
        data_dir=data_dir,
        limit=limit,
        epochs=epochs,
        batch_size=batch_size,
        max_length=max_length,
        seed=seed,
        precision=precision,
    )
    rates = lr or [recipe.learning_rate]
    record = train_teachers(
        recipe, rates, out, resume=resume, checkpoint_minutes=checkpoint_minutes, tensorboard=tensorboard
    )
    others = {f"teacher, rate {row['learning_rate']:g}": row["selection_score"] for row in record.get("grid", ())}
    _report(out, record, others | {"the teacher kept" if others else "teacher": record["selection_score"]})


def distill_general(
    *,
    task: Annotated[
        list[str], options.task("Learn from this task's texts; give the option again for others. One of {}.")
    ],
    model: Backbone = None,
    data_dir: DataDir = None,
    limit: Annotated[int | None, option(group=INPUT, about="Training sentences of each task; default: all.")] = None,
    max_length: MaxLength = 128,
    gelu: Gelu = "quad",
    softmax: Softmax = "2quad",
    epochs: Annotated[int, option(group=TRAINING, about="Passes over all texts.")] = 3,
    lr: Annotated[float, option(group=TRAINING, about="Peak learning rate.")] = 3e-4,
    replaced: Replaced = 0.25,
    batch_size: BatchSize = 32,
    seed: Seed = 0,
    precision: Precision = "auto",
    resume: Resume = False,
    checkpoint_minutes: Minutes = 5.0,
    tensorboard: TensorBoard = None,
    out: Out,
) -> None:
    """Distil a general student, which the students of all tasks can start from.

    Example: mpcformer distill-general --task qnli --task sst2 --out runs/general
    """
    from distill.general import distill_general as make
    from distill.recipe import GeneralRecipe
    from mpcformer.console import console
    from mpcformer.modeling import default_backbone

    recipe = GeneralRecipe(
        tasks=tuple(task),
        model=model or str(default_backbone()),
        data_dir=data_dir,
        limit=limit,
        gelu=gelu,
        softmax=softmax,
        epochs=epochs,
        learning_rate=lr,
        batch_size=batch_size,
        max_length=max_length,
        seed=seed,
        precision=precision,
        replaced=replaced,
    )
    record = make(recipe, out, resume=resume, checkpoint_minutes=checkpoint_minutes, tensorboard=tensorboard)
    if _reports():
        losses = ", ".join(f"{row['loss']:.4f}" for row in record["log"])
        console.print(f"General student of {record['n_training']} texts in {out}; loss by epoch: {losses}")
        line = f"mpcformer distill --from {out} --teacher TEACHER --task TASK --out STUDENT"
        console.print(f"Start from it: {line}", soft_wrap=True)


def distill(
    *,
    teacher: Annotated[Path, options.folder("--teacher", group=INPUT, about="Folder of a fine-tuned BERT.")],
    task: Annotated[str, options.task("The teacher's task. One of {}.")],
    data_dir: DataDir = None,
    limit: Limit = None,
    max_length: MaxLength = 128,
    gelu: Gelu = "quad",
    softmax: Softmax = "2quad",
    constant_norms: Annotated[
        str, option(group=TRAINING, about="LayerNorms with a learnt constant: attention, output or all.")
    ] = "",
    layers: Annotated[int | None, option(group=TRAINING, about="Encoder layers; default: the teacher's.")] = None,
    intermediate: Annotated[
        int | None, option(group=TRAINING, about="Feed-forward units; default: the teacher's.")
    ] = None,
    start: Annotated[
        str,
        choice("--from", _starts, group=TRAINING, about="{}, or a general student's folder.", check=_known_start),
    ] = "fitted",
    recipe: Annotated[
        str, choice("--recipe", lambda: RECIPES, group=TRAINING, about="One of {} (as published).")
    ] = "fitted",
    epochs1: Annotated[int, option(group=TRAINING, about="Passes of stage 1, on what is inside the model.")] = 4,
    lr1: Annotated[float, option(group=TRAINING, about="Peak learning rate of stage 1.")] = 1e-4,
    epochs2: Annotated[int, option(group=TRAINING, about="Passes of stage 2, on the logits.")] = 2,
    lr2: Annotated[float, option(group=TRAINING, about="Peak learning rate of stage 2.")] = 3e-5,
    replaced: Replaced = 0.25,
    objective: Annotated[
        str, choice("--objective", _objectives, group=TRAINING, about="One of {} (without distilling).")
    ] = "distil",
    batch_size: BatchSize = 32,
    seed: Seed = 0,
    precision: Precision = "auto",
    resume: Resume = False,
    checkpoint_minutes: Minutes = 5.0,
    tensorboard: TensorBoard = None,
    out: Out,
) -> None:
    """Distil an MPC-friendly student from a teacher.

    Example: mpcformer distill --teacher runs/teacher --task sst2 --data-dir data --out runs/student
    """
    from distill.recipe import LABELS_ALONE, DistillRecipe, paper_recipe
    from distill.student import distill_student
    from mpcformer.modeling.configuration import split_norms

    chosen: dict[str, Any] = {
        "epochs1": epochs1,
        "learning_rate1": lr1,
        "epochs2": epochs2,
        "learning_rate2": lr2,
        "max_length": max_length,
        "replaced": replaced,
        "objective": objective,
    }
    chosen |= {"start": start} if start in _starts() else {"start": "general", "general": Path(start)}
    if recipe == "paper":
        chosen |= paper_recipe(task)
    if objective == "labels":
        chosen |= LABELS_ALONE
    made = DistillRecipe(
        teacher=teacher,
        task=task,
        data_dir=data_dir,
        limit=limit,
        gelu=gelu,
        softmax=softmax,
        constant_norms=tuple(split_norms(constant_norms)),
        batch_size=batch_size,
        seed=seed,
        precision=precision,
        layers=layers,
        intermediate=intermediate,
        **chosen,
    )
    record = distill_student(made, out, resume=resume, checkpoint_minutes=checkpoint_minutes, tensorboard=tensorboard)
    _report(out, record, record["selection_score"])


def _reports() -> bool:
    """Leave the group of processes, and return whether this is the main one, which reports what was made."""
    from distill.training.processes import current, leave

    is_main = current().is_main
    leave()
    return is_main


def _report(out: Path, record: dict[str, Any], scores: dict[str, float]) -> None:
    """Show the scores of what was made, and which engines can run it."""
    from distill.ready import RUNS
    from mpcformer.console import PlainTable, console

    if not _reports():
        return
    head = f"score on {record['n_selection']} training sentences set aside"
    table = PlainTable(f"{record['task']}: {out}", "model", head)
    for name, score in scores.items():
        table.add_row(name, f"{score:.4f}")
    console.print(table)
    console.print(f"Trained on {record['n_training']} sentences. The task's own evaluation split was not looked at.")
    for engine, verdict in record.get("engines", {}).items():
        console.print(f"engine {engine}: {'runs it' if verdict == RUNS else f'refuses it: {verdict}'}", soft_wrap=True)
