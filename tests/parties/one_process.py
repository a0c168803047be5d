"""Run a whole job with all parties as threads of one process, and print the names of the modules it has loaded.

Usage: python -m tests.parties.one_process STUDENT DATA_DIR FOLDER, with FOLDER empty.
"""

import sys
import threading
from pathlib import Path
from typing import Any

import grpc

from parties.roles.coordinator import Coordinator
from parties.roles.dealer import Dealer
from parties.roles.journal import Journal
from parties.roles.model_owner import ModelOwner
from parties.roles.results import Results
from parties.roles.service import SessionHost
from parties.roles.start_party import _take_part
from parties.settings.config import (
    AnyConfig,
    CoordinatorConfig,
    DataOwnerConfig,
    DealerConfig,
    ModelOwnerConfig,
)
from parties.settings.job import JobDescription
from parties.settings.public_files import export_public
from parties.wire.frames import start_server
from parties.wire.tls import make_certificates
from tests.faults.cast import PARTIES, Cast


def serve(config: AnyConfig) -> grpc.Server:
    """Start a dealer or a model owner."""
    assert isinstance(config, DealerConfig | ModelOwnerConfig)
    party = Dealer(config) if isinstance(config, DealerConfig) else ModelOwner(config)
    host = SessionHost(config, config.role, party.run_session)

    def add(server: grpc.Server) -> None:
        party.add_to(server)
        host.add_to(server)

    return start_server(add, config.listen, config.credentials, rules=party.rules | host.rules)[0]


def run(
    student: Path, data_dir: Path, folder: Path, changes: dict[str, dict[str, Any]] | None = None, **job: Any
) -> Results:
    """Run two sentences through the student, under the default engine.

    Args:
        student, data_dir: the folders that the owners need.
        folder: an empty one.
        changes: party id -> further keys of its configuration.
        **job: fields of the job.
    """
    cast = Cast(
        folder,
        student=student,
        public=export_public(student, folder / "public"),
        data_dir=data_dir,
        tls=make_certificates(folder / "tls", list(PARTIES)),
        job=JobDescription(**({"task": "sst2", "batch_size": 2, "limit": 2} | job)),
        changes=changes,
    )
    servers = [serve(cast.configs[name]) for name in ("dealer", "model-owner")]
    config, data_owner = cast.configs["coordinator"], cast.configs["data-owner"]
    assert isinstance(config, CoordinatorConfig)
    assert isinstance(data_owner, DataOwnerConfig)
    coordinator = Coordinator(config, journal=Journal(folder / "journal.jsonl", {}))
    thread = threading.Thread(target=_take_part, args=(data_owner,))
    thread.start()
    try:
        results = coordinator.run_job()
        thread.join(20)
    finally:
        coordinator.stop()
        for server in servers:
            server.stop(0)
        cast.end()
    assert len(results.predictions.ids) == cast.configs["coordinator"].job.limit  # type: ignore[union-attr]
    return results


if __name__ == "__main__":
    run(*map(Path, sys.argv[1:4]))
    print(*sys.modules)
