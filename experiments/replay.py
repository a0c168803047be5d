"""Replay an experiment: train what is missing, infer privately, leave a folder of results, tables, figures, a report.

A stopped replay goes on where it was when it is called again: models lie in the cache as they are finished, each with
its checkpoints until then; private runs keep a journal; finished steps stand in OUT/runs. OUT/manifest.json comes last:
a folder with one is whole.
"""

import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distill.training.loop import pick_device
from distill.versions import versions
from experiments import compare, record
from experiments.kept import Kept
from experiments.kinds import models
from experiments.kinds.bench import Benches
from experiments.kinds.counts import Counts
from experiments.kinds.experiment import Found, Place, remove
from experiments.kinds.functions import Functions
from experiments.kinds.models import ModelCache
from experiments.kinds.students import Students
from experiments.render import page, tables
from experiments.render.figures import draw
from experiments.spec.outputs import TableSpec
from experiments.spec.quantities import QUANTITIES, Axis, Row
from experiments.spec.scales import MADE_UP, BenchScale, CountsScale, FunctionsScale, StudentsScale
from experiments.spec.spec import (
    BenchExperiment,
    CountsExperiment,
    Experiment,
    FunctionsExperiment,
    StudentsExperiment,
    digest,
    find,
    load,
    models_of,
    scale_of,
)
from mpcformer.console import PlainTable, console
from mpcformer.errors import UserInputError
from mpcformer.files import read_json, sha256_file, write_json, write_text

RESULTS, MANIFEST, STATE = "results.json", "manifest.json", "replay.json"
# Of results.json; what an older version left is made anew from its kept steps.
FORMAT = "3"
# The names of these axes are too short to be headings.
AXIS_TITLES: dict[Axis, str] = {
    "gelu": "form of GeLU",
    "softmax": "form of softmax",
    "share": "share of the training data",
}


@dataclass(frozen=True)
class ReplayOptions:
    """What to replay; see `mpcformer replay --help`."""

    experiment: str
    scale: str = "smoke"
    out: Path | None = None
    data_dir: Path | None = None
    models: Path = Path("runs/models")
    jobs: int = 1
    pool: str = "local"
    ray_address: str | None = None
    check: Path | None = None
    keep: Path | None = None
    record: Path | None = None


def run(options: ReplayOptions) -> dict[str, Any]:
    """Replay, show the tables, compare and record if asked for; returns results.json's value.

    Raises:
        UserInputError: anything wrong with the options, the experiment or the data, before work starts.
        MPCFormerError: a step failed, or the results differ from the recorded ones.
    """
    start = time.perf_counter()
    path = find(options.experiment)
    spec = load(path)
    scale = scale_of(spec, options.scale)
    name = path.stem
    recorded = compare.load_recorded(options.check, name, options.scale) if options.check else None
    if recorded is not None and options.check is not None:
        compare.check_settings(recorded, spec, scale, options.check)
    settings = scale.model_dump(mode="json")
    target = record.target(options.record, name, options.scale, settings) if options.record else None
    if options.keep and not isinstance(spec, StudentsExperiment):
        raise UserInputError(f"--keep: {name} trains nothing, and takes little time to do again", "leave --keep out")
    place = Place(
        out=options.out or Path("runs") / "replay" / f"{name}-{options.scale}",
        data_dir=options.data_dir,
        models=ModelCache(options.models, options.jobs, options.pool, options.ray_address),
        kept=Kept.load(options.keep, name, options.scale) if options.keep else Kept(),
    )
    asked = {"experiment": name, "scale": options.scale, "spec": digest(spec.model_dump(mode="json"))}
    asked["format"] = ", ".join([FORMAT, *(f"{kind} {number}" for kind, number in models.FORMAT.items())])
    asked["data_dir"] = str(options.data_dir) if options.data_dir else ""
    if _is_whole(place.out, asked):
        console.print(f"{name}, {options.scale}: kept from {place.out}")
        values = dict(read_json(place.out / RESULTS))
    else:
        _check_folder(place.out, asked)
        work = _work(spec, scale, place)
        _open(place.out, asked)
        found = work.run()
        values = _values(asked, spec, scale, found)
        _write(place, spec, values, found, asked)
        if options.keep:
            console.print(f"{found.n_kept} of {len(found.rows)} rows are those of {options.keep}")
        console.print(f"{found.n_trained} models trained, {found.n_run} steps run, {time.perf_counter() - start:.0f} s")
    _show(spec, values)
    console.print(f"{place.out}: {page.FILE_NAME}, {RESULTS}, tables, figures")
    if recorded is not None and options.check is not None:
        compare.check(recorded, values, spec.tolerances, options.check)
    if target is not None:
        record.write(target, values)
        console.print(f"recorded: {target}")
    return values


