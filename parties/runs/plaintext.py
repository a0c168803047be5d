"""Plaintext twins of a private run: the same examples, the same batch size, the same number of threads.

A process of its own (python -m parties.runs.plaintext --job FILE), so that its memory and its threads are not the
coordinator's. In a simulation one person owns text and models; between organisations nobody could run this.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mpcformer.engines.plaintext import predict
from mpcformer.errors import MPCFormerError
from mpcformer.files import write_json
from mpcformer.modeling import load_checkpoint, load_student, load_tokenizer
from mpcformer.tasks import encode, get_task, load_examples


def run(job: dict[str, Any], out: Path) -> None:
    """Write NAME.safetensors (logits) and latency.json for each model of the job."""
    import torch

    torch.set_num_threads(job["threads"])
    task = get_task(job["task"])
    data_dir = Path(job["data_dir"]) if job["data_dir"] else None
    examples = load_examples(task, job["split"], data_dir=data_dir, limit=job["limit"])
    latency: dict[str, Any] = {}
    for name, folder in job["models"].items():
        model = load_student(Path(folder)) if name == "student" else load_checkpoint(Path(folder), task=task.name)
        tokenizer = load_tokenizer(Path(folder))
        positions = model.config.max_position_embeddings
        encoded = encode(tokenizer, examples, positions=positions, max_length=job["max_length"])
        # Once unmeasured: the first batch pays for threads and allocations.
        predict(model, encoded[: job["batch_size"]], pad_id=tokenizer.pad_token_id, batch_size=job["batch_size"])
        logits, seconds = predict(model, encoded, pad_id=tokenizer.pad_token_id, batch_size=job["batch_size"])
        save_file({"logits": logits}, out / f"{name}.safetensors")
        latency[name] = summary(seconds)
    write_json(out / "latency.json", latency)


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and 95th percentile of seconds per example."""
    return {"median": statistics.median(seconds), "p95": float(np.percentile(seconds, 95))}


def main() -> int:
    """Run from a JSON file; an expected error is one line and its exit status."""
    parser = argparse.ArgumentParser(prog="python -m parties.runs.plaintext")
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        run(json.loads(args.job.read_text()), args.out)
    except MPCFormerError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
