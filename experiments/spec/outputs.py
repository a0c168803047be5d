"""The output sections of an experiment's TOML: tables, figures, and tolerances for a repeated run."""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from experiments.spec.quantities import QUANTITIES, RENAMED, Axis, Kind


class Strict(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def one_of(value: str, known: Iterable[str], what: str) -> str:
    """Return the value if it is known.

    Raises:
        ValueError: the value is unknown; pydantic collects this error.
    """
    names = list(known)
    if value not in names:
        raise ValueError(f"{what} {value!r} is unknown; choose one of: {', '.join(names)}")
    return value


def _quantity(value: str) -> str:
    return one_of(RENAMED.get(value, value), QUANTITIES, "quantity")


QuantityName = Annotated[str, AfterValidator(_quantity)]
FileName = Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]


class Tolerance(Strict):
    """The largest allowed distance of a number from the recorded one: an absolute distance or a ratio."""

    absolute: float | None = Field(default=None, ge=0)
    ratio: float | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.absolute is None) == (self.ratio is None):
            raise ValueError('give absolute or ratio, or in their place "exact" or "ignore"')
        return self


class Tolerances(Strict):
    """The tolerance of each kind of quantity."""

    score: Tolerance | Literal["exact", "ignore"] = Tolerance(absolute=0.05)
    agreement: Tolerance | Literal["exact", "ignore"] = Tolerance(absolute=0.005)
    error: Tolerance | Literal["exact", "ignore"] = Tolerance(ratio=10.0)
    seconds: Tolerance | Literal["exact", "ignore"] = "ignore"
    bytes: Tolerance | Literal["exact", "ignore"] = "exact"
    rounds: Tolerance | Literal["exact", "ignore"] = "exact"

    def allow(self, kind: Kind, recorded: float, new: float) -> bool:
        """Return whether two measurements of a kind agree."""
        rule = getattr(self, kind)
        if rule == "ignore":
            return True
        if rule == "exact":
            return recorded == new
        if rule.absolute is not None:
            return bool(abs(recorded - new) <= rule.absolute + 1e-12)
        low, high = sorted((abs(recorded), abs(new)))
        return bool(recorded == new or (low > 0 and recorded * new > 0 and high / low <= rule.ratio))


class TableSpec(Strict):
    """A table: one line for each combination of `rows`, one column for each value or each point of axis `columns`."""

    name: FileName
    title: str
    rows: tuple[Axis, ...] = Field(min_length=1)
    columns: Axis | None = None
    values: tuple[QuantityName, ...] = Field(min_length=1)
    published: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.columns and len(self.values) != 1:
            raise ValueError("a table with columns shows one value")
        if self.published and self.columns != "task":
            raise ValueError("published figures need a table whose columns are tasks")
        return self

    @property
    def axes(self) -> set[Axis]:
        """The axes that tell the cells apart."""
        return {*self.rows, *([self.columns] if self.columns else [])}


class _Figure(Strict):
    name: FileName
    title: str
    each: Axis | None = None

    @property
    def axes(self) -> set[Axis]:
        """The axes that tell the points apart."""
        return {axis for axis in (self.each, getattr(self, "x", None), getattr(self, "series", None)) if axis}


class BarsFigure(_Figure):
    """Groups of bars along an axis. If `stacked`, the bars of a group stand on top of each other."""

    kind: Literal["bars"]
    x: Axis
    y: QuantityName
    series: Axis | None = None
    stacked: bool = False


class LinesFigure(_Figure):
    """Lines along an axis of numbers, one for each point of axis `series`."""

    kind: Literal["lines"]
    x: Literal["share", "seed"]
    y: QuantityName
    series: Axis | None = None


class ScatterFigure(_Figure):
    """One quantity against another: a point for each combination of `label`, with the best compromises connected."""

    kind: Literal["scatter"]
    x: QuantityName
    y: QuantityName
    label: tuple[Axis, ...] = Field(min_length=1)
    log: bool = False

    @property
    def axes(self) -> set[Axis]:
        """The axes that tell the points apart."""
        return {*self.label, *([self.each] if self.each else [])}


class CurvesFigure(_Figure):
    """Functions over their range and, below, their distance from the exact function."""

    kind: Literal["curves"]
    function: str


FigureSpec = Annotated[BarsFigure | LinesFigure | ScatterFigure | CurvesFigure, Field(discriminator="kind")]
