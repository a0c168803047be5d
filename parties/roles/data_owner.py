"""The data owner: holds the text and receives the logits. It sees no weight."""

import hmac
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mpcformer.engines.base import BatchInputs, Outcome, load_public_model
from mpcformer.errors import RangeError, UserInputError, os_remedy
from mpcformer.modeling.tokenizer import Limits, TextTokenizer
from mpcformer.tasks import (
    Examples,
    JobData,
    Task,
    compute_metrics,
    encode,
    length_batches,
    load_job,
    pad_batch,
    predictions_of,
)
from mpcformer.tasks.own import open_own
from parties.roles.results import LEFT_RANGE, merged
from parties.session.data_side import DataSide
from parties.session.membership import Membership
from parties.settings.config import DataOwnerConfig
from parties.settings.job import JobDescription
from parties.settings.public_files import recorded_student
from parties.stubs import parties_pb2 as pb
from parties.wire import causes


def check(config: DataOwnerConfig) -> None:
    """Check that what the configuration names is there: the public files, and the data.

    Raises:
        UserInputError: something is missing or damaged.
    """
    for folder in [entry.public_model for entry in config.models] or [config.folder_of_model()]:
        load_public_model(folder)
        recorded_student(folder)
        TextTokenizer(folder)
    if config.data_dir is not None and not config.data_dir.is_dir():
        raise UserInputError(f"data_dir: {config.data_dir} is not a folder", "create it, or correct data_dir")
    if config.data is not None:
        open_own(config.data)


def run(config: DataOwnerConfig, membership: Membership) -> None:
    """Run the examples of one job through the model owner's student."""
    job = membership.job()
    if job is None:
        return
    if job.program:
        raise UserInputError(
            f"the job names the program {job.program[:80]!r}",
            "run it in a session of the data owner's own: mpcformer run NAME --config FILE",
        )
    for name, named, trusted in (
        ("dealer", job.dealer, config.dealers),
        ("model owner", job.model_owner, config.model_owners),
    ):
        if named not in trusted:
            raise UserInputError(
                f"the job names {name} {named!r}", f"add it to {config.id}'s configuration if it is trusted"
            )
    asked = JobDescription.from_message(job)
    folder = config.picked(asked.model or None).folder_of_model()
    public = load_public_model(folder)
    student = recorded_student(folder)
    tokenizer = TextTokenizer(folder, asked.max_length)
    data = load_job(
        asked.task,
        asked.split,
        public.config,
        str(folder),
        data_dir=config.data_dir,
        own=config.data,
        limit=asked.limit,
    )
    examples = data.examples
    encoded = encode(tokenizer, examples, limits=Limits.of(public.config), max_length=asked.max_length)
    batches = length_batches([len(row.input_ids) for row in encoded], asked.batch_size)
    digest = examples_digest(config, examples, [row.input_ids for row in encoded], batches)
    withholds = config.tell == "scores"
    if job.first_batch and withholds:
        raise UserInputError(
            f"{config.id} withholds its answers (tell), so nobody has those of the run to be resumed",
            "start anew without --resume",
        )
    # A part of a job knows no digest: whoever ordered it compares those of all parts.
    if (job.batch_plan or (job.first_batch and not job.end_batch)) and job.batch_plan != digest:
        what = "the data, the job or digest_key (by default the certificate's key)"
        raise UserInputError(*causes.not_as_begun(what))
    todo = batches[job.first_batch : job.end_batch or None]
    padded = [pad_batch([encoded[i] for i in batch], tokenizer.pad_token_id) for batch in todo]
    inputs = [BatchInputs(p["attention_mask"], p["input_ids"], p["token_type_ids"]) for p in padded]

    if withholds:
        # What is loaded for scores takes seconds. Others must not see in the session's end whether there were any.
        made_up_scores(data.task)
    side = DataSide(config, job, membership, public, student)
    if asked.overlap:
        side.coming([item.shape for item in inputs])
    answers: list[pb.Predictions] = []
    for index, (batch, item) in enumerate(zip(todo, inputs, strict=True)):
        told = Progress(membership, side, index, len(todo))
        answered = side.ask(item, len(batch), told.tell)
        # A refusal changes nothing of what the others see of this session, such as when it ends.
        answers.append(predictions(examples, batch, answered.outcome, data))
        membership.send(
            batch=pb.Batch(
                batch=job.first_batch + index,
                report=answered.report,
                predictions=None if withholds else answers[-1],
                batch_plan=digest,
                n_batches=len(batches),
                terms=side.session.terms,
            )
        )
    side.end()
    found = merged(answers)
    if config.out is not None:
        write_answers(config.out / f"answers-{job.session_id.hex()[:8]}.parquet", data.task, found)
    side.session.report(digest, own_scores(data.task, found) if withholds else None)
    membership.dismissed()
    side.close()
    refused = [example for example, out in zip(found.ids, found.refused, strict=True) if out]
    if refused and asked.on_refusal == "stop":
        raise RangeError(
            f"example {refused[0]}: an activation left the range that the model was calibrated for",
            "leave this example out, or give --on-refusal skip",
            told=LEFT_RANGE,
        )


