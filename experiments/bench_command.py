"""The command `mpcformer bench`: measure engines against each other and show the figures as a table."""

from typing import Any

from experiments.measuring.engines import BenchOptions, measure
from mpcformer.console import PlainTable, console
from mpcformer.engines.registry import engine_names
from mpcformer.engines.stopwatch import OPERATIONS


def run(options: BenchOptions) -> dict[str, Any]:
    """Measure, show the table, and write the JSON if `options.json` is set.

    Raises:
        UserInputError: an option is wrong; nothing has run then.
        MPCFormerError: a party failed.
    """
    values = measure(options)
    show(values)
    return values


def show(values: dict[str, Any]) -> None:
    """Print the figures of `measure` as a table with a column for each engine."""
    head = f"{values['model']}: {values['layers']} layers, {values['gelu']} + {values['softmax']},"
    head += f" {values['precision']},"
    head += f" strides {', '.join(map(str, values['strides']))}," if values["strides"] else ""
    head += f" {values['batch_size']} x {values['seq_len']} tokens,"
    tail = f"{values['threads_per_party']} thread(s) a party, network {values['network']['profile']}"
    tail += ", computed while it is dealt" if values["overlap"] and values["batches"] == 1 else ""
    engines = values["engines"]
    grid = PlainTable(f"{head} {tail}", "quantity", *engines)

    def row(title: str, *cells: str) -> None:
        grid.add_row(title, *cells)

    for key, unit, factor in (
        ("online_seconds", "s", 1.0),
        ("offline_seconds", "s", 1.0),
        ("online_bytes", "MiB", 2**20),
        ("offline_bytes", "MiB", 2**20),
        ("dealer_bytes", "MiB", 2**20),
        ("setup_bytes", "MiB", 2**20),
    ):
        row(f"{key.replace('_', ' ')} [{unit}]", *(f"{e[key] / factor:.2f}" for e in engines.values()))
    if values["batches"] > 1:
        title = f"sentences a second, {values['batches']} batches"
        row(title, *(f"{e['sentences_per_second']:.2f}" for e in engines.values()))
    row("rounds", *(str(e["rounds"]) for e in engines.values()))
    for party in ("model-owner", "data-owner", "dealer"):
        row(f"peak memory, {party} [MiB]", *(f"{e['peak_rss_bytes'][party] / 2**20:.0f}" for e in engines.values()))
    for operation in OPERATIONS:
        row(f"  online, {operation} [s]", *(f"{e['breakdown'][operation]:.3f}" for e in engines.values()))
    console.print(grid)
    if "ratio" in values:
        ratio = values["ratio"]
        console.print(
            f"{' / '.join(engine_names()[:2])}, pair by pair: online 1/{1 / ratio['online_seconds']:.1f},"
            f" online against online + offline 1/{1 / ratio['online_to_whole']:.1f},"
            f" online + offline 1/{1 / ratio['total_seconds']:.1f}"
        )
