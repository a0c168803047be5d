"""One private evaluation, from checked input to a whole run folder."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mpcformer.console import console
from mpcformer.engines.base import BatchShape, load_public_model
from mpcformer.engines.registry import EMBEDDINGS, ENGINES, create_engine
from mpcformer.errors import MPCFormerError, UserInputError
from mpcformer.files import check_new_folder, read_json, sha256_file
from mpcformer.modeling import load_checkpoint, load_student, load_tokenizer
from mpcformer.modeling.load import WEIGHTS
from mpcformer.ring import gemm
from mpcformer.tasks import encode, get_task, length_batches, load_examples
from parties.roles.journal import FILE_NAME as JOURNAL
from parties.roles.journal import Journal, check_free
from parties.runs import report
from parties.runs.live import Live
from parties.runs.simulation import InferenceJob, check_ports, plaintext, simulate
from parties.settings.insecure import text as insecure_text
from parties.settings.insecure import warn


def check(job: InferenceJob, out: Path, *, gelu: str | None = None, softmax: str | None = None) -> None:
    """Everything that can be wrong with the input, before any process starts.

    Raises:
        MPCFormerError: naming the option, its value and the remedy.
    """
    check_new_folder(out)
    if job.engine not in ENGINES:
        raise UserInputError(f"--engine: {job.engine!r} is unknown", f"choose one of: {', '.join(ENGINES)}")
    if job.embeddings not in EMBEDDINGS:
        raise UserInputError(f"--embeddings: {job.embeddings!r} is unknown", f"choose one of: {', '.join(EMBEDDINGS)}")
    if job.threads < 1:
        raise UserInputError(f"--threads: {job.threads} is below 1", "give a positive number")
    if not job.deadline_s > 0:
        raise UserInputError(f"--deadline-s: {job.deadline_s} is not positive", "give seconds above 0")
    gemm.use(job.device)
    task = get_task(job.task)
    check_ports(job.port)
    student = load_student(job.student, gelu=gelu, softmax=softmax)
    models = {"--student": student}
    if job.teacher:
        models["--teacher"] = load_checkpoint(job.teacher)
    for option, model in models.items():
        if model.num_labels != task.num_labels:
            raise UserInputError(
                f"{option}: the model has {model.num_labels} outputs, task {task.name} needs {task.num_labels}",
                f"give a model of task {task.name}",
            )
    examples = load_examples(task, job.split, data_dir=job.data_dir, limit=job.limit)
    positions = student.config.max_position_embeddings
    encoded = encode(load_tokenizer(job.student), examples, positions=positions, max_length=job.max_length)
    longest = length_batches([len(row.input_ids) for row in encoded], job.batch_size)[0]
    # Planning also proves that the engine can run the student's forms and ranges.
    public = load_public_model(job.student, job.embeddings)
    engine = create_engine(job.engine, rank=1, public=public, channel=None, weights=None)
    engine.plan(BatchShape(len(longest), max(len(encoded[i].input_ids) for i in longest)))


def run(job: InferenceJob, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """Run a checked job into the folder `out`; returns results.json's value.

    A failed run leaves `<out>.failed` with the parties' logs, the journal of finished batches and nothing that looks
    like a result; with `resume` it goes on from there.

    Raises:
        MPCFormerError: naming the party that failed.
    """
    partial, failed = out.with_name(f"{out.name}.partial"), out.with_name(f"{out.name}.failed")
    journal = _journal(job, partial, failed, resume)
    warn(job.insecure)
    logs = partial / "logs"
    logs.mkdir(parents=True)
    try:
        with console.status("plaintext student and teacher, for comparison"):
            twins = plaintext(job, logs)
        with Live() as live:
            results = simulate(job, logs, journal, live.show)
        values = report.build(job, results, twins)
        report.write(partial, asdict(job), values, results, report.twin_logits(twins))
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
    except BaseException as error:
        _remove(failed)
        partial.rename(failed)
        way_on = f"; --resume goes on from batch {len(journal.batches)}" if journal.batches else ""
        if isinstance(error, OSError):
            raise UserInputError(f"{failed}: {error.strerror}", f"make room there{way_on}") from None
        if isinstance(error, MPCFormerError):
            error.remedy = f"{error.remedy}; logs: {failed / 'logs'}{way_on}".removeprefix("; ")
        raise
    finally:
        journal.close()
    return values


def _journal(job: InferenceJob, partial: Path, failed: Path, resume: bool) -> Journal:
    """A new run's journal, or that of the run to go on with, everything else of which is removed."""
    facts = job.asked().model_dump() | {"student": sha256_file(job.student / WEIGHTS), "data_dir": job.data_dir}
    facts |= {"insecure": insecure_text(job.insecure)}
    check_free(partial / JOURNAL)
    if not resume:
        _remove(partial)
        return Journal(partial / JOURNAL, facts)
    if not partial.exists() and failed.exists():
        Journal(failed / JOURNAL, facts, resume=True).close()  # of another job it is left as it is
        failed.rename(partial)
    journal = Journal(partial / JOURNAL, facts, resume=True)
    for path in partial.iterdir():
        if path.is_dir():
            _remove(path)
    return journal


def teacher_of(student: Path) -> Path | None:
    """The teacher named in a student's record, if it is still there unchanged in name."""
    path = student / "distillation.json"
    folder = Path(read_json(path)["teacher"]["folder"]) if path.is_file() else None
    return folder if folder and (folder / "config.json").is_file() else None


def task_of(student: Path) -> str:
    """The task a student was distilled for.

    Raises:
        UserInputError: its configuration names none.
    """
    task = load_public_model(student).config.task
    if not task:
        raise UserInputError(f"--task: {student}/config.json names no task", "give --task")
    return str(task)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
