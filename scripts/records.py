"""Fill the tables of README.md and docs/*.md from experiments/results, and draw their figures into docs/figures.

A page says what goes where:

    <!-- record glue-cpu plaintext -->
    <!-- end -->

is replaced by the table `plaintext` of experiments/results/glue-cpu.json, with the line that makes the record. An image
`figures/pareto-cpu-pareto-seconds-sst2.svg` is drawn from the record of that name. `--check` changes nothing and ends
with status 1 if a page's tables or figures are not its records'.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from experiments.render.figures import draw
from experiments.render.tables import markdown
from experiments.replay import tables_of
from experiments.spec.quantities import Row
from experiments.spec.spec import SHIPPED, load
from mpcformer.files import read_json

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "experiments" / "results"
DOCS = ROOT / "docs"
BLOCK = re.compile(r"<!-- record (\S+) (\S+) -->\n.*?<!-- end -->", re.DOTALL)
FIGURE = re.compile(r"\]\(figures/([\w-]+?-(?:smoke|cpu|full))-([\w-]+)\.svg\)")


def main() -> int:
    """Fill or check all pages; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if something is out of date")
    check = parser.parse_args().check
    stale = [page for page in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))] if _update(page, check)]
    for page in stale:
        print(f"{page.relative_to(ROOT)}: {'out of date; run scripts/records.py' if check else 'filled'}")
    return 1 if check and stale else 0


def filled(text: str) -> str:
    """A page with its records' tables in their places.

    Raises:
        KeyError: the record has no such table.
        MPCFormerError: there is no such record.
    """
    return BLOCK.sub(lambda match: _block(match[1], match[2]), text)


def _block(record: str, name: str) -> str:
    values = read_json(RECORDS / f"{record}.json")
    tables = {table.name: table for table in tables_of(load(SHIPPED / f"{values['experiment']}.toml"), values)}
    data = "" if values["settings"].get("data") != "real" else " --data-dir DATA"
    line = f"    mpcformer replay {values['experiment']} --scale {values['scale']}{data}"
    return f"<!-- record {record} {name} -->\n{line}\n\n{markdown(tables[name])}<!-- end -->"


def _update(page: Path, check: bool) -> bool:
    """Whether the page was, or would be, changed; its figures are drawn unless checking."""
    before = page.read_text(encoding="utf-8")
    after = filled(before)
    wanted = sorted(set(FIGURE.findall(after)))
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
    return DOCS / "figures" / f"{record}-{name}.svg"


def _stale(record: str, name: str) -> bool:
    path = _figure_path(record, name)
    return not path.is_file() or path.read_bytes() != _drawn(record, name)


def _drawn(record: str, name: str) -> bytes:
    values: dict[str, Any] = read_json(RECORDS / f"{record}.json")
    rows = [Row.from_json(row) for row in values["rows"]]
    spec = load(SHIPPED / f"{values['experiment']}.toml")
    drawings = {drawing.name: drawing for figure in spec.figures for drawing in draw(figure, rows)}
    return drawings[name].svg


if __name__ == "__main__":
    sys.exit(main())
