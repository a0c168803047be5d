"""A run of one job on this machine, from checked options to a whole run folder."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mpcformer.console import console
from mpcformer.engines.base import BatchShape, load_public_model
from mpcformer.engines.registry import EMBEDDINGS, ENGINES, create_engine
from mpcformer.errors import MPCFormerError, UserInputError, os_remedy
from mpcformer.files import check_temporary_folder, read_json, remove, sha256_file
from mpcformer.modeling import load_checkpoint, load_student, load_tokenizer
from mpcformer.modeling.folder import WEIGHTS, read_config, require_student, require_teacher
from mpcformer.modeling.tokenizer import Limits
from mpcformer.ring import gemm
from mpcformer.run_folder import RunFolder
from mpcformer.tasks import (
    OWN_DATA,
    Task,
    class_order,
    encode,
    job_task,
    known_names,
    length_batches,
    load_job,
    model_names,
    with_metrics,
)
from mpcformer.tasks.own import check_outputs, check_scored
from parties.roles.journal import FILE_NAME as JOURNAL
from parties.roles.journal import Journal, check_free
from parties.runs import parts, report
from parties.runs.live import Live
from parties.runs.parts import Pool
from parties.runs.simulation import LocalRunOptions, check_ports, plaintext, simulate
from parties.settings.insecure import text as insecure_text
from parties.settings.insecure import warn


def check(
    options: LocalRunOptions,
    out: Path,
    *,
    gelu: str | None = None,
    softmax: str | None = None,
    pool: Pool | None = None,
) -> None:
    """Check everything that can be wrong with the options, before any process starts.

    Args:
        options: what is to run.
        out: the folder that the run is to write.
        gelu, softmax: the forms that the student must have; None accepts any form.
        pool: the cluster that is to run it; None stands for this machine.

    Raises:
        MPCFormerError: an option is wrong; the error names the option, its value and the remedy.
    """
    job = options.job
    RunFolder(out).check_new()
    check_temporary_folder()
    if pool:
        parts.check(pool, options.port)
    if job.engine not in ENGINES:
        raise UserInputError(f"--engine: {job.engine!r} is unknown", f"choose one of: {', '.join(ENGINES)}")
    if job.embeddings not in EMBEDDINGS:
        raise UserInputError(f"--embeddings: {job.embeddings!r} is unknown", f"choose one of: {', '.join(EMBEDDINGS)}")
    if options.threads < 1:
        raise UserInputError(f"--threads: {options.threads} is below 1", "give a positive number")
    if not options.deadline_s > 0:
        raise UserInputError(f"--deadline-s: {options.deadline_s} is not positive", "give seconds above 0")
    gemm.check_device(options.device)
    check_ports(options.port)
    student = load_student(options.student, gelu=gelu, softmax=softmax)
    models = {"--student": student}
    if options.teacher:
        require_teacher(options.teacher)
        models["--teacher"] = load_checkpoint(options.teacher)
    check_scored(student.config, "--student")
    _check_classes(models, job_task(job.task, student.num_labels, model_names(student.config)))
    data = load_job(
        job.task,
        job.split,
        student.config,
        "--student",
        data_dir=options.data_dir,
        own=options.data,
        limit=job.limit,
    )
    _check_classes(models, data.task)
    with_metrics(data.task, options.metrics)
    examples = data.examples
    encoded = encode(
        load_tokenizer(options.student), examples, limits=Limits.of(student.config), max_length=job.max_length
    )
    longest = length_batches([len(row.input_ids) for row in encoded], job.batch_size)[0]
    # Planning also checks that the engine can run the student's forms and ranges.
    public = load_public_model(options.student, job.embeddings)
    engine = create_engine(job.engine, rank=1, public=public, channel=None, weights=None)
    engine.plan(BatchShape(len(longest), max(len(encoded[i].input_ids) for i in longest)))


def _check_classes(models: dict[str, Any], task: Task) -> None:
    """Check that the classes of models, by option, are the task's. A file may name more of them than was known."""
    for option, model in models.items():
        check_outputs(model.num_labels, task, option)
        class_order(known_names(model.config), task, option)


def run(options: LocalRunOptions, out: Path, *, resume: bool = False, pool: Pool | None = None) -> dict[str, Any]:
    """Run a job whose options were checked, write the folder `out` and return the value of results.json.

    A failed run leaves `<out>.failed` with the parties' logs, the journal of finished batches and nothing that looks
    like a result; see `RunFolder`.

    Args:
        options: what to run.
        out: the folder to write.
        resume: continue an unfinished or failed run of the same job.
        pool: the cluster that runs it, in parts; None stands for this machine.

    Raises:
        MPCFormerError: a party failed; the error names it.
    """
    folder = RunFolder(out)
    journal = _journal(options, folder, resume)
    warn(options.insecure)
    logs = folder.partial / "logs"
    logs.mkdir(parents=True)
    try:
        with console.status("plaintext student and teacher, for comparison"):
            twins = plaintext(options, logs)
        if pool:
            results = parts.run_in_parts(options, logs, journal, pool)
        else:
            with Live() as live:
                results = simulate(options, logs, journal, live.show)
        values = report.build(options, results, twins)
        report.write(folder.partial, options.to_json(), values, results, report.twin_logits(twins))
        folder.publish()
    except BaseException as error:
        folder.fail()
        way_on = f"; --resume goes on from batch {len(journal.batches)}" if journal.batches else ""
        if isinstance(error, OSError):
            raise UserInputError(f"{folder.failed}: {error.strerror}", f"{os_remedy(error)}{way_on}") from None
        if isinstance(error, MPCFormerError):
            error.remedy = f"{error.remedy}; logs: {folder.failed / 'logs'}{way_on}".removeprefix("; ")
        raise
    finally:
        journal.close()
    return values


def _journal(options: LocalRunOptions, folder: RunFolder, resume: bool) -> Journal:
    """Open the journal of a new run, or of the run to resume, whose other files are removed."""
    facts = options.job.to_json() | {"student": sha256_file(options.student / WEIGHTS), "data_dir": options.data_dir}
    facts |= {"insecure": insecure_text(options.insecure)}
    if options.data:
        facts |= {"data": asdict(options.data)}
    path = folder.partial / JOURNAL
    check_free(path)
    if not resume:
        remove(folder.partial)
        return Journal(path, facts)
    if folder.unfinished == folder.failed and folder.failed.exists():
        Journal(folder.failed / JOURNAL, facts, resume=True).close()  # another job's folder keeps its name
        folder.reopen()
    journal = Journal(path, facts, resume=True)
    for left in folder.partial.iterdir():
        if left.is_dir():
            remove(left)
    return journal


def teacher_of(student: Path) -> Path | None:
    """Return the folder of the teacher that a student's record names, or None if it is no longer there."""
    path = student / "distillation.json"
    folder = Path(read_json(path)["teacher"]["folder"]) if path.is_file() else None
    return folder if folder and (folder / "config.json").is_file() else None


def task_of(student: Path) -> str:
    """Return the task that a student was distilled for.

    Raises:
        UserInputError: the folder holds no student, or its configuration names no task.
    """
    config = read_config(student)
    require_student(student, config)
    task = config.get("task")
    if not task or task == OWN_DATA:
        raise UserInputError(
            f"--task: {student}/config.json names no task of the registry",
            "give --task, or data of your own with --data",
        )
    return str(task)
