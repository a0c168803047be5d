"""Measure how many sentences several sessions answer on this machine, and what a fleet would answer by the same parts.

    python -m experiments.measuring.throughput --out throughput.json

It needs some minutes and a machine that does nothing else. The record has what was measured (`sessions`), the parts of
one batch (`batch`), and the rates of 2 to 64 machines (`machines`), which follow from the parts by the model in
`fleet.py`. `scripts/records.py` draws figure and tables of the committed record.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from experiments.measuring.engines import BenchOptions, job_of
from experiments.measuring.fleet import DATA_OWNER, DEALER, MODEL_OWNER, PARTIES, BatchCost, best_fleet, one_machine
from experiments.measuring.model import bench_model, check_shape, random_sentences
from mpcformer.engines.registry import DEFAULT_ENGINE
from mpcformer.errors import MPCFormerError, UserInputError
from mpcformer.files import write_json
from parties.ask.local import local
from parties.runs.network import PROFILES
from parties.runs.simulation import simulate

SESSIONS = (1, 2, 4)
MACHINES = (2, 4, 8, 16, 32, 64)
# Sessions of one model owner's machine: what the example files allow.
FLEET_SESSIONS = 4
# A session keeps this much at the model owner; the batches that are dealt before they are timed must fit.
POOL_MIB = 4096


def cpu_seconds() -> dict[str, float]:
    """Return the processor seconds that each party has used. The data owner is this process, the others its children.

    Raises:
        UserInputError: a service does not run.
    """
    me = psutil.Process()
    found = {DATA_OWNER: _used(me)}
    for child in me.children(recursive=True):
        words = " ".join(child.cmdline())
        for party in (DEALER, MODEL_OWNER):
            if f"{party}.toml" in words:
                found[party] = found.get(party, 0.0) + _used(child)
    if missing := sorted(set(PARTIES) - set(found)):
        raise UserInputError(f"no process of {', '.join(missing)} runs", "look for its log above")
    return found


def _used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def spent(student: Path, texts: list[str], shape: tuple[int, int], n: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the processor seconds of each party to open a session and deal n batches, and then to answer them."""
    options: Any = {"batch_size": shape[0], "lengths": [shape[1]], "pool_mib": POOL_MIB}
    with _closing(local(student, first=shape, deal_ahead=n, **options)) as classify:
        begun = cpu_seconds()
        classify.open()
        dealt = cpu_seconds()
        for _ in range(n):
            classify(texts[: shape[0]])
        answered = cpu_seconds()
    return (
        {party: dealt[party] - begun[party] for party in PARTIES},
        {party: answered[party] - dealt[party] for party in PARTIES},
    )


@contextmanager
def _closing(classifier: Any) -> Iterator[Any]:
    try:
        yield classifier
    finally:
        classifier.close()


def batch_cost(
    student: Path, texts: list[str], data: Path, shape: tuple[int, int], n: int, spent_s: dict[str, float]
) -> BatchCost:
    """Measure the parts of one batch.

    Args:
        student: the student's folder.
        texts: sentences for a batch or more.
        data: a folder with one batch as a data set, for bytes and rounds.
        shape: sentences and tokens of a batch.
        n: over how many batches dealing and answering are told apart. The difference between 1 and 1 + n of them
            counts, so that the set-up drops out.
        spent_s: the processor seconds of each party for a batch, dealing and answering together.
    """
    (open_1, ask_1), (open_n, ask_n) = (spent(student, texts, shape, count) for count in (1, 1 + n))
    with tempfile.TemporaryDirectory() as logs:
        results = simulate(
            job_of(BenchOptions(seq_len=shape[1], batch_size=shape[0]), DEFAULT_ENGINE, student, data), Path(logs)
        )
    offline_s = {party: max(0.0, open_n[party] - open_1[party]) for party in PARTIES}
    online_s = {party: max(0.0, ask_n[party] - ask_1[party]) for party in PARTIES}
    shares = {party: offline_s[party] / max(1e-9, offline_s[party] + online_s[party]) for party in PARTIES}
    owners = [results.batches[role][0] for role in ("model-owner", "data-owner")]
    from_dealer = owners[0].offline.bytes_from_dealer
    return BatchCost(
        sentences=shape[0],
        tokens=shape[1],
        offline_cpu_s={party: spent_s[party] * shares[party] for party in PARTIES},
        online_cpu_s={party: spent_s[party] * (1 - shares[party]) for party in PARTIES},
        dealer_bytes=from_dealer,
        offline_bytes=sum(batch.offline.bytes_received for batch in owners),
        online_bytes=sum(batch.online.bytes_received for batch in owners),
        rounds=owners[1].online.rounds,
    )


