"""Measure what mutual TLS costs: the online seconds of a batch with TLS and without it, in alternating runs.

A run has several batches, and its figure is their median. The fastest batch of all runs is also reported, because other
work on the machine disturbs it least.
"""

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.measuring.engines import BenchOptions, check, job_of, model_of
from experiments.measuring.model import random_sentences
from mpcformer.console import PlainTable, console, progress
from mpcformer.engines.base import load_public_model
from mpcformer.files import write_json
from parties.roles.results import Results
from parties.runs.simulation import LocalRunOptions, simulate
from parties.settings.config import Insecure
from parties.settings.insecure import warn

BATCHES = 8
TLS, PLAINTEXT = "mutual TLS", "plaintext"
Seconds = dict[str, list[list[float]]]  # by transport: for each run, the seconds of its batches
TRANSPORTS: dict[str, Insecure | None] = {TLS: None, PLAINTEXT: Insecure(plaintext=True)}


def run(options: BenchOptions) -> dict[str, Any]:
    """Measure, show the table, and write the JSON if `options.json` is set.

    Raises:
        UserInputError: an option is wrong; nothing has run then.
        MPCFormerError: a party failed.
    """
    check(options)
    warn(TRANSPORTS[PLAINTEXT])
    seconds: dict[str, Seconds] = {engine: {TLS: [], PLAINTEXT: []} for engine in options.engines}
    with model_of(options) as student, tempfile.TemporaryDirectory() as work, progress() as bar:
        config = load_public_model(student).config
        data = Path(work) / "data"
        random_sentences(data, BATCHES * options.batch_size, options.seq_len)
        task = bar.add_task("bench", total=2 * options.repeat * len(options.engines), info="")
        for turn in range(options.repeat):
            for engine in options.engines:
                # Each transport goes first in every other pair, so that a drift of the machine affects both alike.
                for transport in sorted(TRANSPORTS, reverse=turn % 2 == 1):
                    bar.update(task, info=f"{engine}, {transport}, pair {turn + 1}")
                    logs = Path(work) / f"{engine}-{transport}-{turn}"
                    logs.mkdir()
                    job = replace(_job(options, engine, student, data), insecure=TRANSPORTS[transport])
                    seconds[engine][transport].append(_batch_seconds(simulate(job, logs)))
                    bar.advance(task)
    values = {
        "model": options.model,
        "layers": config.num_hidden_layers,
        "seq_len": options.seq_len,
        "batch_size": options.batch_size,
        "batches": BATCHES,
        "gelu": config.gelu,
        "softmax": config.softmax,
        "threads_per_party": options.threads,
        "network": options.network.to_json() if options.network else {"profile": "none"},
        "engines": {engine: _compared(each) for engine, each in seconds.items()},
    }
    if options.json:
        write_json(options.json, values)
    _show(values)
    return values


def _job(options: BenchOptions, engine: str, student: Path, data: Path) -> LocalRunOptions:
    """Return a run whose batches are dealt and computed in turn, so that nothing runs beside what is measured."""
    whole = job_of(options, engine, student, data)
    return replace(whole, job=replace(whole.job, overlap=False))


def _batch_seconds(results: Results) -> list[float]:
    return [batch.online.seconds for batch in results.batches["data-owner"]]


def _compared(seconds: Seconds) -> dict[str, Any]:
    medians = {name: [statistics.median(run) for run in runs] for name, runs in seconds.items()}
    fastest = {name: min(map(min, runs)) for name, runs in seconds.items()}
    ratios = [a / b for a, b in zip(medians[TLS], medians[PLAINTEXT], strict=True)]
    return {
        "online_seconds": {name: statistics.median(each) for name, each in medians.items()},
        "online_seconds_fastest": fastest,
        "ratio": statistics.median(ratios),
        "ratio_fastest": fastest[TLS] / fastest[PLAINTEXT],
        "ratios": ratios,
        "online_seconds_each": seconds,
    }


def _show(values: dict[str, Any]) -> None:
    head = f"{values['model']}: {values['layers']} layers, {values['batch_size']} x {values['seq_len']} tokens"
    grid = PlainTable(f"{head}; online seconds of a batch", "engine, batch", f"{TLS} [s]", f"{PLAINTEXT} [s]", "ratio")
    for engine, found in values["engines"].items():
        for what, suffix in (("median", ""), ("fastest", "_fastest")):
            both = found[f"online_seconds{suffix}"]
            numbers = (both[TLS], both[PLAINTEXT], found[f"ratio{suffix}"])
            grid.add_row(f"{engine}, {what}", *(f"{x:.3f}" for x in numbers))
    console.print(grid)
    for engine, found in values["engines"].items():
        console.print(
            f"{engine}: ratios of the medians, pair by pair: {', '.join(f'{x:.3f}' for x in found['ratios'])}"
        )
