"""Write the results of a run to its folder, and print the table that the terminal shows."""

import math
import statistics
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Group
from rich.text import Text
from safetensors.numpy import load_file

from mpcformer.console import PlainTable, console
from mpcformer.files import read_json, sha256_file, write_json, write_text
from mpcformer.modeling.description import described
from mpcformer.modeling.folder import WEIGHTS, read_config
from mpcformer.run_folder import write_manifest
from mpcformer.tasks import (
    Task,
    agreement,
    compute_metrics,
    job_task,
    model_names,
    predictions_of,
    ties,
    with_metrics,
)
from parties.roles.results import Results
from parties.runs import html_report
from parties.runs.plaintext import summary
from parties.runs.simulation import LocalRunOptions
from parties.settings.config import Insecure, Role
from parties.settings.insecure import fixed_seed
from parties.settings.insecure import text as insecure_text
from parties.settings.job import JobDescription
from parties.settings.threat_model import threat_model
from parties.stubs import parties_pb2 as pb

# Two outputs of a regression agree when they differ by less than 1% of the range of STS-B's scores, 0 to 5.
REGRESSION_TOLERANCE = 0.05
# Private logits are right to about this much. A prediction whose two largest logits are closer than that is a tie:
# chance may decide it, and another run may decide otherwise. The plaintext student's logits tell, where they are known.
RESOLUTION = 0.005
OWNERS: tuple[Role, Role] = ("data-owner", "model-owner")
# How many ids of refused examples the terminal shows.
MOST_IDS = 20
VERSIONS = ("mpcformer", "crypten", "torch", "transformers", "grpcio")


def measured(
    job: JobDescription, results: Results, insecure: Insecure | None, task: Task | None = None
) -> dict[str, Any]:
    """Return the part of results.json that follows from the job and the parties' reports, without any model.

    Args:
        job: what was asked for.
        results: what the parties reported.
        insecure: the run's settings for tests and measurements.
        task: the job's task, if more is known of it than its name.
    """
    task = task or job_task(job.task, results.predictions.n_outputs)
    seed = fixed_seed(insecure)
    labels, groups = list(results.predictions.labels), list(results.predictions.groups)
    logits, answered = private_logits(results.predictions), answered_rows(results.predictions)
    refused = [n for n, out in zip(results.predictions.ids, results.predictions.refused, strict=True) if out]
    told, near = results.scores, None
    private = dict(told.metrics) if told else _scores(task, logits, results.predictions)
    if told is None and not task.is_regression:
        near = {
            "within": RESOLUTION,
            "predictions": int(ties(task, logits[answered], RESOLUTION).sum()),
            "agreeing": None,
        }
    return {
        "task": task.name,
        "answers_withheld": told is not None,
        "classes": list(task.labels),
        "split": sorted(set(groups)) or [job.split],
        "examples": told.examples if told else len(labels),
        "refused": {"examples": told.refused if told else len(refused), "ids": refused},
        "batch_size": job.batch_size,
        "engine": job.engine,
        "embeddings": job.embeddings,
        "student": None,
        "metrics": {"teacher": None, "student": None, "private": private},
        "label_agreement": None,
        "ties": near,
        "max_abs_logit_error": None,
        "whole": {"seconds": results.seconds, "seconds_per_example": _whole(results)},
        "online": _online(results),
        "offline": _offline(results),
        "setup": _setup(results),
        "plaintext": {"seconds_per_example": {}},
        "peak_rss_bytes": {
            role: results.reports[role].peak_rss_bytes for role in ("model-owner", "data-owner", "dealer")
        },
        "session": results.session_id.hex(),
        "transcript": results.reports["data-owner"].transcript.hex(),
        "batches": {"all": len(results.batches["data-owner"]), "of_a_run_before": results.n_resumed},
        "versions": {name: version(name) for name in VERSIONS},
        "seeds": {
            "training": None,
            "protocol": "fresh, from the operating system" if seed is None else f"INSECURE: all follow from {seed}",
        },
        "bytes_are": "serialised frames as counted by the receiving channel, without TLS and HTTP/2 framing",
        "threat_model": threat_model(job.embeddings),
    } | ({"insecure": insecure_text(insecure)} if insecure_text(insecure) else {})


