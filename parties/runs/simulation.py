"""Run all parties on this machine, each as a process: make certificates and configurations, start, watch, clean up."""

import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter

from mpcformer.errors import MPCFormerError, PartyError, UserInputError
from mpcformer.ring.random import fixed_keys
from mpcformer.tasks import OwnData
from parties.roles.coordinator import Coordinator, JobPart
from parties.roles.journal import FILE_NAME, Journal
from parties.roles.results import Results
from parties.runs.network import NetworkProfile, Relays
from parties.runs.plaintext import PlaintextOptions
from parties.runs.processes import START_TIMEOUT_S, Processes, describe_exit
from parties.settings.config import (
    UNLIMITED,
    AnyConfig,
    CoordinatorConfig,
    DataOwnerConfig,
    DealerConfig,
    Device,
    Insecure,
    ModelOwnerConfig,
    PeerAddress,
    Role,
    TlsFiles,
)
from parties.settings.config_file import to_toml
from parties.settings.insecure import fixed_seed
from parties.settings.job import JobDescription
from parties.settings.public_files import export_public
from parties.stubs import parties_pb2 as pb
from parties.wire.tls import make_certificates

COORDINATOR = "coordinator"
ROLES: tuple[Role, ...] = ("dealer", "model-owner", "data-owner")
UNKNOWN = "127.0.0.1:0"


@dataclass(frozen=True)
class LocalRunOptions:
    """One job on this machine, with the models, the data and the links of all parties; see `mpcformer infer --help`.

    Args:
        student: the folder of a distilled student.
        teacher: the folder of its teacher; None leaves the teacher's scores out.
        job: what the parties compute.
        data_dir: where the examples are, see `load_examples`.
        data: the file of own data, if the job is on it.
        metrics: the metrics to report; none: the task's own.
        network: the links between the parties; None is the loopback interface as it is.
        port: the coordinator listens on this port, the dealer and the model owner on the next two; 0 takes free ones.
        threads: the number of torch threads of each party.
        device: where the parties multiply matrices, cpu or cuda.
        deadline_s: how many seconds a party may keep another waiting.
        insecure: settings for tests and measurements.
    """

    student: Path
    teacher: Path | None
    job: JobDescription
    data_dir: Path | None = None
    data: OwnData | None = None
    metrics: tuple[str, ...] = ()
    network: NetworkProfile | None = None
    port: int = 0
    threads: int = 1
    device: str = "cpu"
    deadline_s: float = 300.0
    insecure: Insecure | None = None

    def to_json(self) -> dict[str, Any]:
        """Return all options as JSON values, those of the job among them, for the manifest."""
        values: dict[str, Any] = TypeAdapter(LocalRunOptions).dump_python(self, mode="json")
        job: dict[str, Any] = values.pop("job")
        return job | values


def simulate(
    options: LocalRunOptions,
    logs: Path,
    journal: Journal | None = None,
    on_progress: Callable[[pb.Progress], None] = lambda progress: None,
    part: JobPart | None = None,
) -> Results:
    """Run a job with all parties on this machine.

    Args:
        options: what to run.
        logs: the folder for the parties' logs, and for the journal if none is given.
        journal: the journal that finished batches are added to.
        on_progress, part: see `Coordinator`.

    Raises:
        MPCFormerError: a party failed; the error names it.
    """
    journal = journal or Journal(logs / FILE_NAME, options.job.to_json(), begin=part.begin if part else 0)
    with _workspace() as folder:
        processes, relays = Processes(logs), Relays(options.network)
        coordinator: Coordinator | None = None
        try:
            site = Site(options, folder)
            for service in (site.dealer(), site.model_owner()):
                processes.start(service.role, *site.command(service))
            config = site.coordinator()
            coordinator = Coordinator(config, journal=journal, on_progress=on_progress, route=relays.route, part=part)
            data_owner = site.data_owner(coordinator.address)
            processes.start(data_owner.role, *site.command(data_owner))
            for peer in (config.dealer, config.model_owner):
                peer.address = processes.address_of(peer.id, site.address_file(peer.id))
            processes.watch(coordinator)
            with fixed_keys(fixed_seed(options.insecure), COORDINATOR):
                results = coordinator.run_job()
            processes.stop()
            return results
        except (MPCFormerError, OSError) as error:
            # The others know of the failure, log the reason and end by themselves. The culprit may never end.
            processes.stop(culprit=error.party if isinstance(error, PartyError) else None)
            raise
        finally:
            processes.kill()
            if coordinator is not None:
                coordinator.stop()
            relays.close()


