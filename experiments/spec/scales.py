"""How much of an experiment: the sections [scale.smoke], [scale.cpu] and [scale.full] of its TOML, by kind."""

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
    """A way to make a student; see `DistillRecipe`.

    Args:
        name: unique in its experiment.
        recipe: ours or the published one.
        start: none: the recipe's.
        gelu, softmax: in place of the scale's.
        layers, intermediate: none: the teacher's.
        constant_norms: LayerNorms that divide by a learnt constant: attention, output, all, or names.
        replaced: of the tokens in half of the texts, the share that others stand in for; none: the recipe's.
        match1, also1, also2: what the stages match; none: the recipe's; no also1 at all: [].
        layer_rates: a layer's rate over the next higher one's; none: all have the same.
        learning_rate1: in place of the scale's.
        untrained: nothing but the start.
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
    untrained: bool = False


class TeacherTraining(Strict):
    """How a scale trains its teachers; see `TeacherRecipe`.

    Args:
        learning_rates: in place of learning_rate; a teacher each, of which the best by selection is taken, the first of
            equals.
        after: the task whose teacher of the same seed it starts from, with a new head; none: the backbone.
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
                raise ValueError(f"learning_rates: {list(self.learning_rates)} is no list of different rates")
        return self

    @model_serializer(mode="wrap")
    def _as_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        values.pop("learning_rate" if self.learning_rates else "learning_rates", None)
        return values

    @property
    def rates(self) -> tuple[float, ...]:
        """All to be tried."""
        return self.learning_rates or (self.learning_rate,)

    def changed(self, by: Self) -> Self:
        """With what another was given in place of its own; one rate replaces several, and several one."""
        given = by.model_dump(exclude_unset=True)
        if "learning_rate" in given:
            given["learning_rates"] = ()
        return self.model_copy(update=given)


class StudentTraining(Strict):
    """How a scale distils.

    Args:
        epochs1, learning_rate1, epochs2, learning_rate2: by our recipe.
        labels_rate: of students that learn from labels alone; none: learning_rate1, at which a quadratic may diverge.
        paper_share: of the published recipe's epochs, at least one a stage.
        share: of the training examples that the students are distilled on; the teacher has them all.
        replaced: as a model's, of all our recipe's students; none: the recipe's.
        batch_size: none: train_batch_size, which is the teacher's.
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
    """How a scale makes the general student that models with start "general" begin from; see `GeneralRecipe`.

    One for all tasks and seeds, distilled from the backbone.

    Args:
        tasks: on whose training texts; none: the scale's.
        limit: training examples of each task; none: all.
    """

    tasks: tuple[TaskName, ...] = Field(default=(), exclude_if=_is_empty)
    epochs: Positive = 3
    learning_rate: Rate = 3e-4
    limit: Positive | None = None


class TaskSettings(Strict):
    """What tasks may differ in.

    Args:
        train_limit, eval_limit: examples; none: all.
        private_limit: of the evaluated examples, those that are also inferred privately; none: all.
        selection_share: of the training examples, set aside to choose by.
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
    """How much of an experiment that trains and infers.

    Args:
        backbone: made-up (tiny, random), minilm, a folder, or a model of the hub.
        data: made-up sentences, or real ones: those of --data-dir, or of the hub.
        by_task: what a task has in place of the scale's settings; only the keys that are given count.
        general: how the general student is made, if a model starts from one.
        shares: of the training examples that students are distilled on, one student each.
        models: names of the experiment's models that this scale makes; none: all.
        private: names of the models that also run privately; none: all.
        torch_threads: of a training; none: torch's own choice. One makes a run repeatable on another machine.
    """

    backbone: str = "minilm"
    data: Literal["made-up", "real"] = "real"
    tasks: tuple[TaskName, ...] = Field(min_length=1)
    # Left out of a dump where there is none: records and steps made before there were any stay what they are.
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
                remedy = f"choose another of tasks ({', '.join(self.tasks)}) whose own starts from the backbone"
                raise ValueError(f"teacher.after: {after!r} of {task} is no start for it; {remedy}")
            if missing := set(own.seeds) - set(self.of(after).seeds):
                raise ValueError(
                    f"teacher.after: {task} has seeds {sorted(missing)}, which {after} has not; add them there"
                )
        return self

    @field_serializer("by_task")
    def _given(self, by_task: Mapping[str, TaskSettings]) -> dict[str, Any]:
        return {task: settings.model_dump(mode="json", exclude_unset=True) for task, settings in by_task.items()}

    def of(self, task: str) -> Self:
        """The scale as one task has it."""
        if task not in self.by_task:
            return self.model_copy(update={"by_task": {}})
        given = self.by_task[task]
        changes = {name: getattr(given, name) for name in given.model_fields_set}
        changes["teacher"] = self.teacher.changed(given.teacher)
        changes["student"] = self.student.model_copy(update=given.student.model_dump(exclude_unset=True))
        return self.model_copy(update={"by_task": {}, **changes})

    def axes(self) -> dict[Axis, int]:
        """How many points each axis has, models apart."""
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
    """How much of an experiment that measures engines; see `BenchOptions`. model may be made-up too."""

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
        """How many points each axis has; operations are rows of their own."""
        return {"engine": len(self.engines), "network": len(self.networks)}


class FunctionsScale(Strict):
    """How finely an experiment on approximations looks; points of each range."""

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
        """Every row is another function's form."""
        return {"function": 2, "form": max(2, len(self.gelu) + len(self.softmax))}


class CountedSpec(Strict):
    """A model to count a batch of; see `mpcformer estimate`.

    Args:
        name: unique in its experiment.
        model: a shape with random weights.
        layers: none: all.
        constant_norms: LayerNorms that divide by a constant: attention, output, all, or names.
    """

    name: str = Field(min_length=1)
    model: Annotated[str, _known(tuple(SHAPES), "model")] = "bert-base"
    layers: Positive | None = None
    gelu: Gelu = "quad"
    softmax: Softmax = "2quad"
    constant_norms: tuple[str, ...] = ()


class CountsScale(Strict):
    """Which models an experiment counts, in which batch; models: their names, none: all."""

    models: tuple[str, ...] | None = None
    seq_len: int = Field(default=128, ge=4, le=512)
    batch_size: Positive = 1
    engines: tuple[Engine, ...] = Field(default=engine_names(), min_length=1)

    def axes(self) -> dict[Axis, int]:
        """How many points each axis has, models apart."""
        return {"engine": len(self.engines)}
