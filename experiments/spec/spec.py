"""Read an experiment's TOML and check all of it: unknown keys are refused, and one error lists everything wrong.

The shipped files are in the package's top folder. The head of each shows the command that replays it.
"""

import hashlib
import itertools
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from distill.recipe import PAPER_EPOCHS
from experiments.spec import SCALES
from experiments.spec.outputs import FigureSpec, Strict, TableSpec, Tolerances
from experiments.spec.quantities import Axis
from experiments.spec.scales import BenchScale, CountedSpec, CountsScale, FunctionsScale, ModelSpec, StudentsScale
from experiments.spec.sentences import SentencesScale
from mpcformer.errors import UserInputError
from mpcformer.modeling.description import carries_compact

SHIPPED = Path(__file__).parent.parent


class _Experiment(Strict):
    title: str
    about: str
    tolerances: Tolerances = Tolerances()
    tables: tuple[TableSpec, ...] = Field(min_length=1)
    figures: tuple[FigureSpec, ...] = ()
    scale: Mapping[str, Any]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        problems = [
            f"scale.{name} is unknown; choose one of: {', '.join(SCALES)}" for name in set(self.scale) - set(SCALES)
        ]
        for names in ([t.name for t in self.tables], [f.name for f in self.figures]):
            problems += [f"{name!r} appears twice" for name in {n for n in names if names.count(n) > 1}]
        for scale_name, scale in self.scale.items():
            varied = {axis for axis, n in self.axes(scale).items() if n > 1} - {"seed"}
            for output in (*self.tables, *self.figures):
                hidden = varied - output.axes if getattr(output, "kind", "") != "curves" else set()
                if hidden:
                    what = ", ".join(sorted(hidden))
                    problems.append(f"{output.name}: scale.{scale_name} varies {what}, which it does not tell apart")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def axes(self, scale: Any) -> dict[Axis, int]:
        """Return the number of points on each axis at a scale."""
        return dict(scale.axes())


class StudentsExperiment(_Experiment):
    """An experiment that trains teachers and students and infers privately."""

    kind: Literal["students"]
    models: tuple[ModelSpec, ...] = Field(min_length=1)
    scale: Mapping[str, StudentsScale] = Field(min_length=1)

    @model_validator(mode="after")
    def _known(self) -> Self:
        names = [model.name for model in self.models]
        chosen = {name: {"models": scale.models, "private": scale.private} for name, scale in self.scale.items()}
        problems = _names_problems(names, chosen)
        problems += ["models: 'teacher' is the teacher's own name"] if "teacher" in names else []
        published = [model.name for model in self.models if model.recipe == "paper"]
        for name, scale in self.scale.items():
            problems += [
                f"model {model.name!r}: has a {key} of its own, and scale.{name} varies {key}"
                for model in self.models
                for key in ("gelu", "softmax")
                if getattr(model, key) and len(getattr(scale, key)) > 1
            ]
            problems += [
                f"scale.{name}.tasks: {task} has no published recipe, but model {published[0]!r} needs one"
                for task in scale.tasks
                if published and task not in PAPER_EPOCHS
            ]
            problems += _rounding_problems(name, scale, self.models)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def axes(self, scale: Any) -> dict[Axis, int]:
        """Return the number of points on each axis of the scale, and the number of models."""
        return {**scale.axes(), "model": len(scale.models or self.models)}


def _rounding_problems(name: str, scale: StudentsScale, models: tuple[ModelSpec, ...]) -> list[str]:
    """Return what is wrong with the models of a scale that have rounded weights: forms that need wide rings."""
    made = [model for model in models if model.weight_bits and (scale.models is None or model.name in scale.models)]
    return [
        f"model {model.name!r}: weight_bits {model.weight_bits} needs quad with 2quad and no constant_norms, but "
        f"scale.{name} makes it of {gelu} with {softmax}"
        f"{' and constant_norms' if model.constant_norms else ''}; change that, or leave weight_bits out"
        for model in made
        for gelu, softmax in itertools.product(*model.forms(scale))
        if not carries_compact(gelu, softmax, model.constant_norms)
    ]


class BenchExperiment(_Experiment):
    """An experiment that measures engines and networks on one model."""

    kind: Literal["bench"]
    scale: Mapping[str, BenchScale] = Field(min_length=1)


