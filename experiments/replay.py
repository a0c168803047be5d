"""Replay an experiment: train the missing models, infer privately, and write results, tables, figures and a report.

A stopped replay continues when it is called again: finished models are in the cache, interrupted trainings have
checkpoints, private runs have a journal, and finished steps are in OUT/runs. OUT/manifest.json is written last, so a
folder that has one is complete.
"""

import os
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distill.training.device import pick_device
from distill.training.versions import versions
from experiments import bench_command
from experiments.kinds import models
from experiments.kinds.bench import Bench
from experiments.kinds.counts import Counts
from experiments.kinds.experiment import Measured, Workplace
from experiments.kinds.functions import Functions
from experiments.kinds.models import ModelCache
from experiments.kinds.sentences import Sentences
from experiments.kinds.students import Students
from experiments.records import compare, save
from experiments.records.recorded import load_recorded
from experiments.records.reuse import ReusedRows
from experiments.render import page, tables
from experiments.render.figures import draw
from experiments.spec.outputs import TableSpec
from experiments.spec.quantities import QUANTITIES, Axis, Row
from experiments.spec.scales import MADE_UP, BenchScale, CountsScale, FunctionsScale, StudentsScale
from experiments.spec.sentences import SentencesScale
from experiments.spec.spec import (
    BenchExperiment,
    CountsExperiment,
    Experiment,
    FunctionsExperiment,
    SentencesExperiment,
    StudentsExperiment,
    digest,
    find,
    load,
    models_of,
    scale_of,
)
from mpcformer.console import PlainTable, console
from mpcformer.errors import UserInputError
from mpcformer.files import read_json, remove, write_json, write_text
from mpcformer.run_folder import RunFolder, write_manifest

RESULTS, STATE = "results.json", "replay.json"
# The format of results.json. Results of an older format are made anew from their finished steps.
FORMAT = "3"
# The names of these axes are too short to be headings.
AXIS_TITLES: dict[Axis, str] = {
    "gelu": "form of GeLU",
    "softmax": "form of softmax",
    "share": "share of the training data",
}


@dataclass(frozen=True)
class ReplayOptions:
    """The options of a replay; `mpcformer replay --help` describes each of them."""

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
    """Replay an experiment and show its tables; compare with a record and save one if the options ask for it.

    Returns:
        The values of results.json.

    Raises:
        UserInputError: an option, the experiment or the data is wrong; no work has started then.
        MPCFormerError: a step failed, or the results differ from the recorded ones.
    """
    start = time.perf_counter()
    path = find(options.experiment)
    spec = load(path)
    scale = scale_of(spec, options.scale)
    name = path.stem
    recorded = load_recorded(options.check, name, options.scale) if options.check else None
    if recorded is not None and options.check is not None:
        compare.check_settings(recorded, spec, scale, options.check)
    settings = scale.model_dump(mode="json")
    target = save.target(options.record, name, options.scale, settings) if options.record else None
    if options.keep and not isinstance(spec, StudentsExperiment):
        raise UserInputError(f"--keep: {name} trains nothing, so --keep saves little time", "leave --keep out")
    workplace = Workplace(
        out=options.out or Path("runs") / "replay" / f"{name}-{options.scale}",
        data_dir=options.data_dir,
        models=ModelCache(options.models, options.jobs, options.pool, options.ray_address),
        reused=ReusedRows.load(options.keep, name, options.scale) if options.keep else ReusedRows(),
    )
    asked = {"experiment": name, "scale": options.scale, "spec": digest(spec.model_dump(mode="json"))}
    asked["format"] = ", ".join([FORMAT, *(f"{kind} {number}" for kind, number in models.FORMAT.items())])
    asked["data_dir"] = str(options.data_dir) if options.data_dir else ""
    if RunFolder(workplace.out).manifest().get("asked") == asked:
        console.print(f"{name}, {options.scale}: kept from {workplace.out}")
        values = dict(read_json(workplace.out / RESULTS))
    else:
        _check_folder(workplace.out, asked)
        work = _work(spec, scale, workplace)
        _open(workplace.out, asked)
        measured = work.run()
        values = _values(asked, spec, scale, measured)
        _write(workplace, spec, values, measured, asked)
        if options.keep:
            console.print(f"{measured.n_reused} of {len(measured.rows)} rows are reused from {options.keep}")
        console.print(
            f"{measured.n_trained} models trained, {measured.n_run} steps run, {time.perf_counter() - start:.0f} s"
        )
    _show(spec, values)
    console.print(f"{workplace.out}: {page.FILE_NAME}, {RESULTS}, tables, figures")
    if recorded is not None and options.check is not None:
        compare.check(recorded, values, spec.tolerances, options.check)
    if target is not None:
        save.write(target, values)
        console.print(f"recorded: {target}")
    return values