@dataclass
class Progress:
    """Tells the coordinator how far a batch is.

    Args:
        membership: the connection to the coordinator.
        side: the session.
        batch, n_batches: the batch's index in the session, and how many there are.
    """

    membership: Membership
    side: DataSide
    batch: int
    n_batches: int

    def tell(self, segment: int, n_segments: int) -> None:
        """Tell that so many segments of the batch are done."""
        channels = self.side.session.asking, self.side.session.dealing
        self.membership.send(
            progress=pb.Progress(
                batch=self.batch,
                n_batches=self.n_batches,
                segment=segment,
                n_segments=n_segments,
                rounds=sum(channel.counters.rounds for channel in channels),
                bytes=sum(channel.counters.bytes_received for channel in channels),
            )
        )


def examples_digest(
    config: DataOwnerConfig, examples: Examples, token_ids: list[list[int]], batches: list[list[int]]
) -> bytes:
    """Return a digest of the examples, their tokens and labels, and the batch of each: 32 bytes.

    A run can be resumed only if this digest is unchanged. The coordinator keeps it. It is keyed with the data owner's
    own key, so that the coordinator cannot use it to check guesses of a text.
    """
    source = config.digest_key or (config.tls.key if config.tls is not None else None)
    key = source.read_bytes() if source is not None else b""
    content = [[int(i) for i in examples.ids], examples.labels, examples.groups, token_ids, batches]
    return hmac.digest(b"batch plan" + key, json.dumps(content).encode(), "sha256")


def made_up_scores(task: Task) -> dict[str, float]:
    """Return the scores of two made-up examples, which load and do all that the scores of real ones do."""
    logits = np.eye(2, max(2, task.num_labels), dtype=np.float32)[:, : task.num_labels]
    low, high = (0.0, 1.0) if not math.isfinite(sum(task.label_range)) else task.label_range
    return compute_metrics(task, logits, [low, high] if task.is_regression else [0, 1], ["", ""])


def own_scores(task: Task, found: pb.Predictions) -> pb.Scores:
    """Return the scores of all examples that were answered, for a coordinator that learns nothing else.

    If none was answered, scores are computed all the same: the others see when the session ends.
    """
    rows = [row for row, refused in enumerate(found.refused) if not refused]
    logits = np.asarray(found.logits, dtype=np.float32).reshape(-1, found.n_outputs)
    if rows:
        metrics = compute_metrics(task, logits[rows], [found.labels[i] for i in rows], [found.groups[i] for i in rows])
    else:
        made_up_scores(task)
        metrics = {}
    return pb.Scores(metrics=metrics, examples=len(found.rows), refused=len(found.rows) - len(rows))


def write_answers(path: Path, task: Task, found: pb.Predictions) -> None:
    """Write the data owner's own answers: id, split, answer (a class, or a value), logits, and whether it was refused.

    Raises:
        UserInputError: the file cannot be written.
    """
    logits = np.asarray(found.logits, dtype=np.float32).reshape(-1, found.n_outputs)
    values = predictions_of(task, logits).tolist()
    answers = [task.labels[int(value)] for value in values] if task.labels else values
    columns = {
        "id": list(found.ids),
        "split": list(found.groups),
        "answer": [None if out else answer for answer, out in zip(answers, found.refused, strict=True)],
        "logits": [None if out else row for row, out in zip(logits.tolist(), found.refused, strict=True)],
        "refused": list(found.refused),
    }
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Other users of this machine must not read them.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as handle:
            pq.write_table(pa.table(columns), handle)
    except OSError as error:
        raise UserInputError(f"out: {path}: {error.strerror}", os_remedy(error, "name another folder")) from None


def predictions(examples: Examples, rows: list[int], outcome: Outcome, data: JobData) -> pb.Predictions:
    """Return the results of a batch as the coordinator receives them. The logits of refused examples are zeros."""
    refused, told = outcome.known()
    logits = data.in_order(told.nan_to_num())
    return pb.Predictions(
        rows=rows,
        ids=[examples.ids[row] for row in rows],
        labels=[examples.labels[row] for row in rows],
        groups=[examples.groups[row] for row in rows],
        n_outputs=logits.size(1),
        logits=logits.reshape(-1).tolist(),
        refused=refused.tolist(),
    )
