"""Engines against each other on one model: every party its own process, real transport, engines in turn in one run.

A model is a student's folder, or a name: random weights of that shape, ranges calibrated on random sentences. What is
computed does not depend on the weights' values; how wide the tables are depends on the ranges, which a trained student
may have wider.
"""

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers.utils import logging as hf_logging

from distill.training.calibrate import calibrate
from experiments.spec.shapes import SHAPES as SHAPES
from mpcformer.console import PlainTable, console, progress
from mpcformer.engines.base import BatchShape, PublicModel, load_public_model
from mpcformer.engines.registry import ENGINES, create_engine, engine_names
from mpcformer.engines.stopwatch import OPERATIONS
from mpcformer.errors import UserInputError
from mpcformer.files import write_json
from mpcformer.modeling import (
    MPCFormerConfig,
    MPCFormerForSequenceClassification,
    default_backbone,
    load_tokenizer,
)
from mpcformer.modeling.load import read_config, require_student
from mpcformer.ring import gemm
from mpcformer.tasks import Encoded
from parties.roles.results import Results
from parties.runs.network import NetworkProfile
from parties.runs.report import breakdown
from parties.runs.simulation import InferenceJob, simulate
from parties.settings.config import Role

N_CALIBRATION = 8
POSITIONS = 512
TASK = "sst2"


@dataclass(frozen=True)
class BenchOptions:
    """What to measure; see `mpcformer bench --help`."""

    model: str = "bert-base"
    layers: int | None = None
    seq_len: int = 128
    batch_size: int = 1
    engines: tuple[str, ...] = engine_names()
    network: NetworkProfile | None = None
    gelu: str = "quad"
    softmax: str = "2quad"
    repeat: int = 2
    threads: int = 1
    device: str = "cpu"
    json: Path | None = None


def run(options: BenchOptions) -> dict[str, Any]:
    """Measure, show, and write the JSON if asked for.

    Raises:
        UserInputError: anything wrong with the options, found before anything runs.
        MPCFormerError: a party failed.
    """
    check(options)
    made = bench_model(options.model, options.layers, options.seq_len, options.gelu, options.softmax)
    with made as student, tempfile.TemporaryDirectory() as work:
        public = load_public_model(student)
        for engine in options.engines:
            create_engine(engine, rank=1, public=public, channel=None, weights=None)
        data = Path(work) / "data"
        random_sentences(data, options.batch_size, options.seq_len)
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
    _show(values)
    return values


def check(options: BenchOptions) -> None:
    """Refuse what cannot be measured.

    Raises:
        UserInputError: naming the option.
    """
    check_shape(options.model, options.seq_len, options.batch_size)
    for name, value in (("repeat", options.repeat), ("threads", options.threads)):
        if value < 1:
            raise UserInputError(f"--{name}: {value} is below 1", "give a positive number")
    gemm.use(options.device)
    if options.json and options.json.exists():
        raise UserInputError(f"--json: {options.json} exists", "give another name, or remove it")
    if options.json and not options.json.parent.is_dir():
        raise UserInputError(f"--json: {options.json.parent} is not a folder", "make it first, or give another name")
    check_engines(options.engines)


def check_shape(model: str, seq_len: int, batch_size: int) -> None:
    """Refuse a batch that the model cannot read.

    Raises:
        UserInputError: naming the option.
    """
    for name, value, low in (("seq-len", seq_len, 4), ("batch-size", batch_size, 1)):
        if value < low:
            raise UserInputError(f"--{name}: {value} is below {low}", f"give {low} or more")
    positions = POSITIONS
    if Path(model).is_dir() and model not in SHAPES:
        config = read_config(Path(model))
        require_student(Path(model), config)
        positions = config.get("max_position_embeddings", POSITIONS)
    if seq_len > positions:
        raise UserInputError(f"--seq-len: {seq_len} exceeds {positions} positions", f"give at most {positions}")


def check_engines(engines: Sequence[str]) -> None:
    """Refuse an unknown engine.

    Raises:
        UserInputError: naming it.
    """
    unknown = [engine for engine in engines if engine not in ENGINES]
    if unknown:
        raise UserInputError(f"--engine: {unknown[0]!r} is unknown", f"choose one of: {', '.join(ENGINES)}")


