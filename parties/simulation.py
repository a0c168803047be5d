"""All parties on this machine, each its own process: certificates, configurations, spawn, watch, clean up."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mpcformer.errors import MPCFormerError, PartyError, UserInputError
from mpcformer.inference.engine import DEFAULT_ENGINE
from mpcformer.modeling.ranges import FILE_NAME as RANGES
from mpcformer.ring.random import fresh_key
from parties.config import Device, PartyConfig, Peers, Role, to_toml
from parties.coordinator import Coordinator, Results
from parties.network import NetworkProfile, Relays
from parties.stubs import parties_pb2 as pb
from parties.tls import make_certificates

COORDINATOR = "coordinator"
ROLES: tuple[Role, ...] = ("dealer", "model-owner", "data-owner")
PUBLIC_FILES = (
    "config.json",
    RANGES,
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
)
LEAVE_TIMEOUT_S = 8.0
CULPRIT_TIMEOUT_S = 1.0


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


class Processes:
    """The spawned parties. Spawned, not forked: gRPC does not survive a fork."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = threading.Event()

    def start(self, name: str, *arguments: str) -> None:
        """Run `python -m arguments...`, its output into the party's log."""
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "GRPC_VERBOSITY": "NONE"}
        with (self._logs / f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments], stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    def watch(self, coordinator: Coordinator) -> None:
        """Tell the coordinator at once when a process ends badly."""

        def wait(name: str, process: subprocess.Popen[bytes]) -> None:
            status = process.wait()
            if status and not self._stopping.is_set():
                coordinator.accuse(name, describe_exit(status, self.last_line(name)))

        for name, process in self.running.items():
            threading.Thread(target=wait, args=(name, process), daemon=True).start()

    def last_line(self, name: str) -> str:
        """The end of a party's log."""
        lines = (self._logs / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def stop(self, culprit: str | None = None) -> None:
        """Wait for all to leave; kill those that do not, and a silent culprit soon."""
        deadline = time.monotonic() + LEAVE_TIMEOUT_S
        for name, process in sorted(self.running.items(), key=lambda item: item[0] != culprit):
            try:
                process.wait(CULPRIT_TIMEOUT_S if name == culprit else max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def kill(self) -> None:
        """End all at once."""
        self._stopping.set()
        for process in self.running.values():
            if process.poll() is None:
                process.kill()
        for process in self.running.values():
            process.wait()


def describe_exit(status: int, last_line: str) -> str:
    """What a process's exit status means."""
    if status < 0:
        return f"its process was killed by signal {-status}"
    return f"its process ended with status {status}: {last_line}"


def simulate(job: InferenceJob, logs: Path, on_progress: Callable[[int, int], None]) -> Results:
    """Run the job with all parties on this machine.

    Raises:
        MPCFormerError: naming the party that failed.
    """
    with _workspace() as folder:
        files = make_certificates(folder / "tls", [COORDINATOR, *ROLES])
        relays = Relays(job.network)
        coordinator = Coordinator(
            {str(role): str(role) for role in ROLES},
            listen=_listen(job.port, 0),
            files=files[COORDINATOR],
            on_progress=on_progress,
            route=relays.route,
        )
        processes = Processes(logs)
        try:
            public = export_public(job.student, folder / "public")
            for role in ROLES:
                config = PartyConfig(
                    role=role,
                    id=role,
                    coordinator=coordinator.address,
                    listen=_listen(job.port, {"dealer": 1, "model-owner": 2}.get(role, 0)),
                    tls=files[role],
                    peers=Peers(
                        coordinator=COORDINATOR, dealer="dealer", model_owner="model-owner", data_owner="data-owner"
                    ),
                    student=job.student.resolve() if role == "model-owner" else None,
                    public_embeddings=role == "model-owner" and job.embeddings == "public_table",
                    public_model=public if role == "data-owner" else None,
                    data_dir=job.data_dir.resolve() if job.data_dir and role == "data-owner" else None,
                    threads=job.threads,
                    device=cast(Device, job.device),
                    deadline_s=job.deadline_s,
                )
                path = folder / f"{role}.toml"
                path.write_text(to_toml(config))
                processes.start(role, "parties", "--config", str(path))
            processes.watch(coordinator)
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
            processes.stop()
            return results
        except MPCFormerError as error:
            # The others know by now and end by themselves, and their logs say why; the culprit may never.
            processes.stop(culprit=error.party if isinstance(error, PartyError) else None)
            raise
        finally:
            processes.kill()
            coordinator.stop()
            relays.close()


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
        processes.start("plaintext", "parties.plaintext", "--job", str(out / "job.json"), "--out", str(out))
        status = processes.running["plaintext"].wait()
        if status:
            raise PartyError("plaintext", describe_exit(status, processes.last_line("plaintext")))
    finally:
        processes.kill()
    return out


def export_public(student: Path, target: Path) -> Path:
    """Copy what the data owner may know of the student: configuration, ranges, tokenizer; never a weight."""
    target.mkdir()
    for name in PUBLIC_FILES:
        if (student / name).is_file():
            shutil.copyfile(student / name, target / name)
    return target


def check_ports(port: int) -> None:
    """Refuse a fixed port that is taken or impossible, before anything starts.

    Raises:
        UserInputError: naming the port.
    """
    if port == 0:
        return
    if not 1024 <= port <= 65533:
        raise UserInputError(f"--port: {port} is outside 1024..65533", "three consecutive ports are used")
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
