"""A session between parties that others started: the coordinator alone, from its own configuration."""

from pathlib import Path
from typing import Any

from mpcformer.console import console, progress
from mpcformer.files import check_new_folder, publish_folder
from mpcformer.ring.random import fresh_key
from mpcformer.tasks import get_task
from parties import report
from parties.config import CoordinatorConfig
from parties.coordinator import Coordinator
from parties.stubs import parties_pb2 as pb
from parties.threat_model import threat_model


def run(config: CoordinatorConfig, out: Path) -> dict[str, Any]:
    """Wait for the parties, run the job, write the folder `out`; returns results.json's value.

    Raises:
        UserInputError: an unknown task, a folder that is not empty, an address that cannot be bound.
        PartyError: naming the party that failed, or did not join.
    """
    check_new_folder(out)
    task, job, parties = get_task(config.job.task), config.job, config.parties
    roles = {parties.dealer: "dealer", parties.model_owner: "model-owner", parties.data_owner: "data-owner"}
    with progress() as bar:
        shown = bar.add_task("private inference", total=None, info="waiting for the parties")
        coordinator = Coordinator(
            roles,
            listen=config.listen,
            files=config.tls,
            on_progress=lambda batch, n: bar.update(shown, completed=batch, total=n, info="batches"),
            join_timeout_s=config.join_timeout_s,
        )
        console.print(f"listening on {coordinator.address} for {', '.join(roles)}")
        try:
            results = coordinator.run_job(
                pb.Job(
                    session_id=fresh_key(),
                    engine=job.engine,
                    embeddings=job.embeddings,
                    task=job.task,
                    split=job.split,
                    limit=job.limit or 0,
                    batch_size=job.batch_size,
                    max_length=job.max_length or 0,
                )
            )
        finally:
            coordinator.stop()
    values = report.measured(task, results) | {
        "batch_size": job.batch_size,
        "engine": job.engine,
        "embeddings": job.embeddings,
        "network": {"profile": "as deployed", "transport": "gRPC over mutual TLS"},
        "threat_model": threat_model(job.embeddings),
    }
    with publish_folder(out) as partial:
        report.write(partial, job.model_dump(), values, results, {})
    return values