def build(options: LocalRunOptions, results: Results, plaintext: Path) -> dict[str, Any]:
    """Return the value of results.json of a local run.

    Args:
        options: what was run.
        results: what the parties reported.
        plaintext: the folder with latency.json and the logits of student and teacher in plaintext.
    """
    config = described(read_config(options.student))
    task = job_task(options.job.task, config.num_labels, model_names(config))
    task = with_metrics(task, options.metrics)
    predictions = results.predictions
    private, twins = private_logits(predictions), twin_logits(plaintext)
    answered = answered_rows(predictions)
    distilled = read_json(record) if (record := options.student / "distillation.json").is_file() else {}
    scores = {name: _scores(task, logits, predictions) for name, logits in twins.items()}
    private, student = private[answered], twins["student"][answered]
    values = measured(options.job, results, options.insecure, task)
    near = ties(task, student, RESOLUTION)
    if values["ties"] is not None:
        agreeing = round(agreement(task, private[near], student[near], 0.0) * near.sum()) if near.any() else None
        values["ties"] |= {"predictions": int(near.sum()), "agreeing": agreeing}
    tolerance = _tolerance(task, student)
    values["metrics"] |= {"teacher": scores.get("teacher"), "student": scores["student"]}
    values["seeds"] |= {"training": distilled.get("recipe", {}).get("seed")}
    return values | {
        "student": {
            "sha256": sha256_file(options.student / WEIGHTS),
            "gelu": config.gelu,
            "softmax": config.softmax,
            "precision": config.precision,
            "strides": list(config.strides),
            "layers": config.num_hidden_layers,
            "hidden": config.hidden_size,
        },
        "label_agreement": None if near.all() else agreement(task, private[~near], student[~near], tolerance),
        "label_agreement_tolerance": tolerance,
        "max_abs_logit_error": float(np.abs(private - student).max()) if answered.any() else None,
        "plaintext": {"seconds_per_example": read_json(plaintext / "latency.json")},
        "network": (options.network.to_json() if options.network else {"profile": "none"})
        | {"transport": f"{transport(options.insecure)} on the loopback interface"},
        "threads_per_party": options.threads,
        "device": options.device,
    }


def _tolerance(task: Task, student: NDArray[np.float32]) -> float:
    """Return how far apart two outputs of a regression may be that agree: 1% of the scale; 0 for classes."""
    if not task.is_regression:
        return 0.0
    return max(float(np.ptp(student)) / 100, RESOLUTION) if task.is_own else REGRESSION_TOLERANCE


def transport(insecure: Insecure | None) -> str:
    """Return the name of the transport between the parties."""
    return "gRPC without TLS" if insecure and insecure.plaintext else "gRPC over mutual TLS"


def private_logits(predictions: pb.Predictions) -> NDArray[np.float32]:
    """Return the logits (N, C) that the data owner reported."""
    return np.asarray(predictions.logits, dtype=np.float32).reshape(-1, predictions.n_outputs)


def answered_rows(predictions: pb.Predictions) -> NDArray[np.bool_]:
    """Return which of the examples (N,) were answered, not refused."""
    return ~np.asarray(predictions.refused, dtype=bool)


def _scores(task: Task, logits: NDArray[np.float32], predictions: pb.Predictions) -> dict[str, float]:
    """Return the metrics over the examples that were answered privately; none if there are none."""
    answered = answered_rows(predictions)
    if not answered.any():
        return {}
    labels = [label for label, flag in zip(predictions.labels, answered, strict=True) if flag]
    groups = [group for group, flag in zip(predictions.groups, answered, strict=True) if flag]
    return compute_metrics(task, logits[answered], labels, groups)


def _whole(results: Results) -> float | None:
    """Return how long an example of the last session took, dealing included."""
    n = sum(batch.batch_size for batch in results.batches["data-owner"][results.n_resumed :])
    return results.seconds / n if n else None


def twin_logits(plaintext: Path) -> dict[str, NDArray[np.float32]]:
    """Return the plaintext logits (N, C) by model name."""
    return {path.stem: load_file(path)["logits"] for path in sorted(plaintext.glob("*.safetensors"))}


