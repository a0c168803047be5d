"""A run of one job between parties that their owners started: this process is the coordinator alone."""

from pathlib import Path
from typing import Any

from mpcformer.console import console, err_console
from mpcformer.errors import MPCFormerError, UserInputError, os_remedy
from mpcformer.machine import open_many_files
from mpcformer.ring.random import fixed_keys
from mpcformer.run_folder import RunFolder
from mpcformer.tasks import job_task
from parties.roles.coordinator import Coordinator
from parties.roles.journal import FILE_NAME, Journal
from parties.runs import report
from parties.runs.live import Live
from parties.settings.config import CoordinatorConfig
from parties.settings.config_file import by_keys
from parties.settings.insecure import fixed_seed, warn
from parties.settings.insecure import text as insecure_text
from parties.wire.identity import check_own


def run(config: CoordinatorConfig, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """Wait for the parties, run the job, write the folder `out` and return the value of results.json.

    A run that ends early leaves `<out>.partial` with the journal of its finished batches, if there are any; see
    `RunFolder`.

    Args:
        config: the coordinator's configuration, which contains the job.
        out: the folder to write.
        resume: continue an unfinished run of the same job.

    Raises:
        UserInputError: the task is unknown, the folder is not empty, the address cannot be bound, or there is nothing
            to resume.
        PartyError: a party failed or did not join; the error names it.
    """
    folder = RunFolder(out)
    folder.check_new()
    warn(config.insecure)
    open_many_files()
    try:
        if config.tls is not None:
            check_own(config.tls, config.id)
        job_task(config.job.task, 2)  # raises if it is unknown
    except MPCFormerError as error:
        raise by_keys(error) from None
    if not resume:
        folder.check_not_interrupted()
    facts = config.job.to_json() | {"insecure": insecure_text(config.insecure)}
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
        network = {"profile": "as deployed", "transport": report.transport(config.insecure)}
        values = report.measured(config.job, results, config.insecure) | {"network": network}
        report.write(folder.partial, facts, values, results, {})
        folder.publish()
    except (MPCFormerError, OSError, KeyboardInterrupt) as error:
        raise _with_way_on(error, journal, folder) from None
    finally:
        journal.close()
    return values


def _with_way_on(error: BaseException, journal: Journal, folder: RunFolder) -> BaseException:
    """Return the error with a remedy that says how to continue. A run without a finished batch is removed."""
    if not journal.batches:
        folder.discard()
        return error
    way = f"--resume goes on from batch {len(journal.batches)}"
    if isinstance(error, OSError):
        return UserInputError(f"{error.filename or folder.partial}: {error.strerror}", f"{os_remedy(error)}; {way}")
    if isinstance(error, KeyboardInterrupt):
        err_console.print(f"{folder.partial} is kept: {way}")
    if isinstance(error, MPCFormerError):
        error.remedy = f"{error.remedy}; {way}".removeprefix("; ")
    return error
