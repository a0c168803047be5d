"""Tables of an experiment's rows as Markdown, CSV and LaTeX. The numbers of several seeds are combined into one."""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.render.labels import show
from experiments.spec.outputs import TableSpec
from experiments.spec.quantities import QUANTITIES, Axis, Row
from mpcformer.tasks import get_task
from parties.runs.published import SOURCE, published_scores

DASH = "-"
PUBLISHED = f"published ({SOURCE}; BERT-base, plaintext)"
LATEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"})


@dataclass(frozen=True)
class Table:
    """A table that is ready to be shown.

    Args:
        name, title: the name and title in the table's specification.
        head: the heading of each column.
        lines: the texts of each line; the columns that name the row come first.
        raw: the same lines with numbers of full precision, for CSV.
        n_axes: the number of columns that name the row.
        n_published: the number of lines at the end that hold published figures, which were not measured here.
    """

    name: str
    title: str
    head: list[str]
    lines: list[list[str]]
    raw: list[list[str]]
    n_axes: int
    n_published: int = 0


def build(spec: TableSpec, rows: Sequence[Row]) -> Table:
    """Return the table of those rows that have a quantity that it shows."""
    used = [row for row in rows if any(name in row.values for name in spec.values)]
    if spec.columns:
        used = [row for row in used if spec.columns in row.key]
    lines = list(dict.fromkeys(_point(row, spec.rows) for row in used))
    points = list(dict.fromkeys(row.key[spec.columns] for row in used)) if spec.columns else []
    cells: list[list[tuple[str, list[float]]]] = []
    for line in lines:
        rows_of_line = [row for row in used if _point(row, spec.rows) == line]
        if spec.columns:
            name = spec.values[0]
            cells.append([(name, _numbers(rows_of_line, name, {spec.columns: point})) for point in points])
        else:
            cells.append([(name, _numbers(rows_of_line, name, {})) for name in spec.values])
    heads = [show(point) for point in points] or [QUANTITIES[name].title for name in spec.values]
    texts = [[*map(show, line), *(_text(*cell) for cell in row)] for line, row in zip(lines, cells, strict=True)]
    raw = [
        [
            *map(str, line),
            *(_raw(name, QUANTITIES[name].over_seeds(numbers)) if numbers else "" for name, numbers in row),
        ]
        for line, row in zip(lines, cells, strict=True)
    ]
    if spec.columns == "task" and len(points) > 1:
        heads.append("average")
        for row, text, number in zip(cells, texts, raw, strict=True):
            means = [statistics.fmean(numbers) for _, numbers in row if numbers]
            whole = len(means) == len(points)
            text.append(QUANTITIES[spec.values[0]].text(statistics.fmean(means)) if whole else DASH)
            number.append(_raw(spec.values[0], statistics.fmean(means)) if whole else "")
    extra = _published(spec, points) if spec.published else []
    return Table(
        spec.name,
        spec.title,
        [*spec.rows, *heads],
        [*texts, *extra],
        [*raw, *([cell if cell != DASH else "" for cell in line] for line in extra)],
        len(spec.rows),
        len(extra),
    )


def _raw(name: str, value: float) -> str:
    """Return a number in full precision, in the unit that the heading of its column names."""
    return repr(QUANTITIES[name].shown(value))


def _point(row: Row, axes: Sequence[Axis]) -> tuple[str | int | float, ...]:
    return tuple(row.key.get(axis, DASH) for axis in axes)


def _numbers(rows: Sequence[Row], name: str, where: dict[Axis, str | int | float]) -> list[float]:
    fitting = [row for row in rows if all(row.key.get(axis) == value for axis, value in where.items())]
    return [row.values[name] for row in fitting if name in row.values]


def _text(name: str, numbers: list[float]) -> str:
    if not numbers:
        return DASH
    quantity = QUANTITIES[name]
    several = len(numbers) > 1 and not quantity.largest
    spread = f" ± {quantity.text(statistics.stdev(numbers))}" if several else ""
    return quantity.text(quantity.over_seeds(numbers)) + spread


def _published(spec: TableSpec, tasks: Sequence[str | int | float]) -> list[list[str]]:
    """Return the lines of the paper: the score of a task is the mean of its columns, as `score_of` computes ours."""
    lines = []
    models = {"teacher": "teacher", "Quad + 2ReLU": "quad_2relu", "Quad + 2Quad": "quad_2quad"}
    for label, field in models.items():
        values: list[float | None] = []
        for task in tasks:
            found = [getattr(s, field) for s in published_scores(str(task), get_task(str(task)).eval_splits)]
            values.append(statistics.fmean(found) if found and None not in found else None)
        if any(value is not None for value in values):
            texts = [DASH if value is None else f"{value:.3f}" for value in values]
            known = [value for value in values if value is not None]
            average = [f"{statistics.fmean(known):.3f}" if len(known) == len(values) else DASH]
            name = [f"{label}, {PUBLISHED}", *([""] * (len(spec.rows) - 1))]
            lines.append([*name, *texts, *(average if len(values) > 1 else [])])
    return lines


def markdown(table: Table) -> str:
    """Return the table as Markdown, with its title above it."""
    rule = ["---" if i < table.n_axes else "---:" for i in range(len(table.head))]
    lines = [table.head, rule, *table.lines]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"{table.title}\n\n{body}\n"


def csv_text(table: Table) -> str:
    """Return the table as CSV. Numbers have full precision and the units of results.json."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([table.head, *table.raw])
    return buffer.getvalue()


def latex(table: Table) -> str:
    """Return the table as a LaTeX `table` environment, which needs the booktabs package."""
    columns = "l" * table.n_axes + "r" * (len(table.head) - table.n_axes)
    lines = [" & ".join(cell.translate(LATEX).replace("±", r"$\pm$") for cell in line) + r" \\" for line in table.lines]
    if table.n_published:
        lines.insert(len(lines) - table.n_published, r"\midrule")
    head = " & ".join(cell.translate(LATEX) for cell in table.head) + r" \\"
    parts = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{table.title.translate(LATEX)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        head,
        r"\midrule",
        *lines,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(parts) + "\n"
