"""Measure engines against each other on one model.

Every party is a process of its own and the transport is real. The engines take turns within one measurement.
"""

import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from experiments.measuring.model import TASK, bench_model, check_engines, check_shape, random_sentences
from mpcformer.console import progress
from mpcformer.engines.base import BatchShape, PublicModel, load_public_model
from mpcformer.engines.registry import create_engine, engine_names
from mpcformer.engines.stopwatch import OPERATIONS
from mpcformer.errors import UserInputError
from mpcformer.files import write_json
from mpcformer.modeling.description import split_strides
from mpcformer.ring import gemm
from parties.roles.results import Results
from parties.runs.network import NetworkProfile
from parties.runs.report import OWNERS, breakdown
from parties.runs.simulation import LocalRunOptions, simulate
from parties.settings.config import Role
from parties.settings.job import JobDescription


@dataclass(frozen=True)
class BenchOptions:
    """The options of a measurement; `mpcformer bench --help` describes each of them."""

    model: str = "bert-base"
    layers: int | None = None
    seq_len: int = 128
    batch_size: int = 1
    batches: int = 1
    overlap: bool = False
    engines: tuple[str, ...] = engine_names()
    network: NetworkProfile | None = None
    gelu: str = "quad"
    softmax: str = "2quad"
    strides: str = ""
    precision: str | None = None
    repeat: int = 2
    threads: int = 1
    device: str = "cpu"
    json: Path | None = None

    @property
    def dealt_beside(self) -> bool:
        """Whether batches are computed while they, or later ones, are dealt."""
        return self.overlap or self.batches > 1


def measure(options: BenchOptions) -> dict[str, Any]:
    """Run every engine `options.repeat` times and return the figures; write them as JSON if `options.json` is set.

    Seconds are medians over the runs. Keys name their unit: `online_seconds`, `online_bytes`, `rounds`. Of several
    batches in a run, seconds and bytes are those of one on average.

    Online and offline seconds are the data owner's. Their sum is the time until the answer, but for the plan of a shape
    that is asked for the first time, which both owners make before. A single batch is dealt before it is computed, so
    that both are measured alone. With `options.overlap` it is computed while it is dealt, as in a session whose first
    question nothing was dealt for. Offline seconds are then those in which the data owner only dealt or waited for
    that.

    Raises:
        UserInputError: an option is wrong; nothing has run then.
        MPCFormerError: a party failed.
    """
    check(options)
    with model_of(options) as student, tempfile.TemporaryDirectory() as work:
        public = load_public_model(student)
        for engine in options.engines:
            create_engine(engine, rank=1, public=public, channel=None, weights=None)
        data = Path(work) / "data"
        random_sentences(data, options.batches * options.batch_size, options.seq_len)
        runs: dict[str, list[Results]] = {engine: [] for engine in options.engines}
        with progress() as bar:
            task = bar.add_task("bench", total=options.repeat * len(options.engines), info="")
            for turn in range(options.repeat):
                for engine in options.engines:
                    bar.update(task, info=f"{engine}, run {turn + 1}")
                    logs = Path(work) / f"{engine}-{turn}"
                    logs.mkdir()
                    runs[engine].append(simulate(job_of(options, engine, student, data), logs))
                    bar.advance(task)
        values = _values(options, public, runs)
    if options.json:
        write_json(options.json, values)
    return values


def model_of(options: BenchOptions) -> AbstractContextManager[Path]:
    """Return what yields the folder of the student that is measured, see `bench_model`.

    Raises:
        UserInputError: the model, its layers or its strides are wrong.
    """
    forms: dict[str, Any] = {"gelu": options.gelu, "softmax": options.softmax, "precision": options.precision}
    return bench_model(options.model, options.layers, options.seq_len, strides=split_strides(options.strides), **forms)


