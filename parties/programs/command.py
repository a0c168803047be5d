"""The command `mpcformer run`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mpcformer import options
from mpcformer.errors import UserInputError
from mpcformer.options import INPUT, MACHINE, OUTPUT, flag, option

# What a message's frame adds to its tensors' bytes.
FRAME_BYTES = 49


def run(
    program: Annotated[str, typer.Argument(help="A Python file with one program, or FILE:NAME.", metavar="PROGRAM")],
    inputs: Annotated[
        list[str] | None,
        option("--input", group=INPUT, about="NAME=FILE for each input: npy, npz, safetensors, csv, parquet."),
    ] = None,
    out: Annotated[Path | None, option(group=OUTPUT, about="Folder for the results, NAME.npy each.")] = None,
    plan: Annotated[bool, flag("--plan", group=OUTPUT, about="Only tell what it costs; nothing is run.")] = False,
    threads: Annotated[int, options.at_least("--threads", 1, group=MACHINE, about="CPU threads of each party.")] = 1,
    pool: Annotated[
        int, options.at_least("--pool", 1, group=MACHINE, about="MiB of correlations dealt before they are used.")
    ] = 768,
    patience: Annotated[
        float, options.at_least("--patience", 1, group=MACHINE, about="Seconds that one owner waits for the other.")
    ] = 60.0,
    limit: Annotated[
        float, options.at_least("--limit", 1, group=MACHINE, about="Seconds after which a run is given up.")
    ] = 3600.0,
) -> None:
    """Run a CrypTen program privately: each party is a process, and only what is declared is opened.

    Example: mpcformer run score.py --input x=x.npy --input w=w.npy --out results
    """
    from mpcformer.console import console
    from parties.programs.local import planned, run_here

    files = _files(inputs or [])
    if not plan and out is None:
        raise UserInputError("--out: there is none", "give a folder for the results, or --plan to learn the cost alone")
    prepared = planned(program, files)
    if not plan and not files and prepared[0].program.inputs:
        raise UserInputError("--input: there is none", "give NAME=FILE for each input of the program")
    _show_plan(console, program, prepared[1])
    if plan or out is None:
        return
    done = run_here(
        program, files, out, pool_mib=pool, patience_s=patience, limit_s=limit, threads=threads, prepared=prepared
    )
    online = max(report["seconds"] for report in done.reports.values())
    rounds = max(report["rounds"] for report in done.reports.values())
    n_bytes = sum(report["bytes_received"] for report in done.reports.values())
    console.print(f"ran in {online:.2f} s: {rounds} rounds, {n_bytes / 2**20:.3f} MiB between the owners")
    for path in done.files:
        console.print(f"{path}: for {done.learners[path.stem]}", soft_wrap=True)


def _files(given: list[str]) -> dict[str, Path]:
    """Read the values of --input.

    Raises:
        UserInputError: a value is not NAME=FILE, or a name comes twice.
    """
    files: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise UserInputError(f"--input: {text!r} is not NAME=FILE", "write for example --input x=x.npy")
        if name in files:
            raise UserInputError(f"--input: {name} is given twice", "give each input once")
        files[name] = Path(path)
    return files


def _show_plan(console: Any, program: str, plan: Any) -> None:
    from mpcformer.console import PlainTable
    from parties.runs.network import PROFILES

    how = "planned from shapes alone" if plan.how == "shapes" else "planned by a run on zeros"
    grid = PlainTable(f"{program}: {how}", "quantity", "value")
    grid.add_row("correlations", str(len(plan.requests)))
    grid.add_row("dealer's corrections [MiB]", f"{plan.dealer_bytes / 2**20:.3f}")
    grid.add_row("rounds", str(plan.rounds))
    told = sum(plan.bytes_sent) + FRAME_BYTES * plan.n_messages * len(plan.bytes_sent)
    grid.add_row("between the owners [MiB]", f"{told / 2**20:.3f}")
    for name, network in PROFILES.items():
        seconds = plan.network_seconds(network.rtt_s, network.bytes_s)
        grid.add_row(f"on the wire, {name} [s]", f"{seconds:.2f}")
    console.print(grid)