def _work(spec: Experiment, scale: Any, place: Place) -> Students | Benches | Functions | Counts:
    """The experiment, its input checked."""
    if isinstance(spec, StudentsExperiment):
        assert isinstance(scale, StudentsScale)
        return Students(spec, scale, place)
    if isinstance(spec, BenchExperiment):
        assert isinstance(scale, BenchScale)
        return Benches(spec, scale, place)
    if isinstance(spec, CountsExperiment):
        assert isinstance(scale, CountsScale)
        return Counts(spec, scale, place)
    assert isinstance(spec, FunctionsExperiment)
    assert isinstance(scale, FunctionsScale)
    return Functions(spec, scale, place)


def _is_whole(out: Path, asked: dict[str, str]) -> bool:
    return (out / MANIFEST).is_file() and read_json(out / MANIFEST).get("asked") == asked


def _check_folder(out: Path, asked: dict[str, str]) -> None:
    """A new folder, or one that an earlier replay of the same experiment and scale left.

    Raises:
        UserInputError: something else is there.
    """
    if out.exists() and not out.is_dir():
        raise UserInputError(f"--out: {out} is a file", "choose another folder")
    if out.is_dir() and any(out.iterdir()):
        before = read_json(out / STATE) if (out / STATE).is_file() else {}
        if any(before.get(key) != asked[key] for key in ("experiment", "scale")):
            what = f"holds {before['experiment']} at scale {before['scale']}" if before else "is not a replay's"
            raise UserInputError(f"--out: {out} {what}", f"choose another folder or remove it: rm -r {out}")


def _open(out: Path, asked: dict[str, str]) -> None:
    (out / "runs").mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)
    write_json(out / STATE, asked)


def _values(asked: dict[str, str], spec: Experiment, scale: Any, found: Found) -> dict[str, Any]:
    """results.json."""
    return {
        "experiment": asked["experiment"],
        "scale": asked["scale"],
        "title": spec.title,
        "about": spec.about,
        "spec_sha256": asked["spec"],
        "models": models_of(spec),
        "settings": scale.model_dump(mode="json"),
        "examples": found.examples,
        "teachers": found.teachers,
        "environment": {
            "cpus": os.cpu_count(),
            "training_device": pick_device().type,
            "versions": versions() | {name: version(name) for name in ("crypten", "grpcio")},
        },
        "tolerances": spec.tolerances.model_dump(mode="json"),
        "n_kept": found.n_kept,
        "rows": [row.to_json() for row in found.rows],
    }


def _write(place: Place, spec: Experiment, values: dict[str, Any], found: Found, asked: dict[str, str]) -> None:
    """Everything a reader wants, made anew, the manifest last."""
    out = place.out
    for folder in ("tables", "figures"):
        remove(out / folder)
        (out / folder).mkdir()
    write_json(out / RESULTS, values)
    built = tables_of(spec, values)
    for table in built:
        for end, text in (("md", tables.markdown), ("csv", tables.csv_text), ("tex", tables.latex)):
            write_text(out / "tables" / f"{table.name}.{end}", text(table))
    drawings = [drawing for figure in spec.figures for drawing in draw(figure, found)]
    for drawing in drawings:
        (out / "figures" / f"{drawing.name}.svg").write_bytes(drawing.svg)
        (out / "figures" / f"{drawing.name}.png").write_bytes(drawing.png)
    if found.curves:
        write_json(out / "figures" / "curves.json", found.curves)
    runs = sorted(path.parent.name for path in place.runs.glob(f"*/{page.FILE_NAME}"))
    write_text(out / page.FILE_NAME, page.render(values, built, drawings, runs))
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != STATE)
    listed = {str(path.relative_to(out)): sha256_file(path) for path in files}
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(out / MANIFEST, {"finished": finished, "asked": asked, "sha256": listed})


def tables_of(spec: Experiment, values: dict[str, Any]) -> list[tables.Table]:
    """Published figures stand beside scores on real data only."""
    real = values["settings"].get("data") != MADE_UP
    rows = [Row.from_json(row) for row in values["rows"]]
    return [
        tables.build(table.model_copy(update={"published": table.published and real}), rows) for table in spec.tables
    ]


def _title_and_headings(asked: TableSpec, table: tables.Table) -> list[str]:
    """Return the title of a table on the terminal and its columns' headings, none of which leaves its meaning open."""
    axes = [AXIS_TITLES.get(axis, axis) for axis in asked.rows]
    others = table.head[table.n_axes :]
    if asked.columns is None:
        return [table.title, *axes, *others]
    # The columns are points of an axis, and every cell is the same quantity: the title says which.
    name = AXIS_TITLES.get(asked.columns, asked.columns)
    title = f"{table.title}: {QUANTITIES[asked.values[0]].title}, by {name}"
    return [title, *axes, *(f"{asked.columns} {head}" if _is_number(head) else head for head in others)]


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def _show(spec: Experiment, values: dict[str, Any]) -> None:
    for asked, table in zip(spec.tables, tables_of(spec, values), strict=True):
        grid = PlainTable(*_title_and_headings(asked, table), n_left=table.n_axes)
        for number, line in enumerate(table.lines):
            grid.add_row(*line, end_section=number == len(table.lines) - table.n_published - 1)
        console.print(grid)
