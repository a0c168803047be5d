"""A session between parties that others started: the coordinator alone, from its own configuration."""

import shutil
from pathlib import Path
from typing import Any

from mpcformer.console import console
from mpcformer.errors import MPCFormerError, UserInputError
from mpcformer.files import check_new_folder
from mpcformer.ring.random import fixed_keys
from mpcformer.tasks import get_task
from parties.roles.coordinator import Coordinator
from parties.roles.journal import FILE_NAME, Journal
from parties.runs import report
from parties.runs.live import Live
from parties.settings.config import CoordinatorConfig
from parties.settings.insecure import fixed_seed, warn
from parties.settings.insecure import text as insecure_text
from parties.settings.threat_model import threat_model


def run(config: CoordinatorConfig, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """Wait for the parties, run the job, write the folder `out`; returns results.json's value.

    Until it is whole the run is in `<out>.partial`, with the journal of its finished batches.

    Raises:
        UserInputError: an unknown task, a folder that is not empty, an address that cannot be bound, nothing to resume.
        PartyError: naming the party that failed, or did not join.
    """
    check_new_folder(out)
    warn(config.insecure)
    task = get_task(config.job.task)
    partial = out.with_name(f"{out.name}.partial")
    if partial.exists() and not resume:
        raise UserInputError(
            f"--out: {partial} is there, of a run that did not finish", "--resume goes on with it; or remove it"
        )
    facts = config.job.model_dump() | {"insecure": insecure_text(config.insecure)}
    journal = Journal(partial / FILE_NAME, facts, resume=resume)
    try:
        with Live() as live:
            coordinator = Coordinator(config, journal=journal, on_progress=live.show)
            console.print(f"listening on {coordinator.address} for {config.data_owner}")
            try:
                with fixed_keys(fixed_seed(config.insecure), config.id):
                    results = coordinator.run_job()
            finally:
                coordinator.stop()
        values = report.measured(task, results, config.insecure) | {
            "batch_size": config.job.batch_size,
            "engine": config.job.engine,
            "embeddings": config.job.embeddings,
            "network": {"profile": "as deployed", "transport": report.transport(config.insecure)},
            "threat_model": threat_model(config.job.embeddings),
        }
        report.write(partial, facts, values, results, {})
    except (MPCFormerError, OSError, KeyboardInterrupt) as error:
        raise _with_way_on(error, journal, partial) from None
    finally:
        journal.close()
    if out.is_dir():
        out.rmdir()
    partial.rename(out)
    return values


def _with_way_on(error: BaseException, journal: Journal, partial: Path) -> BaseException:
    """The error with what can be done about the run; a run without any batch is removed."""
    if not journal.batches:
        shutil.rmtree(partial, ignore_errors=True)
        return error
    way = f"--resume goes on from batch {len(journal.batches)}"
    if isinstance(error, OSError):
        return UserInputError(f"{partial}: {error.strerror}", f"make room; {way}")
    if isinstance(error, MPCFormerError):
        error.remedy = f"{error.remedy}; {way}".removeprefix("; ")
    return error