def write(
    out: Path,
    facts: dict[str, Any],
    values: dict[str, Any],
    results: Results,
    twins: dict[str, NDArray[np.float32]],
) -> None:
    """Write results.json, predictions.parquet, report.html and, last, manifest.json.

    Args:
        out: the folder, which exists.
        facts: what was asked for, as JSON values, for the manifest.
        values: the value of results.json.
        results: what the parties reported.
        twins: the plaintext logits (N, C) by model name.
    """
    task = job_task(values["task"], results.predictions.n_outputs, values["classes"])
    if results.scores is None:
        _write_predictions(out / "predictions.parquet", task, results.predictions, twins)
    write_json(out / "results.json", values)
    write_text(out / html_report.FILE_NAME, html_report.render(values))
    write_manifest(out, {"job": facts})


def _write_predictions(
    path: Path, task: Task, predictions: pb.Predictions, twins: dict[str, NDArray[np.float32]]
) -> None:
    private = private_logits(predictions)
    columns: dict[str, Any] = {"id": list(predictions.ids), "split": list(predictions.groups)}
    columns["label"] = pa.array([None if math.isnan(label) else label for label in predictions.labels], pa.float64())
    refused = list(predictions.refused)
    columns["refused"] = refused
    for name, logits in {"private": private, **twins}.items():
        columns[f"{name}_logits"] = logits.tolist()
        columns[f"{name}_prediction"] = predictions_of(task, logits).tolist()
    for name in ("private_logits", "private_prediction"):
        columns[name] = [None if out else value for value, out in zip(columns[name], refused, strict=True)]
    if task.labels:
        places = columns["private_prediction"]
        columns["private_class"] = [None if place is None else task.labels[int(place)] for place in places]
    pq.write_table(pa.table(columns), path)


def _online(results: Results) -> dict[str, Any]:
    batches = results.batches["data-owner"]
    per_example = [b.online.seconds / b.batch_size for b in batches for _ in range(b.batch_size)]
    received = {
        "model-owner->data-owner": sum(b.online.bytes_received for b in batches),
        "data-owner->model-owner": sum(b.online.bytes_received for b in results.batches["model-owner"]),
    }
    return {
        "seconds": sum(b.online.seconds for b in batches),
        "seconds_per_example": summary(per_example),
        "breakdown_seconds": breakdown(results),
        "by_party": {
            role: {"seconds": breakdown(results, role), "waited": _summed(b.waited for b in results.batches[role])}
            for role in OWNERS
        },
        "rounds_per_batch": int(statistics.median(b.online.rounds for b in batches)),
        "bytes": received,
    }


def breakdown(results: Results, role: Role = "data-owner") -> dict[str, float]:
    """Return the online seconds of an owner by operation, including the time it waited."""
    return _summed(batch.breakdown for batch in results.batches[role])


