"""How a teacher, a general student and a student are made: our recipe, and the published one."""

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
    """How a teacher is made; part of the result's record."""

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


@dataclass(frozen=True)
class GeneralRecipe:
    """How a general student is made; part of the result's record.

    tasks: on whose training texts, but for those that a training on the task sets aside.
    model: what it is distilled from: the pretrained BERT that the tasks' teachers start from.
    limit: training examples of each task.
    also1, replaced, fit_tokens: as in `DistillRecipe`. Hidden states are matched always, logits there are none.
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
    """How a student is made; part of the result's record.

    epochs1, learning_rate1: stage 1, what is inside. epochs2, learning_rate2: stage 2, the logits.
    linear_decay1: stage 1's rate falls to zero; the published recipe keeps it constant.
    match1: what stage 1 matches: hidden states and logits, or, as published, hidden states and raw scores. A fitted
        student's scores are scaled and shifted, so its teacher's are no target; 2Quad's rows are held in a range.
        Or, after BERT-of-Theseus, the logits of a mixture of both models' layers (`distill.objectives.replacement`).
    also1, also2: what a stage matches besides. Directions: of hidden states, by cosine. Probabilities: of attention,
        after its softmax. Sinkhorn: a batch's logits as a set. Labels: the data's own, of texts without replaced words.
        What learns from labels alone matches nothing, and a mixture's stage 1 nothing besides.
    layer_rates: a layer's rate over the next higher one's, embeddings lowest; none: all have the same.
    choose_by: what says which epoch's weights are kept, on the examples set aside: how near the student's logits are to
        its teacher's, or its score, which few examples tell less exactly and which the published recipe goes by, in
        stage 2; what learns from labels alone goes by its score too.
    start: what the student starts from: the teacher's weights fitted to its forms, the teacher's as they are, fresh
        ones drawn from the seed, or a general student's with the teacher's pooler and head.
    general: the general student's folder, if it starts from one.
    fit_tokens: about how many tokens the fit looks at.
    objective: distil, or labels: no distillation, one stage on the labels, epochs1 + epochs2 passes at learning_rate1.
    layers, intermediate: of a smaller student than its teacher; none: as many.
    constant_norms: LayerNorms that divide by a learnt constant, as `MPCFormerConfig` takes them.
    replaced: the share of tokens that are replaced by others in half of a batch's texts; see `objectives.augment`.
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


def asked(recipe: TeacherRecipe | GeneralRecipe | DistillRecipe) -> dict[str, Any]:
    """A recipe's fields without those that ask for nothing: one that learns a new option still says what it did."""
    return {key: value for key, value in asdict(recipe).items() if value not in (None, ())}


PRECISIONS = ("auto", "fp32", "bf16")
CHOICES = {
    "start": ("fitted", "teacher", "random", "general"),
    "objective": ("distil", "labels"),
    "match1": ("states+logits", "states+scores", "mixture"),
    "choose_by": ("logits", "score"),
}
# Each of also1 and also2 is any of these.
ALSO = {"also1": ("directions", "probabilities"), "also2": ("labels", "sinkhorn")}
# What learns from the labels alone matches nothing of a teacher.
LABELS_ALONE: dict[str, Any] = {"objective": "labels", "also1": ()}
# Stage 1 epochs of the published recipe; stage 2 is 5 epochs at 1e-5.
PAPER_EPOCHS = {"cola": 50, "mnli": 5, "mrpc": 20, "sst2": 10, "stsb": 100, "qqp": 5, "qnli": 10, "rte": 50, "imdb": 30}


def paper_recipe(task: str) -> dict[str, Any]:
    """The published hyper-parameters of a task.

    Raises:
        UserInputError: MPCFormer did not publish any for it.
    """
    if task not in PAPER_EPOCHS:
        raise UserInputError(
            f"--recipe paper: MPCFormer published none for {task!r}",
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
        "also1": (),
        "max_length": 512 if task == "imdb" else 128,
    }
