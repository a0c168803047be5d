"""The options that determine how a teacher, a general student or a student is made; ours, and those of MPCFormer."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mpcformer.errors import UserInputError


def default_backbone() -> Path:
    """Return the folder of the BERT that a training starts from unless another is given.

    It loads transformers, for which a command's help should not wait.
    """
    from mpcformer import modeling

    return modeling.default_backbone()


@dataclass(frozen=True)
class TeacherRecipe:
    """The options of a teacher's training. The saved model's record contains them.

    Args:
        task: the name of the task.
        model: the BERT that is fine-tuned: a folder, or an id on the Hugging Face hub.
        data_dir: a folder of parquet files; None: the data are downloaded.
        limit: the number of training examples to use; None: all.
        epochs: how often the training goes through all examples.
        learning_rate: the peak learning rate.
        batch_size: the number of texts in a batch.
        max_length: longer texts are cut to this many tokens.
        seed: determines batches, dropout and the new head.
        precision: "auto", "fp32" or "bf16"; see `distill.training.device.autocast`.
        selection_share: the fraction of the training examples that is set aside to choose the best epoch by.
        train_data: the file of own data to train on, in place of a task of the registry; `task` is then `OWN_DATA`.
        eval_data: the file of own data to choose the best epoch by; None: a part of `train_data` is set aside.
        text_columns: the columns of text in both files; None: they are guessed by their names.
        label_column: the column of labels in both files; None: it is guessed by its name.
    """

    task: str
    model: str = field(default_factory=lambda: str(default_backbone()))
    data_dir: Path | None = None
    limit: int | None = None
    epochs: int = 3
    learning_rate: float = 5e-5
    batch_size: int = 32
    max_length: int = 128
    seed: int = 0
    precision: str = "auto"
    selection_share: float = 0.05
    train_data: Path | None = None
    eval_data: Path | None = None
    text_columns: tuple[str, ...] | None = None
    label_column: str | None = None


@dataclass(frozen=True)
class GeneralRecipe:
    """The options of a general student's training. The saved model's record contains them.

    Hidden states are always matched; logits never are, because a general student has no head.

    Args:
        tasks: the names of the tasks whose training texts are used, without the texts that are set aside there.
        model: the BERT that the general student is distilled from: the pretrained one that the teachers start from.
        limit: the number of training examples to use for each task; None: all.
        gelu: see `DistillRecipe`; so are softmax, fit_tokens, also1 and replaced.
        data_dir: see `TeacherRecipe`; so are all options that are not described here.
    """

    tasks: tuple[str, ...]
    model: str = field(default_factory=lambda: str(default_backbone()))
    data_dir: Path | None = None
    limit: int | None = None
    gelu: str = "quad"
    softmax: str = "2quad"
    epochs: int = 3
    learning_rate: float = 3e-4
    batch_size: int = 32
    max_length: int = 128
    seed: int = 0
    precision: str = "auto"
    selection_share: float = 0.05
    fit_tokens: int = 40_000
    also1: tuple[str, ...] = ("probabilities",)
    replaced: float = 0.25


@dataclass(frozen=True)
class DistillRecipe:
    """The options of a student's distillation. The saved model's record contains them.

    Options that are not described here are those of `TeacherRecipe`.

    Args:
        teacher: the folder of the teacher.
        gelu: the student's form of GeLU.
        softmax: the student's form of softmax.
        epochs1: the epochs of stage 1, which matches values inside the models.
        learning_rate1: the peak learning rate of stage 1.
        linear_decay1: whether the learning rate of stage 1 falls to zero; the published recipe keeps it constant.
        epochs2: the epochs of stage 2, which matches the logits.
        learning_rate2: the peak learning rate of stage 2.
        start: the weights that the student starts from. "fitted": the teacher's, fitted to the student's forms.
            "teacher": the teacher's as they are. "random": fresh weights drawn from the seed. "general": a general
            student's, with the teacher's pooler and head.
        general: the general student's folder, if `start` is "general".
        fit_tokens: about how many tokens the fit uses.
        match1: what stage 1 matches. "states+logits": hidden states and logits. "states+scores": hidden states and raw
            attention scores, as published; the fit scales and shifts a student's scores, so a fitted student cannot
            match its teacher's. "mixture": the logits of a mixture of both models' layers, after BERT-of-Theseus; see
            `distill.objectives.replacement`. Except under "states+scores", the rows of 2Quad are kept in a range.
        also1: what stage 1 matches in addition. "directions": hidden states, by their cosine similarity.
            "probabilities": attention after its softmax. It must be empty if `match1` is "mixture" and has no effect if
            `objective` is "labels".
        also2: what stage 2 matches in addition. "sinkhorn": the logits of a batch as a set. "labels": the labels of
            the texts in which no word was replaced.
        choose_by: what determines the epoch whose weights are kept, measured on the examples set aside. "logits": how
            close the student's logits are to its teacher's. "score": the task's score, which is less precise on few
            examples; the published recipe uses it, in stage 2. A training on labels alone always uses the score.
        objective: "distil", or "labels": a single stage without a teacher's help, which trains on the labels for
            epochs1 + epochs2 epochs at learning_rate1.
        layers: the number of encoder layers; None: as many as the teacher has.
        intermediate: the number of intermediate units of each layer; None: as many as the teacher has.
        constant_norms: the LayerNorms that divide by a learnt constant, as `MPCFormerConfig` takes them.
        replaced: the fraction of tokens that are replaced by others in half of a batch's texts; see
            `distill.objectives.augment`.
        covers: the texts that the student is prepared for. None: also texts unlike the training texts, see
            `distill.cover` and `distill.start.positions`. "training": texts like the training texts only.
        engine_precision: compact or wide, see `ModelDescription`; None: wide.
        weight_bits: the bits to which the weights are rounded at the end; None: they stay as they are. Rounded weights
            need the compact precision.
        layer_rates: the learning rate of a layer divided by that of the next higher layer, with the embeddings below
            the lowest layer; None: all rates are equal.
        strides: for each layer, of how many of its positions it keeps one, see `ModelDescription`; empty: all are kept.
    """

    teacher: Path
    task: str
    data_dir: Path | None = None
    limit: int | None = None
    gelu: str = "quad"
    softmax: str = "2quad"
    epochs1: int = 4
    learning_rate1: float = 1e-4
    linear_decay1: bool = True
    epochs2: int = 2
    learning_rate2: float = 3e-5
    batch_size: int = 32
    max_length: int = 128
    seed: int = 0
    precision: str = "auto"
    selection_share: float = 0.05
    start: str = "fitted"
    fit_tokens: int = 40_000
    match1: str = "states+logits"
    choose_by: str = "logits"
    objective: str = "distil"
    layers: int | None = None
    intermediate: int | None = None
    constant_norms: tuple[str, ...] = ()
    replaced: float = 0.25
    also1: tuple[str, ...] = ("probabilities",)
    also2: tuple[str, ...] = ()
    layer_rates: float | None = None
    general: Path | None = None
    train_data: Path | None = None
    eval_data: Path | None = None
    text_columns: tuple[str, ...] | None = None
    label_column: str | None = None
    covers: str | None = None
    engine_precision: str | None = None
    weight_bits: int | None = None
    strides: tuple[int, ...] = ()


def asked(recipe: TeacherRecipe | GeneralRecipe | DistillRecipe) -> dict[str, Any]:
    """Return the fields of a recipe without those that are None or empty.

    A new optional field therefore does not change what older recipes give, and the hashes of their models stay.
    """
    return {key: value for key, value in asdict(recipe).items() if value not in (None, ())}


PRECISIONS = ("auto", "fp32", "bf16")
CHOICES = {
    "start": ("fitted", "teacher", "random", "general"),
    "objective": ("distil", "labels"),
    "match1": ("states+logits", "states+scores", "mixture"),
    "choose_by": ("logits", "score"),
}
# The value of `covers` besides None.
TRAINING_TEXTS = "training"
# `also1` and `also2` may contain any of these.
ALSO = {"also1": ("directions", "probabilities"), "also2": ("labels", "sinkhorn")}
# The options of a training on the labels alone, which matches nothing of a teacher's.
LABELS_ALONE: dict[str, Any] = {"objective": "labels", "also1": ()}
# The epochs of stage 1 in the published recipe, for each task; stage 2 has 5 epochs at a learning rate of 1e-5.
PAPER_EPOCHS = {"cola": 50, "mnli": 5, "mrpc": 20, "sst2": 10, "stsb": 100, "qqp": 5, "qnli": 10, "rte": 50, "imdb": 30}


def paper_recipe(task: str) -> dict[str, Any]:
    """Return the options of `DistillRecipe` that MPCFormer published for a task.

    Source: Li et al., MPCFormer, ICLR 2023.

    Raises:
        UserInputError: nothing was published for this task.
    """
    if task not in PAPER_EPOCHS:
        raise UserInputError(
            f"--recipe paper: MPCFormer published no recipe for {task!r}",
            f"choose a task with one: {', '.join(PAPER_EPOCHS)}",
        )
    return {
        "epochs1": PAPER_EPOCHS[task],
        "learning_rate1": 5e-5,
        "linear_decay1": False,
        "epochs2": 5,
        "learning_rate2": 1e-5,
        "start": "teacher",
        "general": None,
        "match1": "states+scores",
        "choose_by": "score",
        "replaced": 0.0,
        "covers": TRAINING_TEXTS,
        "also1": (),
        "max_length": 512 if task == "imdb" else 128,
    }
