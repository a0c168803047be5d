"""Run student and teacher in plaintext on the examples of a private run, with the same batch size and threads.

This is a process of its own (python -m parties.runs.plaintext --job FILE), which keeps its memory and its threads apart
from the coordinator's. Only a simulation can do this, because there one person owns the texts and the models.
"""

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from safetensors.numpy import save_file

from mpcformer.engines.plaintext import predict
from mpcformer.errors import MPCFormerError
from mpcformer.files import write_json
from mpcformer.modeling import load_checkpoint, load_student, load_tokenizer
from mpcformer.modeling.tokenizer import Limits
from mpcformer.tasks import OwnData, class_order, encode, known_names, load_job
from parties.settings.job import JobDescription


@dataclass(frozen=True)
class PlaintextOptions:
    """The content of job.json.

    Args:
        job: the job of the private run; the engine and the embeddings play no part.
        models: the folders of the models by name, `student` and perhaps `teacher`.
        data_dir: where the examples are, see `load_examples`.
        threads: the number of torch threads.
        data: the file of own data, if the job is on it.
    """

    job: JobDescription
    models: dict[str, Path]
    data_dir: Path | None
    threads: int
    data: OwnData | None = None


def run(options: PlaintextOptions, out: Path) -> None:
    """Write the logits of each model to NAME.safetensors, and the latency of all models to latency.json."""
    import torch

    torch.set_num_threads(options.threads)
    job = options.job
    student = load_student(options.models["student"])
    data = load_job(
        job.task,
        job.split,
        student.config,
        str(options.models["student"]),
        data_dir=options.data_dir,
        own=options.data,
        limit=job.limit,
    )
    examples = data.examples
    latency: dict[str, Any] = {}
    for name, folder in options.models.items():
        model = student if name == "student" else load_checkpoint(folder, task=job.task)
        order = class_order(known_names(model.config), data.task, str(folder))
        tokenizer = load_tokenizer(folder)
        encoded = encode(tokenizer, examples, limits=Limits.of(model.config), max_length=job.max_length)
        # The first batch is run once without measuring, because it pays for threads and allocations.
        predict(model, encoded[: job.batch_size], pad_id=tokenizer.pad_token_id, batch_size=job.batch_size)
        logits, seconds = predict(model, encoded, pad_id=tokenizer.pad_token_id, batch_size=job.batch_size)
        logits = logits if order is None else np.ascontiguousarray(logits[:, order])
        save_file({"logits": logits}, out / f"{name}.safetensors")
        latency[name] = summary(seconds)
    write_json(out / "latency.json", latency)


def summary(seconds: list[float]) -> dict[str, float]:
    """Return the median and the 95th percentile of the seconds per example."""
    return {"median": statistics.median(seconds), "p95": float(np.percentile(seconds, 95))}


def main() -> int:
    """Run the job of a JSON file. An expected error is printed without a traceback and sets the exit status."""
    parser = argparse.ArgumentParser(prog="python -m parties.runs.plaintext")
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        run(TypeAdapter(PlaintextOptions).validate_json(args.job.read_bytes()), args.out)
    except MPCFormerError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
