"""Test the tables and figures of an experiment's rows."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from experiments.render.figures import COLOURS, STYLE, _panel, draw, pareto
from experiments.render.tables import build, csv_text, latex, markdown
from experiments.spec.outputs import BarsFigure, LinesFigure, TableSpec
from experiments.spec.quantities import Row
from mpcformer.files import read_json


def test_figures_are_the_same_bytes_each_time(folder: Path) -> None:
    rows = [Row.from_json(row) for row in read_json(folder / "results.json")["rows"]]
    spec = BarsFigure(name="a", title="b", kind="bars", x="model", series="task", y="score")
    first, second = draw(spec, rows), draw(spec, rows)
    assert [(d.svg, d.png) for d in first] == [(d.svg, d.png) for d in second]
    assert b"<dc:date>" not in first[0].svg


@pytest.mark.parametrize("kind", ["bars", "lines"])
def test_more_series_than_colours_are_told_apart(kind: str) -> None:
    n = 2 * len(COLOURS) + 1
    rows = [Row({"model": f"m{i}", "share": x}, {"score": 0.5}) for i in range(n) for x in (0.5, 1.0)]
    with mpl.rc_context(STYLE):
        axes = Figure().subplots()
        how: dict[str, Any] = {"name": "a", "title": "b", "kind": kind, "series": "model", "x": "share", "y": "score"}
        _panel(axes, BarsFigure(**how) if kind == "bars" else LinesFigure(**how), rows)
    looks = {(patch.get_facecolor(), patch.get_hatch()) for patch in axes.patches}
    looks |= {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == n


def test_the_best_compromises() -> None:
    assert list(pareto([(3, 5), (1, 2), (2, 2), (2, 4), (4, 4), (1, 1)])) == [(1, 2), (2, 4), (3, 5)]


def test_tables_average_seeds_and_mark_what_was_published() -> None:
    rows = [
        Row({"task": task, "model": model, "seed": seed}, {"score": score})
        for task, model, seed, score in [
            ("sst2", "A & B", 0, 0.8), ("sst2", "A & B", 1, 0.9), ("mrpc", "A & B", 0, 0.7), ("sst2", "C", 0, 0.5),
        ]
    ]  # fmt: skip
    table = build(
        TableSpec(name="t", title="T", rows=["model"], columns="task", values=["score"], published=True), rows
    )
    assert table.head == ["model", "sst2", "mrpc", "average"]
    assert table.lines[0] == ["A & B", "0.8500 ± 0.0707", "0.7000", "0.7750"]
    assert table.lines[1] == ["C", "0.5000", "-", "-"]
    assert table.n_published == 3
    assert table.lines[2][1:] == ["0.931", "0.903", "0.917"]
    assert all("MPCFormer, ICLR 2023" in line[0] for line in table.lines[2:])
    assert "| A & B | 0.8500 ± 0.0707 |" in markdown(table)
    assert r"A \& B & 0.8500 $\pm$ 0.0707" in latex(table)
    assert csv_text(table).splitlines()[2] == "C,0.5,,"


def test_csv_gives_numbers_in_the_unit_that_its_heading_names() -> None:
    spec = TableSpec(name="t", title="T", rows=["model"], values=["online_bytes"])
    table = build(spec, [Row({"model": "A"}, {"online_bytes": 2.5 * 2**20})])
    assert "MiB" in table.head[1]
    assert table.lines == [["A", "2.500"]]
    assert csv_text(table).splitlines()[1] == "A,2.5"


def test_of_several_seeds_errors_the_largest_is_shown() -> None:
    spec = TableSpec(name="t", title="T", rows=["model"], values=["max_logit_error", "label_agreement"])
    runs = enumerate([(0.25, 1.0), (0.75, 0.5), (0.5, 0.75)])
    rows = [Row({"model": "A", "seed": seed}, {"max_logit_error": e, "label_agreement": a}) for seed, (e, a) in runs]
    table = build(spec, rows)
    assert table.lines == [["A", "0.7500", "0.7500 ± 0.2500"]]
    assert table.raw == [["A", "0.75", "0.75"]]