class Site:
    """The certificates and configuration files of a simulation.

    Args:
        options: what will run.
        folder: a folder that no other user can read.
    """

    def __init__(self, options: LocalRunOptions, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._tls: dict[str, TlsFiles] = {}
        if not (options.insecure and options.insecure.plaintext):
            self._tls = make_certificates(folder / "tls", [COORDINATOR, *ROLES])

    def _common(self, name: str) -> dict[str, Any]:
        options = self._options
        common: dict[str, Any] = {"id": name, "tls": self._tls.get(name), "insecure": options.insecure}
        if name != COORDINATOR:
            device = cast(Device, options.device)
            common |= {"role": name, "threads": options.threads, "device": device, "deadline_s": options.deadline_s}
        return common | {"join_timeout_s": START_TIMEOUT_S}

    def _service(self, name: str, offset: int) -> dict[str, Any]:
        listen = _listen(self._options.port, offset)
        return self._common(name) | {"listen": listen, "coordinators": [COORDINATOR], "data_owners": ["data-owner"]}

    def dealer(self) -> DealerConfig:
        """Return the dealer's configuration."""
        return DealerConfig(**self._service("dealer", 1), model_owners=["model-owner"])

    def model_owner(self) -> ModelOwnerConfig:
        """Return the model owner's configuration."""
        return ModelOwnerConfig(
            **self._service("model-owner", 2),
            dealers=["dealer"],
            student=self._options.student.resolve(),
            public_embeddings=self._options.job.embeddings == "public_table",
            **UNLIMITED,
        )

    def data_owner(self, coordinator: str) -> DataOwnerConfig:
        """Return the data owner's configuration; its public files are exported."""
        options = self._options
        return DataOwnerConfig(
            **self._common("data-owner"),
            coordinator=PeerAddress(id=COORDINATOR, address=coordinator),
            dealers=["dealer"],
            model_owners=["model-owner"],
            public_model=export_public(options.student, self._folder / "public"),
            data_dir=options.data_dir.resolve() if options.data_dir else None,
            data=replace(options.data, path=options.data.path.resolve()) if options.data else None,
            # The default, the certificate's key, differs from run to run here, so that no run could be resumed.
            # Whoever can read the student's folder can read the texts of a simulation as well.
            digest_key=options.student.resolve() / "config.json",
        )

    def coordinator(self) -> CoordinatorConfig:
        """Return the configuration of the coordinator, which is this process.

        The addresses of the services are filled in when they listen.
        """
        return CoordinatorConfig(
            **self._common(COORDINATOR),
            listen=_listen(self._options.port, 0),
            dealer=PeerAddress(id="dealer", address=UNKNOWN),
            model_owner=PeerAddress(id="model-owner", address=UNKNOWN),
            data_owner="data-owner",
            job=self._options.job,
        )

    def address_file(self, name: str) -> Path:
        """Return the file that a service writes its address to."""
        return self._folder / f"{name}.address"

    def command(self, config: AnyConfig) -> list[str]:
        """Write a party's configuration and return the arguments of `python -m` that run the party."""
        path = self._folder / f"{config.id}.toml"
        path.write_text(to_toml(config))
        once = ["--once", "--address-file", str(self.address_file(config.id))] if config.id != "data-owner" else []
        return ["parties", "--config", str(path), *once]


def plaintext(options: LocalRunOptions, logs: Path) -> Path:
    """Measure student and teacher in plaintext, in a process of its own, and return the folder of its results.

    Raises:
        PartyError: that process failed.
    """
    out = logs.parent / "plaintext"
    out.mkdir()
    models = {"student": options.student} | ({"teacher": options.teacher} if options.teacher else {})
    asked = PlaintextOptions(options.job, models, options.data_dir, options.threads, options.data)
    (out / "job.json").write_bytes(TypeAdapter(PlaintextOptions).dump_json(asked))
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
    """Refuse a fixed port that is in use or impossible, before anything starts.

    Raises:
        UserInputError: one of the three ports cannot be used; the error names it.
    """
    if port == 0:
        return
    if not 1024 <= port <= 65533:
        raise UserInputError(
            f"--port: {port} is outside 1024..65533", "choose a port in that range; the two after it are used too"
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
    """Yield a private folder for keys and configurations, which is removed whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="mpcformer-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
