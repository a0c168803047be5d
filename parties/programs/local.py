"""A program's run on this machine: dealer and both owners are processes of their own, and no process has all inputs."""

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpcformer.errors import MPCFormerError, PartyError, ProtocolError, RangeError, UserInputError
from mpcformer.programs import LoadedProgram, Plan, dry_run, load_program, read_input
from mpcformer.ring.random import fresh_key
from parties.programs.task import DATA_OWNER, DEALER, MODEL_OWNER, OWNERS, Task
from parties.runs.processes import Processes, describe_exit
from parties.settings.config import DEFAULT_POOL_MIB
from parties.wire.tls import make_certificates

PATIENCE_S = 60.0
GRACE_S = 1.0
ERRORS = {error.exit_code: error for error in (UserInputError, ProtocolError, RangeError)}


@dataclass(frozen=True)
class ProgramRun:
    """What a run of a program gave.

    Args:
        plan: what was told before.
        reports: what each owner measured, by its role.
        files: the results' files.
        learners: for each result, who learns it.
    """

    plan: Plan
    reports: dict[str, dict[str, Any]]
    files: list[Path]
    learners: dict[str, str]


def planned(program: str, inputs: Mapping[str, Path]) -> tuple[LoadedProgram, Plan]:
    """Load a program, check its inputs' files, and plan it.

    Args:
        program: FILE, or FILE:NAME.
        inputs: the file of each input; none at all if it is only planned.

    Raises:
        UserInputError: the program or an input is not as declared; nothing was started.
    """
    loaded = load_program(program)
    declared = loaded.program.inputs
    for name in inputs:
        if name not in declared:
            raise UserInputError(
                f"--input {name}: {loaded.program.name} has no such input", f"it has {_names(declared)}"
            )
    missing = [name for name in declared if name not in inputs]
    if inputs and missing:
        raise UserInputError(f"--input: {_names(missing)} is missing", "give NAME=FILE for each input")
    for name, path in inputs.items():
        read_input(name, declared[name], path)
    return loaded, dry_run(loaded)


def run_here(
    program: str,
    inputs: Mapping[str, Path],
    out: Path,
    *,
    pool_mib: int = DEFAULT_POOL_MIB,
    patience_s: float = PATIENCE_S,
    limit_s: float = 3600.0,
    threads: int = 1,
    prepared: tuple[LoadedProgram, Plan] | None = None,
) -> ProgramRun:
    """Run a program between processes of this machine, and leave its results in `out`.

    Args:
        program: FILE, or FILE:NAME.
        inputs: the file of each input.
        out: the folder of the results, NAME.npy each. No file in it is replaced.
        pool_mib: the MiB of corrections that wait at the model owner.
        patience_s: how long an owner waits for the other one's next message.
        limit_s: how long the run may take.
        threads: torch's threads of each party.
        prepared: what `planned` gave, if it was called before.

    Raises:
        MPCFormerError: the program, an input or a party is at fault. Nothing is left in `out`.
    """
    loaded, plan = prepared or planned(program, inputs)
    wanted = [out / f"{name}.npy" for name in loaded.program.reveal]
    for path in wanted:
        if path.exists():
            raise UserInputError(f"--out: {path} exists", "give another folder, or move the file away")
    folder = Path(tempfile.mkdtemp(prefix="mpcformer-"))
    processes = Processes(folder)
    try:
        tasks = _tasks(loaded, program, inputs, folder, pool_mib, patience_s, threads)
        for task in tasks:
            path = folder / f"{task.role}.task"
            task.save(path)
            processes.start(task.role, "parties.programs.part", str(path), with_parent=True)
        reports = {task.role: _ended(task, tasks, processes, limit_s) for task in tasks if task.role != DEALER}
        out.mkdir(parents=True, exist_ok=True)
        for path in wanted:
            ranks = loaded.program.learners(path.stem)
            shutil.move(tasks[1 + ranks[0]].results / path.name, path)
    finally:
        processes.kill()
        shutil.rmtree(folder, ignore_errors=True)
    return ProgramRun(plan, reports, wanted, loaded.program.reveal)


def _tasks(
    loaded: LoadedProgram,
    program: str,
    inputs: Mapping[str, Path],
    folder: Path,
    pool_mib: int,
    patience_s: float,
    threads: int,
) -> list[Task]:
    """Return the tasks of the dealer and of both owners, each with what it may know alone."""
    tls = make_certificates(folder / "tls", [DEALER, *OWNERS])
    session_id, declared = fresh_key(), loaded.program.inputs
    file, colon, name = program.partition(":")

    def task(role: str) -> Task:
        owns = (
            {}
            if role == DEALER
            else {key: inputs[key].resolve() for key in inputs if declared[key].rank == OWNERS.index(role)}
        )
        return Task(
            role=role,
            session_id=session_id,
            tls=tls[role],
            folder=folder,
            program="" if role == DEALER else f"{Path(file).resolve()}{colon}{name}",
            digest="" if role == DEALER else loaded.digest,
            inputs=owns,
            pool_bytes=pool_mib << 20,
            patience_s=patience_s,
            threads=threads,
        )

    return [task(role) for role in (DEALER, MODEL_OWNER, DATA_OWNER)]


def _ended(task: Task, tasks: list[Task], processes: Processes, limit_s: float) -> dict[str, Any]:
    """Wait for an owner's report.

    Raises:
        MPCFormerError: some party failed; the error is that of the party at fault.
    """
    deadline = time.monotonic() + limit_s
    while True:
        failed = [other for other in tasks if _failed(other, processes)]
        if failed:
            raise _error_of(failed, tasks, processes)
        if task.report.is_file() and processes.running[task.role].poll() is not None:
            found: dict[str, Any] = json.loads(task.report.read_text())
            return found
        if time.monotonic() > deadline:
            raise PartyError(task.role, f"is not done after {limit_s:.0f} s", "give --limit, or a smaller program")
        time.sleep(0.02)


def _failed(task: Task, processes: Processes) -> bool:
    status = processes.running[task.role].poll()
    return status is not None and (status != 0 or task.role == DEALER)


def _error_of(failed: list[Task], tasks: list[Task], processes: Processes) -> MPCFormerError:
    """Return the error of who is at fault: a party that fails by itself comes before those that lost it."""
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline and not any(_own_fault(task) for task in failed):
        time.sleep(0.05)
        failed = [task for task in tasks if _failed(task, processes)]
    task = next((task for task in failed if _own_fault(task)), failed[0])
    if not task.report.is_file():
        status = processes.running[task.role].wait()
        return PartyError(task.role, describe_exit(status, processes.last_line(task.role)))
    found = json.loads(task.report.read_text())
    kind = ERRORS.get(found["exit_code"])
    if kind is not None:
        return kind(found["what"], found["remedy"])
    return PartyError(found["culprit"], found["what"].removeprefix(f"{found['culprit']}: "), found["remedy"])


def _own_fault(task: Task) -> bool:
    if not task.report.is_file():
        return True
    return bool(json.loads(task.report.read_text()).get("culprit") == task.role)


def _names(names: Any) -> str:
    return ", ".join(names)
