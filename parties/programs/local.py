"""A run of a program on this machine, between services that are started for it."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from mpcformer.engines.base import DATA_OWNER as DATA_RANK
from mpcformer.errors import UserInputError
from parties.program_process.process import Part, task_of
from parties.programs.deployed import ProgramRun, Tell, play
from parties.programs.site import PATIENCE_S, LocalSite, split
from parties.runs.local_services import DATA_OWNER
from parties.settings.config import DEFAULT_POOL_MIB, ProgramEntry

LIMIT_S = 3600.0
# The name of the one program in the files of the parties.
NAME = "program"


def plan(program: str, inputs: Mapping[str, Path], tell: Tell) -> None:
    """Tell what a program costs, and look at those inputs that are given.

    Raises:
        UserInputError: the program or an input is not as declared.
    """
    entry = ProgramEntry(name=NAME, file=_absolute(program), inputs=_resolved(inputs))
    with Part(task_of(entry, rank=DATA_RANK, threads=1, all_inputs=True, plan_only=True), DATA_OWNER) as part:
        tell(part.prepared())


def run_here(
    program: str,
    inputs: Mapping[str, Path],
    out: Path,
    tell: Tell = lambda told: None,
    *,
    pool_mib: int = DEFAULT_POOL_MIB,
    patience_s: float = PATIENCE_S,
    limit_s: float = LIMIT_S,
    threads: int = 1,
) -> ProgramRun:
    """Run a program between processes of this machine, and leave its results in `out`.

    Args:
        program: FILE, or FILE:NAME.
        inputs: the file of each input.
        out: the folder of the results, NAME.npy each. No file in it is replaced.
        tell: called with what the run will cost, before anything else is started.
        pool_mib: the MiB of corrections that wait at the model owner.
        patience_s: how long an owner waits for the other one's next message.
        limit_s: how long the run may take.
        threads: torch's threads of each party.

    Raises:
        MPCFormerError: the program, an input or a party is at fault. Nothing is left in `out`.
    """
    entry = ProgramEntry(name=NAME, file=_absolute(program), inputs=_resolved(inputs), limit_s=limit_s)
    task = task_of(entry, rank=DATA_RANK, threads=threads, all_inputs=True)
    with Part(task, DATA_OWNER) as part:
        told = part.prepared()
        wanted = [out / f"{name}.npy" for name in told["reveal"]]
        for path in wanted:
            if path.exists():
                raise UserInputError(f"--out: {path} exists", "give another folder, or move the file away")
        tell(told)
        programs = split(entry, told["owners"])
        with LocalSite([programs], pool_mib=pool_mib, patience_s=patience_s, threads=threads) as site:
            config = site.data_owner()
            done = play(config, config.programs[0], part, told)
            out.mkdir(parents=True, exist_ok=True)
            for path in wanted:
                shutil.move(site.result(path.name), path)
    return ProgramRun(told, done.report, wanted)


def _absolute(program: str) -> Path:
    file, colon, name = program.partition(":")
    return Path(f"{Path(file).resolve()}{colon}{name}")


def _resolved(inputs: Mapping[str, Path]) -> dict[str, Path]:
    return {name: path.resolve() for name, path in inputs.items()}