def job_of(options: BenchOptions, engine: str, student: Path, data: Path) -> InferenceJob:
    """What the parties are to do for one run of one engine."""
    return InferenceJob(
        student=student,
        teacher=None,
        task=TASK,
        data_dir=data,
        batch_size=options.batch_size,
        engine=engine,
        network=options.network,
        threads=options.threads,
        device=options.device,
    )


@contextmanager
def bench_model(
    model: str,
    layers: int | None,
    seq_len: int,
    gelu: str = "quad",
    softmax: str = "2quad",
    constant_norms: Sequence[str] = (),
) -> Iterator[Path]:
    """The folder of a student, or a temporary one with random weights.

    Raises:
        UserInputError: neither a name nor a folder; layers that a folder does not have.
    """
    if model not in SHAPES:
        if not Path(model).is_dir():
            raise UserInputError(f"--model: {model!r} is unknown", f"give a folder, or one of: {', '.join(SHAPES)}")
        if layers is not None:
            raise UserInputError("--layers: a checkpoint has its own number of layers", "leave --layers out")
        yield Path(model)
        return
    if layers is not None and layers < 1:
        raise UserInputError(f"--layers: {layers} is below 1", "give a positive number")
    with tempfile.TemporaryDirectory() as work, torch.random.fork_rng():
        torch.manual_seed(0)
        shape: dict[str, Any] = SHAPES[model] | ({"num_hidden_layers": layers} if layers else {})
        shape |= {"gelu": gelu, "softmax": softmax, "constant_norms": constant_norms}
        config = MPCFormerConfig(task=TASK, num_labels=2, **shape)
        student = MPCFormerForSequenceClassification(config).eval()
        ids = torch.randint(1000, config.vocab_size, (N_CALIBRATION, seq_len)).tolist()
        ranges = calibrate(student, [Encoded(row, [0] * seq_len) for row in ids], pad_id=0)
        folder = Path(work)
        hf_logging.disable_progress_bar()
        student.save_pretrained(folder)
        load_tokenizer(default_backbone()).save_pretrained(folder)
        ranges.save(folder)
        del student
        yield folder


def random_sentences(folder: Path, n: int, seq_len: int) -> None:
    """Sentences of seq_len tokens, [CLS] and [SEP] included: every word is one token."""
    vocabulary = load_tokenizer(default_backbone()).get_vocab()
    words = sorted(word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 2)
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(words), (n, seq_len - 2), generator=generator).tolist()
    columns = {"sentence": [" ".join(words[i] for i in row) for row in picks], "label": [i % 2 for i in range(n)]}
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "validation-00000-of-00001.parquet")


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
            "online_bytes": sum(
                batch.online.bytes_received for batches in results[0].batches.values() for batch in batches
            ),
            "offline_bytes": sum(batch.offline.bytes_received for batch in results[0].batches["model-owner"]),
            "dealer_bytes": sum(batch.offline.bytes_from_dealer for batch in results[0].batches["model-owner"]),
            "setup_bytes": results[0].reports["data-owner"].setup.bytes_received,
            "rounds": int(median(b.online.rounds for b in results[0].batches["data-owner"])),
            "correlations": sum(len(segment) for segment in plan),
            "peak_rss_bytes": {role: max(r.reports[role].peak_rss_bytes for r in results) for role in get_args(Role)},
            "breakdown": {name: median(breakdown(r).get(name, 0.0) for r in results) for name in OPERATIONS},
            "online_seconds_each": [_online(r) for r in results],
            "offline_seconds_each": [_offline(r) for r in results],
        }
    values: dict[str, Any] = {
        "model": options.model,
        "layers": public.config.num_hidden_layers,
        "seq_len": options.seq_len,
        "batch_size": options.batch_size,
        "gelu": public.config.gelu,
        "softmax": public.config.softmax,
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
    return float(sum(batch.online.seconds for batch in results.batches["data-owner"]))


def _offline(results: Results) -> float:
    return float(sum(batch.offline.seconds for batch in results.batches["model-owner"]))


def _show(values: dict[str, Any]) -> None:
    head = f"{values['model']}: {values['layers']} layers, {values['gelu']} + {values['softmax']},"
    head += f" {values['batch_size']} x {values['seq_len']} tokens,"
    tail = f"{values['threads_per_party']} thread(s) a party, network {values['network']['profile']}"
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
