"""The sections [scale.smoke], [scale.cpu] and [scale.full] of an experiment's TOML, which say how much is done."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_serializer,
    model_serializer,
    model_validator,
)

from distill.recipe import ALSO, CHOICES
from experiments.spec.outputs import Strict, one_of
from experiments.spec.quantities import Axis
from experiments.spec.shapes import SHAPES
from mpcformer.approximations import GELU_FORMS, SOFTMAX_FORMS
from mpcformer.engines.registry import ALIASES, DEFAULT_ENGINE, engine_names
from mpcformer.errors import MPCFormerError
from mpcformer.modeling.precision import BITS
from mpcformer.tasks import TASKS
from parties.runs.network import network_profile

MADE_UP = "made-up"


def _network(value: str) -> str:
    try:
        network_profile(value)
    except MPCFormerError as error:
        raise ValueError(error.what) from None
    return value


def _known(known: tuple[str, ...], what: str) -> Any:
    return AfterValidator(lambda value: one_of(value, known, what))


def _known_bits(value: int) -> int:
    return int(one_of(str(value), map(str, BITS), "number of bits"))


def _is_none(value: object) -> bool:
    return value is None


def _is_empty(value: Mapping[str, Any] | tuple[Any, ...]) -> bool:
    return not value


TaskName = Annotated[str, _known(tuple(TASKS), "task")]
Gelu = Annotated[str, _known(tuple(GELU_FORMS), "form of GeLU")]
Softmax = Annotated[str, _known(tuple(SOFTMAX_FORMS), "form of softmax")]
Engine = Annotated[str, BeforeValidator(lambda name: ALIASES.get(name, name)), _known(engine_names(), "engine")]
Network = Annotated[str, AfterValidator(_network)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Epochs = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]


class ModelSpec(Strict):
    """A way to make a student; `DistillRecipe` explains the settings.

    Where a setting is missing, the recipe's own value counts unless the list below says otherwise.

    Args:
        name: a name that is unique in the experiment.
        recipe: our recipe ("fitted") or the published one ("paper").
        start: the weights that the student starts from.
        objective: what the student learns from: its teacher, or labels alone.
        gelu, softmax: forms that replace those of the scale.
        layers, intermediate: the size of the student; by default that of the teacher.
        constant_norms: LayerNorms that divide by a learnt constant: attention, output, all, or names.
        replaced: the share of tokens that are replaced by others, in half of the texts.
        match1, also1, also2: what the two stages match; an empty list switches also1 off.
        layer_rates: the learning rate of a layer divided by that of the next higher layer; by default 1.
        learning_rate1: a rate that replaces that of the scale.
        strides: for each layer, of how many positions it keeps one; empty: all are kept.
        weight_bits: the bits to which the weights are rounded at the end, 8, 6 or 4, for compact rings; by default they
            stay as they are. It needs Quad, 2Quad and no constant LayerNorm.
        untrained: whether the student is left as it starts.
    """

    name: str = Field(min_length=1)
    recipe: Literal["fitted", "paper"] = "fitted"
    start: Annotated[str, _known(CHOICES["start"], "start")] | None = None
    objective: Annotated[str, _known(CHOICES["objective"], "objective")] = "distil"
    gelu: Gelu | None = None
    softmax: Softmax | None = None
    layers: Positive | None = None
    intermediate: Positive | None = None
    constant_norms: tuple[str, ...] = ()
    replaced: Annotated[float, Field(ge=0, le=1)] | None = None
    match1: Annotated[str, _known(CHOICES["match1"], "match1")] | None = Field(default=None, exclude_if=_is_none)
    also1: tuple[Annotated[str, _known(ALSO["also1"], "also1")], ...] | None = Field(default=None, exclude_if=_is_none)
    also2: tuple[Annotated[str, _known(ALSO["also2"], "also2")], ...] = Field(default=(), exclude_if=_is_empty)
    layer_rates: Share | None = Field(default=None, exclude_if=_is_none)
    learning_rate1: Rate | None = Field(default=None, exclude_if=_is_none)
    strides: tuple[Positive, ...] = Field(default=(), exclude_if=_is_empty)
    weight_bits: Annotated[int, AfterValidator(_known_bits)] | None = Field(default=None, exclude_if=_is_none)
    untrained: bool = False

    def forms(self, scale: "StudentsScale") -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the forms of GeLU and of softmax of a student at a scale: its own, or else the scale's."""
        return (self.gelu,) if self.gelu else scale.gelu, (self.softmax,) if self.softmax else scale.softmax


