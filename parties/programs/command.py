"""The command `mpcformer run`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpcformer import options
from mpcformer.errors import UserInputError
from mpcformer.options import INPUT, MACHINE, OUTPUT, flag, option

if TYPE_CHECKING:
    from parties.runs.network import NetworkProfile

# What a message's frame adds to its tensors' bytes.
FRAME_BYTES = 49


def run(
    program: Annotated[
        str,
        typer.Argument(help="A Python file, or FILE:NAME; with --config, a name in it.", metavar="PROGRAM"),
    ],
    inputs: Annotated[
        list[str] | None,
        option("--input", group=INPUT, about="NAME=FILE for each input: npy, npz, safetensors, csv, parquet."),
    ] = None,
    config: Annotated[
        Path | None, options.file("--config", group=INPUT, about="A data owner's TOML file; the others are deployed.")
    ] = None,
    out: Annotated[Path | None, option(group=OUTPUT, about="Folder for the results, NAME.npy each.")] = None,
    plan: Annotated[bool, flag("--plan", group=OUTPUT, about="Only tell what it costs; nothing is run.")] = False,
    threads: Annotated[
        int | None, options.at_least("--threads", 1, group=MACHINE, about="CPU threads of each party; default: 1.")
    ] = None,
    pool: Annotated[
        int | None,
        options.at_least(
            "--pool", 1, group=MACHINE, about="MiB of correlations dealt before they are used; default: 768."
        ),
    ] = None,
    patience: Annotated[
        float | None,
        options.at_least(
            "--patience", 1, group=MACHINE, about="Seconds that one owner waits for the other; default: 60."
        ),
    ] = None,
    limit: Annotated[
        float | None,
        options.at_least("--limit", 1, group=MACHINE, about="Seconds after which a run is given up; default: 3600."),
    ] = None,
) -> None:
    """Run a CrypTen program privately: each party is a process, and only what is declared is opened.

    Example: mpcformer run score.py --input x=x.npy --input w=w.npy --out results
    """
    from mpcformer.console import console
    from parties.programs import deployed, local

    def tell(told: dict[str, Any]) -> None:
        _show_plan(console, program, told)

    machine = {"threads": threads, "pool_mib": pool, "patience_s": patience, "limit_s": limit}
    given = {name: value for name, value in machine.items() if value is not None}
    files = _files(inputs or [])
    if config is not None:
        if files or out is not None or given:
            raise UserInputError(
                "--config: inputs, results, threads and limits stand in the file",
                "leave out --input, --out, --threads, --pool, --patience and --limit",
            )
        done = deployed.run_deployed(config, program, tell, plan_only=plan)
    elif plan:
        local.plan(program, files, tell)
        done = None
    elif out is None:
        raise UserInputError("--out: there is none", "give a folder for the results, or --plan to learn the cost alone")
    else:
        done = local.run_here(program, files, out, tell, **given)  # type: ignore[arg-type]
    if done is None:
        return
    report = done.report
    n_bytes = report["bytes_received"] + report["bytes_sent"]
    console.print(
        f"ran in {report['seconds']:.2f} s: {report['rounds']} rounds at the data owner, {n_bytes / 2**20:.3f} MiB"
    )
    for path in done.files:
        console.print(f"{path}: for {done.told['reveal'][path.stem]}", soft_wrap=True)


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


def told_bytes(told: dict[str, Any]) -> int:
    """Return the bytes between the owners that a plan tells, both ways, with frames."""
    owners: list[int] = told["bytes_sent"]
    return sum(owners) + FRAME_BYTES * int(told["n_messages"]) * len(owners)


def wire_seconds(told: dict[str, Any], network: "NetworkProfile") -> float:
    """Return the time on the wire that a plan tells: half a round trip for each round, and its bytes."""
    return float(told["rounds"] * network.rtt_s / 2 + sum(told["bytes_sent"]) / network.bytes_s)


def _show_plan(console: Any, program: str, told: dict[str, Any]) -> None:
    from mpcformer.console import PlainTable
    from parties.runs.network import PROFILES

    how = "planned from shapes alone" if told["how"] == "shapes" else "planned by a run on zeros"
    grid = PlainTable(f"{program}: {how}", "quantity", "value")
    grid.add_row("correlations", str(told["n_requests"]))
    grid.add_row("dealer's corrections [MiB]", f"{told['dealer_bytes'] / 2**20:.3f}")
    if told["passed_on_bytes"]:
        grid.add_row("passed on to the data owner before [MiB]", f"{told['passed_on_bytes'] / 2**20:.3f}")
    grid.add_row("rounds", str(told["rounds"]))
    grid.add_row("between the owners [MiB]", f"{told_bytes(told) / 2**20:.3f}")
    for name, network in PROFILES.items():
        grid.add_row(f"on the wire, {name} [s]", f"{wire_seconds(told, network):.2f}")
    console.print(grid)
