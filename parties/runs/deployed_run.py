"""A session between parties that others started: the coordinator alone, from its own configuration."""

from pathlib import Path
from typing import Any

from mpcformer.console import console
from mpcformer.errors import MPCFormerError, UserInputError
from mpcformer.ring.random import fixed_keys
from mpcformer.run_folder import RunFolder
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
    folder = RunFolder(out)
    folder.check_new()
    warn(config.insecure)
    task = get_task(config.job.task)
    if not resume:
        folder.check_not_interrupted()
    facts = config.job.model_dump() | {"insecure": insecure_text(config.insecure)}
    journal = Journal(folder.partial / FILE_NAME, facts, resume=resume)
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
        report.write(folder.partial, facts, values, results, {})
    except (MPCFormerError, OSError, KeyboardInterrupt) as error:
        raise _with_way_on(error, journal, folder) from None
    finally:
        journal.close()
    folder.publish()
    return values


def _with_way_on(error: BaseException, journal: Journal, folder: RunFolder) -> BaseException:
    """The error with what can be done about the run; a run without any batch is removed."""
    if not journal.batches:
        folder.discard()
        return error
    way = f"--resume goes on from batch {len(journal.batches)}"
    if isinstance(error, OSError):
        return UserInputError(f"{folder.partial}: {error.strerror}", f"make room; {way}")
    if isinstance(error, MPCFormerError):
        error.remedy = f"{error.remedy}; {way}".removeprefix("; ")
    return error
