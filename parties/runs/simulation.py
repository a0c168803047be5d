"""All parties on this machine, each its own process: certificates, configurations, spawn, watch, clean up."""

import json
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mpcformer.engines.registry import DEFAULT_ENGINE
from mpcformer.errors import MPCFormerError, PartyError, UserInputError
from mpcformer.ring.random import fixed_keys
from parties.roles.coordinator import Coordinator
from parties.roles.journal import FILE_NAME, Journal
from parties.roles.results import Results
from parties.runs.network import NetworkProfile, Relays
from parties.runs.processes import START_TIMEOUT_S, Processes, describe_exit
from parties.settings.config import (
    AnyConfig,
    CoordinatorConfig,
    DataOwnerConfig,
    DealerConfig,
    Device,
    Insecure,
    JobConfig,
    ModelOwnerConfig,
    PeerAddress,
    Role,
    TlsFiles,
)
from parties.settings.config_file import to_toml
from parties.settings.insecure import fixed_seed
from parties.settings.public_files import export_public
from parties.stubs import parties_pb2 as pb
from parties.wire.tls import make_certificates

COORDINATOR = "coordinator"
ROLES: tuple[Role, ...] = ("dealer", "model-owner", "data-owner")
UNKNOWN = "127.0.0.1:0"


@dataclass(frozen=True)
class InferenceJob:
    """One private evaluation on this machine.

    Args:
        student: folder of a distilled student.
        teacher: folder of its teacher, if its scores are wanted.
        task, data_dir, split, limit: which examples, see `load_examples`.
        batch_size: sentences that share every round.
        max_length: tokens kept; None refuses longer texts than the model's positions.
        engine: see `ENGINES`.
        embeddings: see `EMBEDDINGS`.
        network: of the links between the parties; None: the loopback interface as it is.
        port: coordinator's, dealer's and model owner's are port, port + 1, port + 2; 0 takes free ones.
        threads: torch threads of each party.
        device: where the parties multiply matrices, cpu or cuda.
        deadline_s: how long a party may keep another waiting.
        insecure: for tests and measurements.
    """

    student: Path
    teacher: Path | None
    task: str
    data_dir: Path | None = None
    split: str = "eval"
    limit: int | None = None
    batch_size: int = 16
    max_length: int | None = None
    engine: str = DEFAULT_ENGINE
    embeddings: str = "private_table"
    network: NetworkProfile | None = None
    port: int = 0
    threads: int = 1
    device: str = "cpu"
    deadline_s: float = 300.0
    insecure: Insecure | None = None

    def asked(self) -> JobConfig:
        """The part that the parties are told."""
        names = ("task", "split", "limit", "batch_size", "max_length", "engine", "embeddings")
        return JobConfig(**{name: getattr(self, name) for name in names})


def simulate(
    job: InferenceJob,
    logs: Path,
    journal: Journal | None = None,
    on_progress: Callable[[pb.Progress], None] = lambda progress: None,
) -> Results:
    """Run the job with all parties on this machine.

    Args:
        job: what to run.
        logs: folder for the parties' logs, and for the journal if none is given.
        journal: of finished batches.
        on_progress: see `Coordinator`.

    Raises:
        MPCFormerError: naming the party that failed.
    """
    journal = journal or Journal(logs / FILE_NAME, job.asked().model_dump())
    with _workspace() as folder:
        processes, relays = Processes(logs), Relays(job.network)
        coordinator: Coordinator | None = None
        try:
            site = Site(job, folder)
            for service in (site.dealer(), site.model_owner()):
                processes.start(service.role, *site.command(service))
            config = site.coordinator()
            coordinator = Coordinator(config, journal=journal, on_progress=on_progress, route=relays.route)
            data_owner = site.data_owner(coordinator.address)
            processes.start(data_owner.role, *site.command(data_owner))
            for peer in (config.dealer, config.model_owner):
                peer.address = processes.address_of(peer.id, site.address_file(peer.id))
            processes.watch(coordinator)
            with fixed_keys(fixed_seed(job.insecure), COORDINATOR):
                results = coordinator.run_job()
            processes.stop()
            return results
        except (MPCFormerError, OSError) as error:
            # The others know by now and end by themselves, and their logs say why; the culprit may never.
            processes.stop(culprit=error.party if isinstance(error, PartyError) else None)
            raise
        finally:
            processes.kill()
            if coordinator is not None:
                coordinator.stop()
            relays.close()