class TeacherTraining(Strict):
    """The settings by which a scale trains its teachers; `TeacherRecipe` explains those that are not listed here.

    Args:
        learning_rates: several rates in place of learning_rate. A teacher is trained at each rate; the one with the
            best selection score is taken, of equals the first.
        after: the task whose teacher of the same seed is the start, with a new head; by default the backbone is.
    """

    epochs: Positive = 3
    learning_rate: Rate = 5e-5
    learning_rates: tuple[Rate, ...] = ()
    after: TaskName | None = Field(default=None, exclude_if=_is_none)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if "learning_rates" in self.model_fields_set:
            if "learning_rate" in self.model_fields_set:
                raise ValueError("give learning_rate or learning_rates, not both")
            if not self.learning_rates or len(set(self.learning_rates)) < len(self.learning_rates):
                raise ValueError(f"learning_rates: {list(self.learning_rates)} is not a list of different rates")
        return self

    @model_serializer(mode="wrap")
    def _as_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        values.pop("learning_rate" if self.learning_rates else "learning_rates", None)
        return values

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates to be tried."""
        return self.learning_rates or (self.learning_rate,)

    def changed(self, by: Self) -> Self:
        """Return a copy with the settings given to `by`; one rate replaces several rates, and several replace one."""
        given = by.model_dump(exclude_unset=True)
        if "learning_rate" in given:
            given["learning_rates"] = ()
        return self.model_copy(update=given)


class StudentTraining(Strict):
    """The settings by which a scale distils its students.

    Args:
        epochs1, learning_rate1, epochs2, learning_rate2: the epochs and rates of the two stages of our recipe.
        labels_rate: the learning rate of students that learn from labels alone; by default learning_rate1, at which a
            quadratic activation may diverge.
        paper_share: the share of the published recipe's epochs that is trained, at least one epoch in each stage.
        share: the share of the training examples that students are distilled on; the teacher is trained on all of them.
        replaced: the setting of the same name of `ModelSpec`, for all students of our recipe.
        batch_size: the batch size of distillation; by default train_batch_size, which is also the teacher's.
    """

    epochs1: Epochs = 4
    learning_rate1: Rate = 1e-4
    epochs2: Epochs = 2
    learning_rate2: Rate = 3e-5
    labels_rate: Rate | None = Field(default=None, exclude_if=_is_none)
    paper_share: Share = 1.0
    share: Share = Field(default=1.0, exclude_if=lambda value: value == 1)
    replaced: Annotated[float, Field(ge=0, le=1)] | None = Field(default=None, exclude_if=_is_none)
    batch_size: Positive | None = Field(default=None, exclude_if=_is_none)


class GeneralTraining(Strict):
    """The settings of the general student, from which models with start "general" begin; see `GeneralRecipe`.

    There is one general student for all tasks and seeds. It is distilled from the backbone.

    Args:
        tasks: the tasks whose training texts are used; by default those of the scale.
        limit: the number of training examples of each task; by default all.
    """

    tasks: tuple[TaskName, ...] = Field(default=(), exclude_if=_is_empty)
    epochs: Positive = 3
    learning_rate: Rate = 3e-4
    limit: Positive | None = None


class TaskSettings(Strict):
    """The settings that may differ from task to task.

    Args:
        train_limit, eval_limit: the number of examples for training and for evaluation; by default all.
        private_limit: how many of the evaluated examples are also inferred privately; by default all.
        selection_share: the share of the training examples that is set aside to choose epochs and rates by.
    """

    train_limit: Positive | None = None
    eval_limit: Positive | None = None
    private_limit: Positive | None = Field(default=None, exclude_if=_is_none)
    teacher: TeacherTraining = TeacherTraining()
    student: StudentTraining = StudentTraining()
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    batch_size: Positive = 16
    train_batch_size: Positive = 32
    max_length: Positive = 128
    selection_share: Share = 0.05


class StudentsScale(TaskSettings):
    """A scale of an experiment that trains and infers.

    Args:
        backbone: "made-up" (tiny and random), "minilm", a folder, or a model of the hub.
        data: "made-up" sentences, or "real" ones from --data-dir or the hub.
        by_task: settings of single tasks that replace those of the scale; only keys that are given count.
        general: how the general student is made, if a model starts from one.
        shares: shares of the training examples; a student is distilled on each.
        models: the names of the experiment's models that this scale makes; by default all.
        private: the names of the models that also run privately; by default all.
        torch_threads: the number of torch's threads in a training; by default torch's own choice. With one thread a
            run is repeatable on another machine.
    """

    backbone: str = "minilm"
    data: Literal["made-up", "real"] = "real"
    tasks: tuple[TaskName, ...] = Field(min_length=1)
    # A dump leaves empty settings out, so that records and steps from before these settings existed stay valid.
    by_task: Mapping[TaskName, TaskSettings] = Field(default={}, exclude_if=_is_empty)
    general: GeneralTraining = Field(default=GeneralTraining(), exclude_if=lambda value: value == GeneralTraining())
    gelu: tuple[Gelu, ...] = Field(default=("quad",), min_length=1)
    softmax: tuple[Softmax, ...] = Field(default=("2quad",), min_length=1)
    shares: tuple[Share, ...] = Field(default=(1.0,), min_length=1)
    engines: tuple[Engine, ...] = Field(default=(DEFAULT_ENGINE,), min_length=1)
    networks: tuple[Network, ...] = Field(default=("none",), min_length=1)
    models: tuple[str, ...] | None = Field(default=None, exclude_if=_is_none)
    private: tuple[str, ...] | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["cpu", "cuda"] = "cpu"
    torch_threads: Positive | None = None

    @model_validator(mode="after")
    def _asked_for(self) -> Self:
        others = [task for task in self.by_task if task not in self.tasks]
        if others:
            sections, tasks = ", ".join(f"by_task.{task}" for task in others), ", ".join(self.tasks)
            raise ValueError(f"{sections}: not among tasks ({tasks}); add to tasks, or leave the section out")
        for task, own in ((task, self.of(task)) for task in self.tasks):
            if (after := own.teacher.after) is None:
                continue
            if after not in self.tasks or self.of(after).teacher.after:
                remedy = f"choose another of tasks ({', '.join(self.tasks)}) whose teacher starts from the backbone"
                raise ValueError(f"teacher.after: the teacher of {task} cannot start from {after!r}; {remedy}")
            if missing := set(own.seeds) - set(self.of(after).seeds):
                raise ValueError(
                    f"teacher.after: {task} has seeds {sorted(missing)}, which {after} lacks; add them there"
                )
        return self

    @field_serializer("by_task")
    def _given(self, by_task: Mapping[str, TaskSettings]) -> dict[str, Any]:
        return {task: settings.model_dump(mode="json", exclude_unset=True) for task, settings in by_task.items()}

    def of(self, task: str) -> Self:
        """Return the scale with the settings of one task."""
        if task not in self.by_task:
            return self.model_copy(update={"by_task": {}})
        given = self.by_task[task]
        changes = {name: getattr(given, name) for name in given.model_fields_set}
        changes["teacher"] = self.teacher.changed(given.teacher)
        changes["student"] = self.student.model_copy(update=given.student.model_dump(exclude_unset=True))
        return self.model_copy(update={"by_task": {}, **changes})

    def axes(self) -> dict[Axis, int]:
        """Return the number of points on each axis except the models."""
        return {
            "task": len(self.tasks),
            "seed": max(len(self.of(task).seeds) for task in self.tasks),
            "gelu": len(self.gelu),
            "softmax": len(self.softmax),
            "share": len(self.shares),
            "engine": len(self.engines),
            "network": len(self.networks),
        }


class BenchScale(Strict):
    """A scale of an experiment that measures engines; see `BenchOptions`. The model may also be "made-up"."""

    model: str = "minilm"
    seq_len: int = Field(default=128, ge=4, le=512)
    batch_size: Positive = 1
    engines: tuple[Engine, ...] = Field(default=engine_names(), min_length=1)
    networks: tuple[Network, ...] = Field(default=("none",), min_length=1)
    gelu: Gelu = "quad"
    softmax: Softmax = "2quad"
    repeat: Positive = 2
    device: Literal["cpu", "cuda"] = "cpu"

    def axes(self) -> dict[Axis, int]:
        """Return the number of points on each axis; operations have rows of their own."""
        return {"engine": len(self.engines), "network": len(self.networks)}


class FunctionsScale(Strict):
    """A scale of an experiment on approximations.

    Args:
        gelu, softmax: the forms that are compared with the exact functions.
        points: the number of points in each range.
        gelu_range, score_range: the range of GeLU's input and of an attention score.
        keys: the number of keys of the softmax.
    """

    gelu: tuple[Gelu, ...] = ("quad", "relu")
    softmax: tuple[Softmax, ...] = ("2quad", "2relu")
    points: int = Field(default=4001, ge=101)
    gelu_range: tuple[float, float] = (-6.0, 6.0)
    score_range: tuple[float, float] = (-8.0, 8.0)
    keys: Positive = 16

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("gelu_range", "score_range"):
            low, high = getattr(self, name)
            if not low < high:
                raise ValueError(f"{name}: {low} is not below {high}")
        return self

    def axes(self) -> dict[Axis, int]:
        """Return the number of points on each axis: functions and forms."""
        return {"function": 2, "form": max(2, len(self.gelu) + len(self.softmax))}


class CountedSpec(Strict):
    """A model for which the cost of a batch is counted; see `mpcformer estimate`.

    Args:
        name: a name that is unique in the experiment.
        model: the name of a shape, which gets random weights.
        layers: the number of encoder layers; by default all.
        constant_norms: LayerNorms that divide by a constant: attention, output, all, or names.
    """

    name: str = Field(min_length=1)
    model: Annotated[str, _known(tuple(SHAPES), "model")] = "bert-base"
    layers: Positive | None = None
    gelu: Gelu = "quad"
    softmax: Softmax = "2quad"
    constant_norms: tuple[str, ...] = ()


class CountsScale(Strict):
    """A scale of an experiment that counts.

    Args:
        models: the names of the models that are counted; by default all.
        seq_len: tokens of a sentence.
        batch_size: sentences of a batch.
        engines: the engines to count for.
    """

    models: tuple[str, ...] | None = None
    seq_len: int = Field(default=128, ge=4, le=512)
    batch_size: Positive = 1
    engines: tuple[Engine, ...] = Field(default=engine_names(), min_length=1)

    def axes(self) -> dict[Axis, int]:
        """Return the number of points on each axis except the models."""
        return {"engine": len(self.engines)}
