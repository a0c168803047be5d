"""Draw the figures of an experiment's rows as SVG and PNG. The same rows give the same bytes."""

import io
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.render.labels import show
from experiments.spec.outputs import BarsFigure, CurvesFigure, FigureSpec, LinesFigure, ScatterFigure
from experiments.spec.quantities import QUANTITIES, Axis, Row

Point = str | int | float
Curves = dict[str, dict[str, list[float]]]
SIZE, TALL, DPI = (6.4, 4.0), (6.4, 5.6), 150
# The colours of Okabe and Ito, which readers with any colour vision can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
MARKERS = "osD^vP*X"
# Hatches and dashes tell series apart when colours repeat.
HATCHES, DASHES = (None, "///", "..."), ("-", "--", ":")
STYLE: Any = {
    "backend": "Agg",
    "svg.hashsalt": "mpcformer",  # without a fixed salt, ids differ from run to run
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dfe1e5",
    "grid.linewidth": 0.6,
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
NUMBERS = {"share": "share of the training examples", "seed": "seed"}
ERRORS_FROM = 1e-6
# Numbers of characters: the name of a group of bars is wrapped at the first; names of more characters in total than the
# second do not fit side by side.
NAME_WIDTH, CROWDED = 30, 70


@dataclass(frozen=True)
class Drawing:
    """A finished figure: its file name without suffix, its title, and the bytes of the two files."""

    name: str
    title: str
    svg: bytes
    png: bytes


def draw(spec: FigureSpec, rows: Sequence[Row], curves: Curves | None = None) -> list[Drawing]:
    """Return the figure, or one figure for each point of its axis `each`.

    Args:
        spec: the figure as the experiment's TOML states it.
        rows: the experiment's results.
        curves: for a figure of kind `curves`, the points by function: {"x": [...], FORM: [...]}.
    """
    if isinstance(spec, CurvesFigure):
        return [finished(spec.name, spec.title, lambda figure: _curves(figure, spec, curves or {}), TALL)]
    rows = [row for row in rows if _has(row, spec)]
    if spec.each is None:
        return [finished(spec.name, spec.title, lambda figure: _panel(figure.subplots(), spec, rows))]
    drawings = []
    for point in _points(rows, spec.each):
        chosen = [row for row in rows if row.key[spec.each] == point]
        name, title = f"{spec.name}-{str(point).replace(' ', '-')}", f"{spec.title}, {show(point)}"
        drawings.append(finished(name, title, lambda figure, chosen=chosen: _panel(figure.subplots(), spec, chosen)))
    return drawings


def finished(name: str, title: str, fill: Any, size: tuple[float, float] = SIZE) -> Drawing:
    """Return the figure that `fill` draws into an empty one, in this project's style."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size)
        fill(figure)
        figure.suptitle(title, fontsize=10.5)
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": "mpcformer"})
        figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    return Drawing(name, title, svg.getvalue(), png.getvalue())


def _has(row: Row, spec: BarsFigure | LinesFigure | ScatterFigure) -> bool:
    wanted = [spec.y, *([spec.x] if isinstance(spec, ScatterFigure) else [])]
    return all(name in row.values for name in wanted) and all(axis in row.key for axis in spec.axes)


def _points(rows: Sequence[Row], axis: Axis | None) -> list[Point]:
    """Return the points of an axis in order of appearance, or one empty point if there is no axis."""
    return list(dict.fromkeys(row.key[axis] for row in rows)) if axis else [""]


def _over_seeds(rows: Sequence[Row], name: str, **where: Point) -> float | None:
    numbers = [row.values[name] for row in rows if all(row.key[axis] == value for axis, value in where.items())]
    return QUANTITIES[name].shown(QUANTITIES[name].over_seeds(numbers)) if numbers else None


def _panel(axes: Axes, spec: BarsFigure | LinesFigure | ScatterFigure, rows: Sequence[Row]) -> None:
    if isinstance(spec, BarsFigure):
        _bars(axes, spec, rows)
    elif isinstance(spec, LinesFigure):
        _lines(axes, spec, rows)
    else:
        _scatter(axes, spec, rows)
    axes.set_ylabel(QUANTITIES[spec.y].title)


def _bars(axes: Axes, spec: BarsFigure, rows: Sequence[Row]) -> None:
    groups, series = _points(rows, spec.x), _points(rows, spec.series)
    width = 0.6 if spec.stacked else 0.8 / len(series)
    bottom = [0.0] * len(groups)
    for number, name in enumerate(series):
        where = {spec.series: name} if spec.series else {}
        heights = [_over_seeds(rows, spec.y, **{spec.x: group}, **where) or 0.0 for group in groups]
        shift = 0.0 if spec.stacked else (number - (len(series) - 1) / 2) * width
        places = [i + shift for i in range(len(groups))]
        hatch = HATCHES[(number // len(COLOURS)) % len(HATCHES)]
        axes.bar(places, heights, width, bottom=bottom if spec.stacked else None, label=show(name), hatch=hatch)
        if spec.stacked:
            bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    # Names that do not fit side by side are rotated.
    names = ["\n".join(textwrap.wrap(show(group), NAME_WIDTH)) for group in groups]
    steep: Any = {"rotation": 65, "ha": "right", "rotation_mode": "anchor", "fontsize": "small"}
    crowded = sum(max(map(len, name.split("\n"))) for name in names) > CROWDED
    axes.set_xticks(range(len(groups)), names, **(steep if crowded else {}))
    axes.set_xlabel(spec.x)
    axes.grid(visible=False, axis="x")
    if spec.series:
        axes.legend(title=spec.series, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _lines(axes: Axes, spec: LinesFigure, rows: Sequence[Row]) -> None:
    for number, name in enumerate(_points(rows, spec.series)):
        where = {spec.series: name} if spec.series else {}
        xs = sorted(x for x in _points(rows, spec.x) if isinstance(x, int | float))
        points = [(x, y) for x in xs if (y := _over_seeds(rows, spec.y, **{spec.x: x}, **where)) is not None]
        dash = DASHES[(number // len(COLOURS)) % len(DASHES)]
        style: Any = {"marker": MARKERS[number % len(MARKERS)], "linestyle": dash}
        axes.plot(*zip(*points, strict=True), **style, label=show(name))
    axes.set_xlabel(NUMBERS[spec.x])
    if spec.series:
        axes.legend(title=spec.series)


def _scatter(axes: Axes, spec: ScatterFigure, rows: Sequence[Row]) -> None:
    points: list[tuple[float, float]] = []
    for number, label in enumerate(_labels(rows, spec.label)):
        where: dict[str, Point] = dict(zip(spec.label, label, strict=True))
        x, y = _over_seeds(rows, spec.x, **where), _over_seeds(rows, spec.y, **where)
        assert x is not None
        assert y is not None
        points.append((x, y))
        marker = MARKERS[(number // len(COLOURS)) % len(MARKERS)]
        style: Any = {"color": COLOURS[number % len(COLOURS)], "marker": marker}
        axes.plot([x], [y], linestyle="", markersize=7, label=" + ".join(map(show, label)), zorder=3, **style)
    front = list(pareto(points))
    axes.plot(
        *zip(*front, strict=True), color="#5b6068", linewidth=1.0, linestyle="--", zorder=2, label="best compromises"
    )
    axes.set_xlabel(QUANTITIES[spec.x].title)
    if spec.log:
        axes.set_xscale("log")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _labels(rows: Sequence[Row], axes: Sequence[Axis]) -> list[tuple[Point, ...]]:
    return list(dict.fromkeys(tuple(row.key.get(axis, "") for axis in axes) for row in rows))


def pareto(points: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Yield the points (cost, gain) that no other point beats in both, the cheapest first."""
    best = float("-inf")
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if y > best:
            best = y
            yield x, y


def _curves(figure: Figure, spec: CurvesFigure, curves: Curves) -> None:
    points = curves[spec.function]
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    x, exact = points["x"], points["exact"]
    above.plot(x, exact, color="#000000", linewidth=2.2, label="exact")
    for form in (name for name in points if name not in ("x", "exact")):
        (line,) = above.plot(x, points[form], label=show(form), linewidth=1.2)
        errors = [max(abs(a - b), ERRORS_FROM) for a, b in zip(points[form], exact, strict=True)]
        below.plot(x, errors, color=line.get_color(), linewidth=1.2)
    low, high = min(exact), max(exact)
    above.set_ylim(low - 0.3 * (high - low), high + 0.3 * (high - low))
    above.set_ylabel(spec.function)
    above.legend()
    below.set_yscale("log")
    below.set_ylabel("absolute error")
    below.set_xlabel("input")