def measured(student: Path, texts: list[str], shape: tuple[int, int], sessions: int) -> dict[str, Any]:
    """Answer all texts with so many sessions, after two batches in each, and return what that took."""
    # Nothing is dealt while nobody asks, or the first batches would be cheaper than the others.
    options: Any = {"batch_size": shape[0], "lengths": [shape[1]], "sessions": sessions, "ahead": 0}
    with _closing(local(student, first=shape, **options)) as classify:
        classify.open()
        classify(texts[: shape[0] * sessions * 2])
        before, began = cpu_seconds(), time.monotonic()
        answers = classify(texts)
        seconds, after = time.monotonic() - began, cpu_seconds()
    print(f"{sessions} sessions: {len(texts) / seconds:.2f} sentences a second", flush=True)
    refused = sum(answer["label"] is None for answer in answers)
    used = {party: after[party] - before[party] for party in PARTIES}
    return {
        "sessions": sessions,
        "seconds": seconds,
        "sentences": len(texts),
        "refused": refused,
        "cpu_seconds": used,
    }


def record(model: str, shape: tuple[int, int], n_batches: int, n_parts: int) -> dict[str, Any]:
    """Measure everything and return the record.

    Args:
        model: as for `bench`.
        shape: sentences and tokens of a batch.
        n_batches: how many batches each number of sessions answers.
        n_parts: over how many batches the parts are averaged.

    Raises:
        UserInputError: an argument is wrong.
        MPCFormerError: a party failed.
    """
    check_shape(model, shape[1], shape[0])
    for name, value in (("batches", n_batches), ("parts", n_parts)):
        if value < 1:
            raise UserInputError(f"--{name}: {value} is below 1", "give a positive number")
    busy = os.getloadavg()[0]
    with bench_model(model, None, shape[1], precision=None) as student, tempfile.TemporaryDirectory() as work:
        random_sentences(Path(work) / "data", shape[0], shape[1])
        table = pq.read_table(next((Path(work) / "data").glob("*.parquet"))).to_pydict()
        texts = table["sentence"] * n_batches
        rows = [measured(student, texts, shape, sessions) for sessions in SESSIONS]
        spent_s = {party: rows[0]["cpu_seconds"][party] / n_batches for party in PARTIES}
        cost = batch_cost(student, texts, Path(work) / "data", shape, n_parts, spent_s)
    cores = len(os.sched_getaffinity(0))
    for row in rows:
        row["sentences_per_second"] = row["sentences"] / row["seconds"]
    return {
        "model": model,
        "cores": cores,
        "load_before": busy,
        "batch": cost.to_json(),
        "sessions": rows,
        **simulated(cost, cores),
    }


def simulated(cost: BatchCost, cores: int) -> dict[str, Any]:
    """Return what follows from the parts: the rates of this machine (`modelled`) and of the fleets (`machines`)."""
    modelled = [one_machine(cost, cores, sessions) for sessions in SESSIONS]
    rows = []
    for name, network in PROFILES.items():
        for n in MACHINES:
            dealers, bound = best_fleet(cost, n, cores, FLEET_SESSIONS, network)
            rows.append(
                {
                    "network": name,
                    "machines": n,
                    "dealers": dealers,
                    "sentences_per_second": bound.sentences_s,
                    "bound": bound.why,
                }
            )
    return {
        "modelled": [
            {"sessions": n, "sentences_per_second": bound.sentences_s, "bound": bound.why}
            for n, bound in zip(SESSIONS, modelled, strict=True)
        ],
        "sessions_per_machine": FLEET_SESSIONS,
        "machines": rows,
    }


def main() -> int:
    """Measure, write the record and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--model", default="minilm", help="a shape as for bench, or a student's folder")
    parser.add_argument("--batch-size", type=int, default=16, help="sentences of a batch")
    parser.add_argument("--seq-len", type=int, default=32, help="tokens of a sentence")
    parser.add_argument("--batches", type=int, default=8, help="batches that each number of sessions answers")
    parser.add_argument("--parts", type=int, default=3, help="batches over which the parts are averaged")
    given = parser.parse_args()
    try:
        values = record(given.model, (given.batch_size, given.seq_len), given.batches, given.parts)
    except MPCFormerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    write_json(given.out, values)
    return 0


if __name__ == "__main__":
    sys.exit(main())