def _summed(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for operation, seconds in part.items():
            total[operation] = total.get(operation, 0.0) + seconds
    return total


def _offline(results: Results) -> dict[str, Any]:
    batches = results.batches["model-owner"]
    return {
        "seconds": sum(b.offline.seconds for b in batches),
        "bytes": {
            "dealer->model-owner": sum(b.offline.bytes_from_dealer for b in batches),
            "data-owner->model-owner": sum(b.offline.bytes_received for b in batches),
            "model-owner->data-owner": sum(b.offline.bytes_received for b in results.batches["data-owner"]),
        },
    }


def _setup(results: Results) -> dict[str, Any]:
    model_owner, data_owner = results.reports["model-owner"].setup, results.reports["data-owner"].setup
    return {
        "seconds": max(model_owner.seconds, data_owner.seconds),
        "bytes": {
            "data-owner->model-owner": model_owner.bytes_received,
            "model-owner->data-owner": data_owner.bytes_received,
        },
    }


def show(values: dict[str, Any], out: Path) -> None:
    """Print the table, then where to read more.

    Args:
        values: the value of results.json.
        out: the folder of the run. A coordinator's folder has no logs: each party keeps its own.
    """
    console.print(table(values))
    named = ", ".join(name for name in ("results.json", "predictions.parquet", "logs/") if (out / name).exists())
    console.print(f"Everything is in {out} ({named}).", soft_wrap=True, markup=False)
    console.print(f"Report: {out / html_report.FILE_NAME}", soft_wrap=True, markup=False)


def table(values: dict[str, Any]) -> Group:
    """Return the numbers of results.json as a table: teacher, plaintext student and private student side by side."""
    columns = ("teacher", "student", "private")
    titles = ("teacher\n(plaintext)", "student\n(plaintext)", "student\n(private)")
    student = values["student"]
    head = f"{values['task']}: {values['examples']} examples of {', '.join(values['split'])}; "
    if student:
        head += f"{student['layers']} layers, {student['gelu']} + {student['softmax']}, {student['precision']}"
        head += f", strides {', '.join(map(str, student['strides']))}; " if student["strides"] else "; "
    head += f"engine {values['engine']}"
    head += ", public embeddings" if values["embeddings"] == "public_table" else ""
    grid = PlainTable(head, "quantity", *titles)
    metrics = values["metrics"]
    if not metrics["private"]:
        none_answered = values["refused"]["examples"] == values["examples"]
        why = "no example was answered" if none_answered else "the data have no labels"
        grid.add_row(f"score ({why})", *["-"] * len(columns))
    for metric in metrics["private"]:
        grid.add_row(metric, *(f"{metrics[c][metric]:.4f}" if metrics[c] else "-" for c in columns))
    latency = {**values["plaintext"]["seconds_per_example"], "private": values["online"]["seconds_per_example"]}
    for name in ("median", "p95"):
        grid.add_row(
            f"seconds/example, {name}{' (private: online)' if name == 'median' else ''}",
            *(f"{latency[c][name]:.4f}" if c in latency else "-" for c in columns),
        )
    online, offline = values["online"], values["offline"]
    online_bytes, dealer = sum(online["bytes"].values()), offline["bytes"]["dealer->model-owner"]
    n_examples = values["examples"]
    agreed = (
        f"{_agreement(values)}; largest logit error {values['max_abs_logit_error'] or 0.0:.5f}"
        if student
        else "the coordinator has no student to compare with"
    )
    whole = values["whole"]["seconds_per_example"]
    lines = [
        f"{'-' if whole is None else f'{whole:.3f}'} s per example in all, dealing included",
        *refused_text(values),
        agreed,
        f"online {online['seconds']:.1f} s, {online_bytes / n_examples / 2**20:.1f} MiB per example in both directions,"
        f" {online['rounds_per_batch']} rounds per batch of {values['batch_size']}",
        f"offline {offline['seconds']:.1f} s, {dealer / n_examples / 2**20:.1f} MiB per example from the dealer;"
        f" set-up {values['setup']['seconds']:.1f} s",
        *ties_text(values),
        f"threat model: {values['threat_model']['parties']}; {values['threat_model']['network']}",
        f"leaks: {values['threat_model']['leaks']}",
    ]
    if "insecure" in values:
        lines.insert(0, values["insecure"])
    return Group(grid, Text("\n".join(lines)))


def refused_text(values: dict[str, Any]) -> list[str]:
    """Return a sentence about the examples that were refused, if there are any."""
    told = values["refused"]
    if not told["examples"]:
        return []
    ids = ", ".join(map(str, told["ids"][:MOST_IDS])) + (", ..." if len(told["ids"]) > MOST_IDS else "")
    which = f", ids {ids}" if ids else " (the data owner knows which)"
    return [
        f"refused: {told['examples']} of {values['examples']} examples{which}: an activation left the range that the"
        " model was calibrated for. Scores are over the others. For texts of this kind, distil with some of them"
    ]


def _agreement(values: dict[str, Any]) -> str:
    """Return what the table says of the labels on which private and plaintext student agree."""
    if values["label_agreement"] is None:
        return "no prediction is more than a tie"
    others = "predictions that are no ties" if ties_text(values) else "predictions"
    return f"private and plaintext student agree on {values['label_agreement']:.2%} of {others}"


def ties_text(values: dict[str, Any]) -> list[str]:
    """Return a sentence about the ties, if there are any: predictions that another run may turn."""
    told = values.get("ties")
    if not told or not told["predictions"]:
        return []
    text = (
        f"{told['predictions']} of {values['examples']} predictions are ties: their two largest logits are closer than"
    )
    text += f" {told['within']}, and private logits are no more exact"
    if told["agreeing"] is not None:
        text += f"; private and plaintext student agree on {told['agreeing']} of them"
    return [text]