class Site:
    """Certificates and configurations of a simulation.

    Args:
        job: what will run.
        folder: a private one.
    """

    def __init__(self, job: InferenceJob, folder: Path) -> None:
        self._job, self._folder = job, folder
        self._tls: dict[str, TlsFiles] = {}
        if not (job.insecure and job.insecure.plaintext):
            self._tls = make_certificates(folder / "tls", [COORDINATOR, *ROLES])

    def _common(self, name: str) -> dict[str, Any]:
        job = self._job
        common: dict[str, Any] = {"id": name, "tls": self._tls.get(name), "insecure": job.insecure}
        if name != COORDINATOR:
            device = cast(Device, job.device)
            common |= {"role": name, "threads": job.threads, "device": device, "deadline_s": job.deadline_s}
        return common | {"join_timeout_s": START_TIMEOUT_S}

    def _service(self, name: str, offset: int) -> dict[str, Any]:
        listen = _listen(self._job.port, offset)
        return self._common(name) | {"listen": listen, "coordinators": [COORDINATOR], "data_owners": ["data-owner"]}

    def dealer(self) -> DealerConfig:
        """The dealer's configuration."""
        return DealerConfig(**self._service("dealer", 1), model_owners=["model-owner"])

    def model_owner(self) -> ModelOwnerConfig:
        """The model owner's."""
        return ModelOwnerConfig(
            **self._service("model-owner", 2),
            dealers=["dealer"],
            student=self._job.student.resolve(),
            public_embeddings=self._job.embeddings == "public_table",
        )

    def data_owner(self, coordinator: str) -> DataOwnerConfig:
        """The data owner's, with its public files."""
        return DataOwnerConfig(
            **self._common("data-owner"),
            coordinator=PeerAddress(id=COORDINATOR, address=coordinator),
            dealers=["dealer"],
            model_owners=["model-owner"],
            public_model=export_public(self._job.student, self._folder / "public"),
            data_dir=self._job.data_dir.resolve() if self._job.data_dir else None,
            # The certificate is another one in each run; who could guess has the text here anyway.
            digest_key=self._job.student.resolve() / "config.json",
        )

    def coordinator(self) -> CoordinatorConfig:
        """This process's; where the services listen is known when they do."""
        return CoordinatorConfig(
            **self._common(COORDINATOR),
            listen=_listen(self._job.port, 0),
            dealer=PeerAddress(id="dealer", address=UNKNOWN),
            model_owner=PeerAddress(id="model-owner", address=UNKNOWN),
            data_owner="data-owner",
            job=self._job.asked(),
        )

    def address_file(self, name: str) -> Path:
        """Where a service says where it listens."""
        return self._folder / f"{name}.address"

    def command(self, config: AnyConfig) -> list[str]:
        """What runs a party, after `python -m`; its configuration is written."""
        path = self._folder / f"{config.id}.toml"
        path.write_text(to_toml(config))
        once = ["--once", "--address-file", str(self.address_file(config.id))] if config.id != "data-owner" else []
        return ["parties", "--config", str(path), *once]


def plaintext(job: InferenceJob, logs: Path) -> Path:
    """Logits and latency of student and teacher in plaintext, by a process of its own; the folder of its results.

    Raises:
        PartyError: that process failed.
    """
    out = logs.parent / "plaintext"
    out.mkdir()
    models = {"student": str(job.student)} | ({"teacher": str(job.teacher)} if job.teacher else {})
    fields = ("task", "split", "limit", "batch_size", "max_length", "threads")
    spec = {name: getattr(job, name) for name in fields}
    spec |= {"models": models, "data_dir": str(job.data_dir) if job.data_dir else None}
    (out / "job.json").write_text(json.dumps(spec))
    processes = Processes(logs)
    try:
        processes.start("plaintext", "parties.runs.plaintext", "--job", str(out / "job.json"), "--out", str(out))
        status = processes.running["plaintext"].wait()
        if status:
            raise PartyError("plaintext", describe_exit(status, processes.last_line("plaintext")))
    finally:
        processes.kill()
    return out


def check_ports(port: int) -> None:
    """Refuse a fixed port that is taken or impossible, before anything starts.

    Raises:
        UserInputError: naming the port.
    """
    if port == 0:
        return
    if not 1024 <= port <= 65533:
        raise UserInputError(
            f"--port: {port} is outside 1024..65533", "give one from there; the two after it are used too"
        )
    for number in range(port, port + 3):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", number))
            except OSError:
                raise UserInputError(
                    f"--port: {number} is in use", "choose another port, or leave --port out"
                ) from None


def _listen(port: int, offset: int) -> str:
    return f"127.0.0.1:{port + offset if port else 0}"


@contextmanager
def _workspace() -> Iterator[Path]:
    """A private folder for keys and configurations, removed whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="mpcformer-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
