"""The commands `mpcformer teacher`, `mpcformer distill-general` and `mpcformer distill`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from mpcformer import options
from mpcformer.errors import UserInputError
from mpcformer.modeling.precision import BITS, COMPACT, WEIGHT_BITS, WIDE
from mpcformer.options import INPUT, OUTPUT, TRAINING, choice, flag, option
from mpcformer.tasks import EMBEDDING, OWN_DATA

# torch and transformers are imported inside the commands, because help must not wait for them.


def _precisions() -> Iterable[str]:
    from distill.recipe import PRECISIONS

    return PRECISIONS


# The value of --weight-bits that rounds nothing.
ALL_BITS = "all"


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


def _own_data(
    task: str | None,
    data_dir: Path | None,
    train_data: Path | None,
    eval_data: Path | None,
    text_column: list[str] | None,
    label_column: str | None,
) -> dict[str, Any]:
    """Return the fields of a recipe that say what is trained on: a task of the registry, or data of one's own.

    Raises:
        UserInputError: both are given, or neither, or options that do not go together.
    """
    if train_data is None:
        given = {"--eval-data": eval_data, "--text-column": text_column or None, "--label-column": label_column}
        for name, value in given.items():
            if value is not None:
                raise UserInputError(f"{name}: it goes with --train-data, which is missing", "give --train-data FILE")
        if task is None:
            raise UserInputError(
                "--task: neither a task nor data of your own is given", "give --task, or --train-data FILE"
            )
        return {"task": task, "data_dir": data_dir}
    is_embedding = task == EMBEDDING
    for name, value in (("--task", None if is_embedding else task), ("--data-dir", data_dir)):
        if value is not None:
            raise UserInputError(
                f"--train-data: it was given with {name}, which is for tasks of the registry", "give one of the two"
            )
    for name, path in (("--train-data", train_data), ("--eval-data", eval_data)):
        if path is not None and not path.exists():
            raise UserInputError(f"{name}: {path} does not exist", "check the path")
    columns = tuple(text_column) if text_column else None
    own = {"train_data": train_data, "eval_data": eval_data, "text_columns": columns, "label_column": label_column}
    if is_embedding:
        return {"task": EMBEDDING} | own | {"label_column": ""}
    return {"task": OWN_DATA} | own


RECIPES = ("fitted", "paper")
ONE_TASK = "One of {}."

Out = Annotated[Path, option(group=OUTPUT, about="New folder for the result.")]
DataDir = Annotated[
    Path | None, options.folder("--data-dir", group=INPUT, about="Folder of parquet files; default: download.")
]
TrainData = Annotated[Path | None, option(group=INPUT, about="File of your own texts with labels; instead of --task.")]
EvalData = Annotated[
    Path | None, option(group=INPUT, about="File to choose epochs by; default: a part of --train-data.")
]
TextColumn = Annotated[
    list[str] | None, options.column("--text-column", "Column of text there, given twice for a pair; default: guessed.")
]
LabelColumn = Annotated[str | None, options.column("--label-column", "Column of labels there; default: guessed.")]
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
    task: Annotated[str | None, options.task(ONE_TASK)] = None,
    model: Backbone = None,
    data_dir: DataDir = None,
    train_data: TrainData = None,
    eval_data: EvalData = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
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

    data = _own_data(task, data_dir, train_data, eval_data, text_column, label_column)
    recipe = TeacherRecipe(
        **data,
        model=model or str(default_backbone()),
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
    teacher: Annotated[Path, options.folder("--teacher", group=INPUT, about="Folder of a fine-tuned model.")],
    task: Annotated[str | None, options.task("The teacher's task. One of {}.", [EMBEDDING])] = None,
    data_dir: DataDir = None,
    train_data: TrainData = None,
    eval_data: EvalData = None,
    limit: Limit = None,
    max_length: MaxLength = 128,
    gelu: Gelu = "quad",
    softmax: Softmax = "2quad",
    constant_norms: Annotated[
        str, option(group=TRAINING, about="LayerNorms with a learnt constant: attention, output or all.")
    ] = "",
    layers: Annotated[
        int | None, option(group=TRAINING, about="Fewer encoder layers, and with --intermediate fewer units.")
    ] = None,
    intermediate: Annotated[
        int | None, option(group=TRAINING, about="Feed-forward units, by default the teacher's.", hidden=True)
    ] = None,
    strides: Annotated[
        str, option(group=TRAINING, about="Of how many positions each layer keeps one: 1,4,1,1,1,1.")
    ] = "",
    start: Annotated[
        str,
        choice("--from", _starts, group=TRAINING, about="{} or a general student.", check=_known_start),
    ] = "fitted",
    recipe: Annotated[
        str, choice("--recipe", lambda: RECIPES, group=TRAINING, about="One of {} (as published).")
    ] = "fitted",
    epochs1: Annotated[int, option(group=TRAINING, about="Passes of stage 1, on what is inside the model.")] = 4,
    lr1: Annotated[float, option(group=TRAINING, about="Peak learning rate of stage 1.")] = 1e-4,
    epochs2: Annotated[int, option(group=TRAINING, about="Passes of stage 2, on the logits.")] = 2,
    lr2: Annotated[float, option(group=TRAINING, about="Peak learning rate of stage 2.")] = 3e-5,
    replaced: Replaced = 0.25,
    weight_bits: Annotated[
        str | None,
        choice(
            "--weight-bits",
            lambda: [*map(str, BITS), ALL_BITS],
            group=TRAINING,
            about="Round weights to one of {} bits.",
        ),
    ] = None,
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
    from distill.teacher import columns_of
    from mpcformer.modeling.description import carries_compact, described, split_norms, split_strides
    from mpcformer.modeling.folder import read_config

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
    columns = columns_of(teacher) if train_data else (None, None)
    data = _own_data(task, data_dir, train_data, eval_data, *columns)
    if recipe == "paper":
        chosen |= paper_recipe(data["task"])
    if objective == "labels":
        chosen |= LABELS_ALONE
    norms = tuple(split_norms(constant_norms))
    if weight_bits is None:
        projected = described(read_config(teacher), str(teacher)).projection
        is_carried = carries_compact(gelu, softmax, norms) and not projected
        weight_bits = str(WEIGHT_BITS) if is_carried else ALL_BITS
    made = DistillRecipe(
        teacher=teacher,
        **data,
        limit=limit,
        gelu=gelu,
        softmax=softmax,
        constant_norms=norms,
        strides=split_strides(strides),
        engine_precision=WIDE if weight_bits == ALL_BITS else COMPACT,
        weight_bits=None if weight_bits == ALL_BITS else int(weight_bits),
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
    apart = "sentences of --eval-data" if record.get("recipe", {}).get("eval_data") else "training sentences set aside"
    head = f"score on {record['n_selection']} {apart}"
    table = PlainTable(f"{record['task']}: {out}", "model", head)
    for name, score in scores.items():
        table.add_row(name, f"{score:.4f}")
    console.print(table)
    console.print(f"Trained on {record['n_training']} sentences. The task's own evaluation split was not looked at.")
    for engine, verdict in record.get("engines", {}).items():
        console.print(f"engine {engine}: {'runs it' if verdict == RUNS else f'refuses it: {verdict}'}", soft_wrap=True)