def _work(spec: Experiment, scale: Any, workplace: Workplace) -> Students | Bench | Functions | Counts | Sentences:
    """Return the work of an experiment's kind; its constructor has checked the input."""
    if isinstance(spec, StudentsExperiment):
        assert isinstance(scale, StudentsScale)
        return Students(spec, scale, workplace)
    if isinstance(spec, BenchExperiment):
        assert isinstance(scale, BenchScale)
        return Bench(spec, scale, workplace, bench_command.show)
    if isinstance(spec, CountsExperiment):
        assert isinstance(scale, CountsScale)
        return Counts(spec, scale, workplace)
    if isinstance(spec, SentencesExperiment):
        assert isinstance(scale, SentencesScale)
        return Sentences(spec, scale, workplace)
    assert isinstance(spec, FunctionsExperiment)
    assert isinstance(scale, FunctionsScale)
    return Functions(spec, scale, workplace)


def _check_folder(out: Path, asked: dict[str, str]) -> None:
    """Refuse an output folder that contains anything but an earlier replay of the same experiment and scale.

    Raises:
        UserInputError: the folder is a file, or contains something else.
    """
    if out.exists() and not out.is_dir():
        raise UserInputError(f"--out: {out} is a file", "choose another folder")
    if out.is_dir() and any(out.iterdir()):
        before = read_json(out / STATE) if (out / STATE).is_file() else {}
        if any(before.get(key) != asked[key] for key in ("experiment", "scale")):
            what = f"holds {before['experiment']} at scale {before['scale']}" if before else "is not from a replay"
            raise UserInputError(f"--out: {out} {what}", f"choose another folder or remove it: rm -r {out}")


def _open(out: Path, asked: dict[str, str]) -> None:
    RunFolder(out).start_in_place()
    (out / "runs").mkdir(exist_ok=True)
    write_json(out / STATE, asked)


def _values(asked: dict[str, str], spec: Experiment, scale: Any, measured: Measured) -> dict[str, Any]:
    """Return the values of results.json."""
    return {
        "experiment": asked["experiment"],
        "scale": asked["scale"],
        "title": spec.title,
        "about": spec.about,
        "spec_sha256": asked["spec"],
        "models": models_of(spec),
        "settings": scale.model_dump(mode="json"),
        "examples": measured.examples,
        "teachers": measured.teachers,
        "environment": {
            "cpus": os.cpu_count(),
            "training_device": pick_device().type,
            "versions": versions() | {name: version(name) for name in ("crypten", "grpcio")},
        },
        "tolerances": spec.tolerances.model_dump(mode="json"),
        "n_kept": measured.n_reused,
        "rows": [row.to_json() for row in measured.rows],
    }


def _write(
    workplace: Workplace, spec: Experiment, values: dict[str, Any], measured: Measured, asked: dict[str, str]
) -> None:
    """Write the results, tables, figures and report anew, and the manifest last."""
    out = workplace.out
    for folder in ("tables", "figures"):
        remove(out / folder)
        (out / folder).mkdir()
    write_json(out / RESULTS, values)
    built = tables_of(spec, values)
    for table in built:
        for end, text in (("md", tables.markdown), ("csv", tables.csv_text), ("tex", tables.latex)):
            write_text(out / "tables" / f"{table.name}.{end}", text(table))
    drawings = [drawing for figure in spec.figures for drawing in draw(figure, measured.rows, measured.curves)]
    for drawing in drawings:
        (out / "figures" / f"{drawing.name}.svg").write_bytes(drawing.svg)
        (out / "figures" / f"{drawing.name}.png").write_bytes(drawing.png)
    if measured.curves:
        write_json(out / "figures" / "curves.json", measured.curves)
    runs = sorted(path.parent.name for path in workplace.runs.glob(f"*/{page.FILE_NAME}"))
    write_text(out / page.FILE_NAME, page.render(values, built, drawings, runs))
    write_manifest(out, {"asked": asked}, unlisted=[STATE])


def tables_of(spec: Experiment, values: dict[str, Any]) -> list[tables.Table]:
    """Return the experiment's tables; published figures are shown beside scores on real data only."""
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
