"""A run of a program that the data owner orders from dealer and model owner, as it orders sessions of a student."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpcformer.engines.base import DATA_OWNER
from mpcformer.errors import MPCFormerError, PartyError, UserInputError
from parties.program_process.process import Part, Results, entry_of, task_of
from parties.program_process.task import DRY_RUN_LIMIT_S, LOADING_LIMIT_S
from parties.session.data_side import BudgetError
from parties.session.evidence import said
from parties.session.failure import as_known
from parties.session.membership import peak_rss_bytes
from parties.session.own_session import OwnSession
from parties.settings.config import DataOwnerConfig, ProgramEntry
from parties.settings.config_file import load_party
from parties.settings.job import ProgramJob
from parties.stubs import parties_pb2 as pb

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class ProgramRun:
    """What a run of a program gave.

    Args:
        told: what was told before: "rounds", "bytes_sent" of each owner, "n_requests" and so on.
        report: what the data owner measured.
        files: the results that it learns; in a local run, all results.
    """

    told: dict[str, Any]
    report: dict[str, Any]
    files: list[Path]


def run_deployed(
    path: Path, name: str, tell: Tell = lambda told: None, *, plan_only: bool = False
) -> ProgramRun | None:
    """Run a program of the data owner's file between the deployed parties.

    Args:
        path: the data owner's file.
        name: the program's name in it, or the program's file.
        tell: called with what the run will cost, before anybody else is asked.
        plan_only: whether that is all.

    Returns:
        None if `plan_only`.

    Raises:
        BudgetError: the model owner's budget does not allow it.
        MPCFormerError: the program, an input or a party is at fault; no result was written.
    """
    config = load_party(path)
    if not isinstance(config, DataOwnerConfig) or config.dealer is None:
        raise UserInputError(
            f"--config: {path} is not the file of a data owner that orders its own sessions",
            "give a data owner's file with dealer and model_owner; the model owner's program runs in its service",
        )
    entry = _entry(config, name)
    task = task_of(entry, rank=DATA_OWNER, threads=config.threads, plan_only=plan_only)
    with Part(task, config.id) as part:
        told = part.prepared()
        tell(told)
        return None if plan_only else play(config, entry, part, told)


def _entry(config: DataOwnerConfig, name: str) -> ProgramEntry:
    """Find a program by its name, or by its file."""
    by_file = [entry for entry in config.programs if str(entry.file.resolve()) == str(Path(name).resolve())]
    if len(by_file) == 1 and name not in [entry.name for entry in config.programs]:
        return by_file[0]
    return entry_of(config.programs, name, config.id)


def play(config: DataOwnerConfig, entry: ProgramEntry, part: Part, told: dict[str, Any]) -> ProgramRun:
    """Order a session from dealer and model owner, and run a program that is prepared in it.

    Args:
        config: the data owner's.
        entry: the program.
        part: its process, which has prepared it.
        told: what the process said of it.

    Raises:
        MPCFormerError: see `run_deployed`.
    """
    # The model owner, too, loads the program and plans it before it is ready.
    timeout_s = config.join_timeout_s + LOADING_LIMIT_S + DRY_RUN_LIMIT_S
    session = OwnSession(config, ProgramJob(entry.name), ready_timeout_s=timeout_s)
    membership = session.membership
    try:
        membership.on_abort(lambda error: part.kill())
        job = session.job()
        with Results(entry, told["learns"], job.session_id) as results:
            part.start(config, job, results.partial)
            late = f"its program {entry.name} is not done after {entry.limit_s:.0f} s"
            done = part.next(membership.check, entry.limit_s, late)
            membership.part_done()
            transcript = bytes.fromhex(done.get("transcript", ""))
            membership.send(report=pb.Report(peak_rss_bytes=peak_rss_bytes(), transcript=transcript))
            # Both owners are done, or there are no results.
            membership.dismissed()
            files = results.publish() if done["event"] == "done" else []
        membership.leave()
    except Exception as error:
        known = as_known(error, config.id)
        raise _own_words(known, session.failed(known), config.id) from None
    except BaseException:
        session.failed(PartyError(config.id, "it was interrupted"))
        raise
    session.close()
    if done["event"] == "refused":
        raise BudgetError(job.model_owner, done["word"])
    return ProgramRun(told, done, files)


def _own_words(error: MPCFormerError, verdict: MPCFormerError, party_id: str) -> MPCFormerError:
    """Return the first cause; this party's own error says more than what the others were told of it.

    Where another party has noticed the same, the error is this party's own too, whichever of both was first.
    """
    is_own = isinstance(verdict, PartyError) and (verdict.party == party_id or said(verdict) == said(error))
    return error if is_own and not isinstance(error, PartyError) else verdict