class FunctionsExperiment(_Experiment):
    """An experiment that compares approximations with the exact functions; nothing is trained."""

    kind: Literal["functions"]
    scale: Mapping[str, FunctionsScale] = Field(min_length=1)


class CountsExperiment(_Experiment):
    """An experiment that counts rounds and bytes of models with random weights; nothing is trained or run."""

    kind: Literal["counts"]
    models: tuple[CountedSpec, ...] = Field(min_length=1)
    scale: Mapping[str, CountsScale] = Field(min_length=1)

    @model_validator(mode="after")
    def _known(self) -> Self:
        chosen = {name: {"models": scale.models} for name, scale in self.scale.items()}
        problems = _names_problems([model.name for model in self.models], chosen)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def axes(self, scale: Any) -> dict[Axis, int]:
        """Return the number of points on each axis of the scale, and the number of models."""
        return {**scale.axes(), "model": len(scale.models or self.models)}


class SentencesExperiment(_Experiment):
    """An experiment that distils a sentence encoder and asks it privately for embeddings."""

    kind: Literal["sentences"]
    scale: Mapping[str, SentencesScale] = Field(min_length=1)


def _names_problems(names: list[str], chosen: Mapping[str, Mapping[str, tuple[str, ...] | None]]) -> list[str]:
    """Return what is wrong with the names of models: repeated names, and unknown names in the lists of a scale."""
    problems = [f"models: {name!r} appears twice" for name in {n for n in names if names.count(n) > 1}]
    return problems + [
        f"scale.{scale}.{key}: model {model!r} is unknown"
        for scale, lists in chosen.items()
        for key, models in lists.items()
        for model in models or ()
        if model not in names
    ]


Experiment = StudentsExperiment | BenchExperiment | FunctionsExperiment | CountsExperiment | SentencesExperiment
Scale = StudentsScale | BenchScale | FunctionsScale | CountsScale | SentencesScale
_ADAPTER: TypeAdapter[Experiment] = TypeAdapter(Annotated[Experiment, Field(discriminator="kind")])


def shipped() -> dict[str, Path]:
    """Return the TOML files of this package by the name of their experiment."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.toml"))}


def find(name: str) -> Path:
    """Return the TOML of a shipped experiment, or `name` itself if it is a file.

    Raises:
        UserInputError: the name is neither a shipped experiment nor a file.
    """
    path = Path(name)
    if path.is_file():
        return path
    found = shipped().get(name.removesuffix(".toml"))
    if found is None:
        raise UserInputError(
            f"experiment {name!r} is neither a file nor shipped", f"choose one of: {', '.join(shipped())}, or a TOML"
        )
    return found


def load(path: Path) -> Experiment:
    """Read and check an experiment.

    Raises:
        UserInputError: the file is unreadable or not TOML, or keys are wrong; the error lists all of them.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserInputError(f"{path}: {error}", "give an experiment's TOML") from None
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        lines = "; ".join(f"{_place(e['loc'])}: {str(e['msg']).removeprefix('Value error, ')}" for e in error.errors())
        raise UserInputError(f"{path}: {lines}", "correct these keys") from None


def _place(loc: tuple[int | str, ...]) -> str:
    kinds = ("students", "bench", "functions", "counts", "sentences")
    return ".".join(map(str, loc[1:] if loc and loc[0] in kinds else loc)) or "file"


def scale_of(experiment: Experiment, name: str) -> Scale:
    """Return the section of a scale.

    Raises:
        UserInputError: the experiment has no scale of that name.
    """
    if name not in experiment.scale:
        raise UserInputError(f"--scale: {name!r} is unknown", f"choose one of: {', '.join(experiment.scale)}")
    return experiment.scale[name]


def models_of(experiment: Experiment) -> list[dict[str, Any]]:
    """Return the experiment's models as JSON; the list is empty for kinds that have no list of models."""
    models = experiment.models if isinstance(experiment, StudentsExperiment | CountsExperiment) else ()
    return [model.model_dump(mode="json") for model in models]


def digest(value: Any) -> str:
    """Return the hex SHA-256 of a JSON value; equal values have equal digests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
