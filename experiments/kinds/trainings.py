"""The trainings of an experiment of kind `students`: recipes of teachers and students as its TOML asks."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from distill.recipe import LABELS_ALONE, DistillRecipe, GeneralRecipe, TeacherRecipe, paper_recipe
from experiments.kinds.models import Training
from experiments.spec.scales import ModelSpec, StudentsScale
from mpcformer.modeling.precision import COMPACT

# The task and the seed of a teacher.
TeacherKey = tuple[str, int]


@dataclass(frozen=True)
class TrainingData:
    """The number of a task's training examples, and their digest."""

    n: int
    digest: str


@dataclass(frozen=True)
class Variant:
    """One student: its task, model, forms, share of the training data and seed."""

    task: str
    model: ModelSpec
    gelu: str
    softmax: str
    share: float
    seed: int

    def key(self) -> dict[str, str | int | float]:
        """Return the key of the student's rows."""
        return asdict(self) | {"model": self.model.name}


@dataclass(frozen=True)
class Teacher:
    """A teacher that students are distilled from.

    Args:
        training: how the teacher is made.
        weights: the digest of the trained weights.
        folder: the folder of the teacher. It may be missing if a record has all the values that are needed.
    """

    training: Training
    weights: str
    folder: Path

    @property
    def origin(self) -> dict[str, str]:
        """Origin fields of the teacher's row."""
        return {"model": self.training.name, "weights": self.weights}


@dataclass(frozen=True)
class Trainings:
    """The trainings of one scale of an experiment.

    Args:
        models: the ways to make a student.
        scale: the section of the scale.
        train: the training examples by task.
        texts: the digest of the texts that the general student is trained on.
        data_dir: the folder of the data; None means the hub.
        backbone: the checkpoint that teachers start from.
        base: the digest of the backbone.
        cache: the folder of all trained models.
    """

    models: tuple[ModelSpec, ...]
    scale: StudentsScale
    train: Mapping[str, TrainingData]
    texts: str
    data_dir: Path | None
    backbone: Path
    base: str
    cache: Path

    def grid(self, key: TeacherKey, teachers: dict[TeacherKey, Teacher]) -> list[Training]:
        """Return the trainings of a teacher, one for each learning rate."""
        (task, seed), own = key, self.scale.of(key[0]).teacher
        start = teachers[own.after, seed] if own.after else None
        return [self.teacher(task, seed, rate, start) for rate in own.rates]

    def teacher(self, task: str, seed: int, rate: float, start: Teacher | None = None) -> Training:
        """Return the training of a teacher at one learning rate.

        It starts from another task's teacher `start`, or from the backbone if that is None.
        """
        scale = self.scale.of(task)
        recipe = TeacherRecipe(
            task=task,
            model=str(start.folder if start else self.backbone),
            data_dir=self.data_dir,
            limit=scale.train_limit,
            epochs=scale.teacher.epochs,
            learning_rate=rate,
            batch_size=scale.train_batch_size,
            max_length=scale.max_length,
            seed=seed,
            precision=scale.precision,
            selection_share=scale.selection_share,
        )
        label = f"teacher, {task}, seed {seed}, rate {rate:g}"
        source = start.weights if start else self.base
        return Training(label, recipe, self.train[task].digest, source, scale.torch_threads)

    def general(self, gelu: str, softmax: str) -> Training:
        """Return the training of the general student with these forms."""
        scale = self.scale
        recipe = GeneralRecipe(
            tasks=scale.general.tasks or scale.tasks,
            model=str(self.backbone),
            data_dir=self.data_dir,
            limit=min((n for n in (scale.general.limit, scale.train_limit) if n), default=None),
            gelu=gelu,
            softmax=softmax,
            epochs=scale.general.epochs,
            learning_rate=scale.general.learning_rate,
            batch_size=scale.train_batch_size,
            max_length=scale.max_length,
            precision=scale.precision,
            selection_share=scale.selection_share,
        )
        label = f"general student, {gelu}, {softmax}"
        return Training(label, recipe, self.texts, self.base, scale.torch_threads)

    def variants(self) -> Iterator[Variant]:
        """Yield all students of the scale."""
        for task in self.scale.tasks:
            s = self.scale.of(task)
            for model in self.models:
                if s.models is not None and model.name not in s.models:
                    continue
                for values in itertools.product(*model.forms(s), s.shares, s.seeds):
                    yield Variant(task, model, *values)

    def student(self, variant: Variant, teachers: dict[TeacherKey, Teacher]) -> Training:
        """Return the training of a student, which is distilled from its teacher among `teachers`."""
        scale, model = self.scale.of(variant.task), variant.model
        teacher = teachers[variant.task, variant.seed]
        # With share 1 the recipe, and so the hash of the model, equals that of an experiment without shares.
        share = variant.share * scale.student.share
        limit = scale.train_limit if share == 1 else max(1, round(share * self.train[variant.task].n))
        rates = ("epochs1", "learning_rate1", "epochs2", "learning_rate2")
        recipe = DistillRecipe(
            teacher=teacher.folder,
            task=variant.task,
            data_dir=self.data_dir,
            limit=limit,
            gelu=variant.gelu,
            softmax=variant.softmax,
            batch_size=scale.student.batch_size or scale.train_batch_size,
            max_length=scale.max_length,
            seed=variant.seed,
            precision=scale.precision,
            selection_share=scale.selection_share,
            layers=model.layers,
            intermediate=model.intermediate,
            constant_norms=model.constant_norms,
            strides=model.strides,
            **{name: getattr(scale.student, name) for name in rates},
        )
        if scale.student.replaced is not None:
            recipe = replace(recipe, replaced=scale.student.replaced)
        if model.recipe == "paper":
            published = paper_recipe(variant.task) | {"max_length": scale.max_length}
            for name in ("epochs1", "epochs2"):
                published[name] = max(1, round(published[name] * scale.student.paper_share))
            recipe = replace(recipe, **published)
        if model.objective == "labels":
            recipe = replace(recipe, learning_rate1=scale.student.labels_rate or recipe.learning_rate1, **LABELS_ALONE)
        changes = ("replaced", "match1", "also1", "also2", "layer_rates", "learning_rate1", "start")
        own = {name: getattr(model, name) for name in changes}
        recipe = replace(recipe, **{name: value for name, value in own.items() if value is not None})
        if model.weight_bits is not None:
            recipe = replace(recipe, engine_precision=COMPACT, weight_bits=model.weight_bits)
        if model.untrained:
            recipe = replace(recipe, epochs1=0, epochs2=0, also1=())
        label = ", ".join(str(value) for value in variant.key().values())
        made_of = (self.train[variant.task].digest, teacher.weights, scale.torch_threads)
        if recipe.start != "general":
            return Training(label, recipe, *made_of)
        general = self.general(variant.gelu, variant.softmax).name
        return Training(label, replace(recipe, general=self.cache / general), *made_of, general=general)
