"""Fill the tables of README.md and docs/*.md from experiments/results, and draw their figures into docs/figures.

A page marks the place of a table with two comments:

    <!-- record glue-cpu plaintext -->
    <!-- end -->

The script puts the table `plaintext` of experiments/results/glue-cpu.json between them, with the command that makes the
record. An image `figures/pareto-cpu-pareto-seconds-sst2.svg` is drawn from the record `pareto-cpu`. The record
`throughput` is not an experiment's: it is experiments/measuring/throughput.json. With `--check` the script changes
nothing, and ends with status 1 if a page's tables or figures differ from its records.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from experiments.render.figures import draw
from experiments.render.tables import markdown
from experiments.render.throughput import draw_throughput, throughput_tables
from experiments.replay import tables_of
from experiments.spec.quantities import Row
from experiments.spec.spec import SHIPPED, load
from mpcformer.files import read_json

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "experiments" / "results"
DOCS = ROOT / "docs"
BLOCK = re.compile(r"<!-- record (\S+) (\S+) -->\n.*?<!-- end -->", re.DOTALL)
FIGURE = re.compile(r"\]\(figures/([\w-]+?-(?:smoke|cpu|full))-([\w-]+)\.svg\)")
THROUGHPUT = "throughput"
THROUGHPUT_RECORD = ROOT / "experiments" / "measuring" / "throughput.json"


def main() -> int:
    """Fill or check all pages and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing; end with status 1 if something is out of date"
    )
    check = parser.parse_args().check
    stale = [page for page in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))] if _update(page, check)]
    for page in stale:
        print(f"{page.relative_to(ROOT)}: {'out of date; run scripts/records.py' if check else 'filled'}")
    return 1 if check and stale else 0


def filled(text: str) -> str:
    """Return the text of a page with the tables of its records filled in.

    Raises:
        KeyError: a record does not have the named table.
        MPCFormerError: a record does not exist.
    """
    return BLOCK.sub(lambda match: _block(match[1], match[2]), text)


def _block(record: str, name: str) -> str:
    if record == THROUGHPUT:
        table = throughput_tables(read_json(THROUGHPUT_RECORD))[name]
        return f"<!-- record {record} {name} -->\n{markdown(table)}<!-- end -->"
    values = read_json(RECORDS / f"{record}.json")
    tables = {table.name: table for table in tables_of(load(SHIPPED / f"{values['experiment']}.toml"), values)}
    data = "" if values["settings"].get("data") != "real" else " --data-dir DATA"
    line = f"    mpcformer replay {values['experiment']} --scale {values['scale']}{data}"
    return f"<!-- record {record} {name} -->\n{line}\n\n{markdown(tables[name])}<!-- end -->"


def _update(page: Path, check: bool) -> bool:
    """Update a page and its figures, or only check them; return whether the page was changed or is out of date."""
    before = page.read_text(encoding="utf-8")
    after = filled(before)
    wanted = sorted(set(FIGURE.findall(after)))
    if f"](figures/{THROUGHPUT}.svg)" in after:
        wanted.append((THROUGHPUT, ""))
    if check:
        return before != after or any(_stale(record, name) for record, name in wanted)
    for record, name in wanted:
        path = _figure_path(record, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(_drawn(record, name))
    if before != after:
        page.write_text(after, encoding="utf-8")
    return before != after


def _figure_path(record: str, name: str) -> Path:
    return DOCS / "figures" / (f"{record}-{name}.svg" if name else f"{record}.svg")


def _stale(record: str, name: str) -> bool:
    path = _figure_path(record, name)
    return not path.is_file() or path.read_bytes() != _drawn(record, name)


def _drawn(record: str, name: str) -> bytes:
    if record == THROUGHPUT:
        return draw_throughput(read_json(THROUGHPUT_RECORD)).svg
    values: dict[str, Any] = read_json(RECORDS / f"{record}.json")
    rows = [Row.from_json(row) for row in values["rows"]]
    spec = load(SHIPPED / f"{values['experiment']}.toml")
    drawings = {drawing.name: drawing for figure in spec.figures for drawing in draw(figure, rows)}
    return drawings[name].svg


if __name__ == "__main__":
    sys.exit(main())
