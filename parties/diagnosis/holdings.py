"""Checks what a party holds: the student, its public files, the data. Findings never state content."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mpcformer.doctor import Finding
from mpcformer.engines.base import PublicModel, load_public_model
from mpcformer.errors import MPCFormerError
from mpcformer.files import sha256_file
from mpcformer.modeling import load_student, load_tokenizer
from mpcformer.modeling.folder import WEIGHTS
from mpcformer.tasks import described, job_task
from parties.diagnosis.findings import wrong
from parties.session.transcript import facts_digest
from parties.settings.config import CoordinatorConfig, DataOwnerConfig, ModelOwnerConfig
from parties.settings.public_files import recorded_student
from parties.stubs import parties_pb2 as pb

EXPORT = "ask the model owner for the folder that mpcformer export wrote"


def students(config: ModelOwnerConfig) -> list[Finding]:
    """Check that the model owner's students load, and state which students they are."""

    def look(folder: Path) -> str:
        load_student(folder)
        load_tokenizer(folder)
        return f"{_described(load_public_model(folder))}; sha256 {sha256_file(folder / WEIGHTS)}"

    if config.student is None and not config.students:
        return [Finding("student", "none: it serves programs alone")]
    return [
        _finding("student" if config.student else f"student {entry.name}", partial(look, entry.path))
        for entry in config.shelf()
    ]


def public_models(config: DataOwnerConfig) -> list[Finding]:
    """Check that the data owner has all public files, and state which students they belong to."""

    def look(picked: DataOwnerConfig) -> str:
        folder = picked.folder_of_model()
        load_tokenizer(folder)
        claimed = claim(picked).student
        return f"{_described(load_public_model(folder))}; of the student with sha256 {claimed}"

    if config.public_model is None and not config.models:
        return [Finding("public_model", "none: it runs programs alone")]
    if config.public_model is not None:
        return [_finding("public_model", partial(look, config), EXPORT)]
    return [
        _finding(f"public_model {entry.name}", partial(look, config.picked(entry.name)), EXPORT)
        for entry in config.models
    ]


def claim(config: DataOwnerConfig) -> pb.ModelClaim:
    """Return which student the data owner's public files belong to.

    Raises:
        UserInputError: the files do not say which.
    """
    folder = config.folder_of_model()
    return pb.ModelClaim(student=recorded_student(folder), facts=facts_digest(load_public_model(folder)))


def data(config: DataOwnerConfig) -> Finding:
    """Check that there is data to compute on."""
    folder = config.data_dir
    if (own := config.data) is not None:
        return _finding("data", lambda: described(own))
    if folder is None:
        return Finding("data_dir", "none: each task's data comes from the hub, or PyPI (demo task)")
    if not folder.is_dir():
        return wrong("data_dir", f"{folder} is not a folder", "create it, or correct data_dir")
    files = [*folder.glob("*.parquet"), *folder.glob("*/*.parquet")]
    if not files:
        return wrong(
            "data_dir",
            f"neither {folder} nor a task's folder in it contains a parquet file",
            "put the files there in the layout of the hub: sst2/validation-*.parquet",
        )
    places = sorted({path.parent.name if path.parent != folder else "." for path in files})
    return Finding("data_dir", f"{len(files)} parquet files in {', '.join(places)}")


def programs(config: ModelOwnerConfig | DataOwnerConfig) -> list[Finding]:
    """Check that the files that an owner's programs name are there."""
    found = []
    for entry in config.programs:
        file = entry.file.with_name(entry.file.name.partition(":")[0])
        missing = [path for path in (file, *entry.inputs.values()) if not path.is_file()]
        check = f"program {entry.name}"
        if missing:
            found.append(wrong(check, f"there is no file {missing[0]}", "create it, or correct [[programs]]"))
        else:
            inputs = ", ".join(entry.inputs) or "none"
            found.append(Finding(check, f"{file.name} with sha256 {sha256_file(file)[:16]}...; own inputs: {inputs}"))
    return found


def job(config: CoordinatorConfig) -> Finding:
    """Check that the coordinator's task exists."""

    def look() -> str:
        job_task(config.job.task, 2)  # raises if it is unknown
        return f"{config.job.task}, split {config.job.split}"

    return _finding("job", look)


def _described(public: PublicModel) -> str:
    config = public.config
    return f"{config.num_hidden_layers} layers, {config.gelu} + {config.softmax}, task {config.task}"


def _finding(check: str, look: Callable[[], str], remedy: str = "") -> Finding:
    try:
        return Finding(check, look())
    except MPCFormerError as error:
        return wrong(check, error.what, remedy or error.remedy)
    except Exception as error:  # Whatever is wrong becomes a finding.
        return wrong(check, f"{type(error).__name__}: {error}", remedy or "restore the files")