def check(options: BenchOptions) -> None:
    """Refuse options that cannot be measured.

    Raises:
        UserInputError: an option is wrong; the error names it.
    """
    check_shape(options.model, options.seq_len, options.batch_size)
    for name, value in (("repeat", options.repeat), ("threads", options.threads), ("batches", options.batches)):
        if value < 1:
            raise UserInputError(f"--{name}: {value} is below 1", "give a positive number")
    gemm.check_device(options.device)
    if options.json and options.json.exists():
        raise UserInputError(f"--json: {options.json} exists", "give another name, or remove it")
    if options.json and not options.json.parent.is_dir():
        raise UserInputError(f"--json: {options.json.parent} is not a folder", "make it first, or give another name")
    check_engines(options.engines)


def job_of(options: BenchOptions, engine: str, student: Path, data: Path) -> LocalRunOptions:
    """Return the options of one run of one engine."""
    return LocalRunOptions(
        student=student,
        teacher=None,
        job=JobDescription(
            task=TASK,
            batch_size=options.batch_size,
            engine=engine,
            overlap=options.dealt_beside,
        ),
        data_dir=data,
        network=options.network,
        threads=options.threads,
        device=options.device,
    )


def _values(options: BenchOptions, public: PublicModel, runs: dict[str, list[Results]]) -> dict[str, Any]:
    median = statistics.median
    engines: dict[str, Any] = {}
    for engine, results in runs.items():
        plan = create_engine(engine, rank=1, public=public, channel=None, weights=None).plan(
            BatchShape(options.batch_size, options.seq_len)
        )
        engines[engine] = {
            "online_seconds": median(_online(r) for r in results),
            "offline_seconds": median(_offline(r) for r in results),
            "setup_seconds": median(r.reports["model-owner"].setup.seconds for r in results),
            "sentences_per_second": median(options.batches * options.batch_size / r.seconds for r in results),
            "online_bytes": _bytes(results[0], lambda report: report.online.bytes_received),
            "offline_bytes": _bytes(results[0], lambda report: report.offline.bytes_received),
            "dealer_bytes": _bytes(results[0], lambda report: report.offline.bytes_from_dealer),
            "setup_bytes": results[0].reports["data-owner"].setup.bytes_received,
            "rounds": int(median(b.online.rounds for b in results[0].batches["data-owner"])),
            "correlations": sum(len(segment) for segment in plan),
            "peak_rss_bytes": {role: max(r.reports[role].peak_rss_bytes for r in results) for role in get_args(Role)},
            "breakdown": {name: median(_mean(r, breakdown(r).get(name, 0.0)) for r in results) for name in OPERATIONS},
            "online_seconds_each": [_online(r) for r in results],
            "offline_seconds_each": [_offline(r) for r in results],
        }
    values: dict[str, Any] = {
        "model": options.model,
        "layers": public.config.num_hidden_layers,
        "seq_len": options.seq_len,
        "batch_size": options.batch_size,
        "batches": options.batches,
        "overlap": options.dealt_beside,
        "gelu": public.config.gelu,
        "softmax": public.config.softmax,
        "strides": list(public.config.strides),
        "precision": public.config.precision,
        "threads_per_party": options.threads,
        "device": options.device,
        "network": options.network.to_json() if options.network else {"profile": "none"},
        "repeat": options.repeat,
        "engines": engines,
    }
    if set(engine_names()[:2]) <= set(runs):
        pairs = list(zip(*(runs[name] for name in engine_names()[:2]), strict=True))
        values["ratio"] = {
            "online_seconds": median(_online(a) / _online(b) for a, b in pairs),
            "online_to_whole": median(_online(a) / (_online(b) + _offline(b)) for a, b in pairs),
            "total_seconds": median((_online(a) + _offline(a)) / (_online(b) + _offline(b)) for a, b in pairs),
        }
    return values


def _online(results: Results) -> float:
    return _mean(results, *(batch.online.seconds for batch in results.batches["data-owner"]))


def _offline(results: Results) -> float:
    return _mean(results, *(batch.offline.seconds for batch in results.batches["data-owner"]))


def _bytes(results: Results, of: Callable[[Any], int]) -> int:
    """Return the sum of some bytes of both owners' reports, for one batch on average."""
    return round(_mean(results, *(of(report) for owner in OWNERS for report in results.batches[owner])))


def _mean(results: Results, *amounts: float) -> float:
    """Return what the amounts of all batches are for one of them."""
    return float(sum(amounts)) / len(results.batches["data-owner"])
