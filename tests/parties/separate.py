"""Run parties as separate processes with their own files, on this host or each in a network namespace of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from parties.settings.config import (
    CoordinatorConfig,
    DataOwnerConfig,
    DealerConfig,
    Insecure,
    ModelOwnerConfig,
    PeerAddress,
)
from parties.settings.config_file import to_toml
from parties.settings.job import JobDescription
from parties.settings.public_files import export_public
from parties.wire.tls import make_certificates
from tests.ports import free_port

COORDINATOR = "coordinator"
SERVICES = ("dealer", "model-owner")
IDS = (COORDINATOR, *SERVICES, "data-owner")
MAIN = "from mpcformer.cli import main; main()"
RUN_S, END_S = 240, 40


@dataclass(frozen=True)
class Hosts:
    """Where the parties run.

    Args:
        addresses: party id -> HOST:PORT, for the parties that listen.
        prefixes: party id -> what is put in front of its command line.
    """

    addresses: dict[str, str]
    prefixes: dict[str, list[str]] = field(default_factory=dict)

    def command(self, party: str, *arguments: object) -> list[str]:
        return [*self.prefixes.get(party, []), sys.executable, "-c", MAIN, *map(str, arguments)]


@dataclass(frozen=True)
class Run:
    """What a run left behind.

    Args:
        folder: the run folder of the coordinator.
        said: everything that the process of each party wrote; for the coordinator only what it wrote to stderr.
    """

    folder: Path
    said: dict[str, str]


def this_host() -> Hosts:
    return Hosts({name: f"127.0.0.1:{free_port()}" for name in (COORDINATOR, *SERVICES)})


@contextmanager
def namespaces() -> Iterator[Hosts]:
    """Put each party into a network namespace of its own; a fifth one has the bridge that connects them.

    The network of this host does not change. The addresses are those that RFC 2544 reserves for tests. The namespaces
    are removed again, whatever happens.
    """
    if os.geteuid() != 0:
        pytest.skip("network namespaces are root's to make")
    prefix = f"mpcf{os.getpid()}"
    hub = f"{prefix}-hub"
    with ExitStack() as made:
        for name in (hub, *(f"{prefix}-{party}" for party in IDS)):
            try:
                _ip("netns", "add", name)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"this machine makes no network namespaces: {error}")
            made.callback(_ip, "netns", "delete", name)  # This also deletes both ends of its links.
        _ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", hub, "link", "set", "bridge", "up")
        for number, party in enumerate(IDS, start=1):
            space = f"{prefix}-{party}"
            _ip("-n", hub, "link", "add", f"to{number}", "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("-n", hub, "link", "set", f"to{number}", "master", "bridge", "up")
            _ip("-n", space, "address", "add", f"198.18.0.{number}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
        addresses = {party: f"198.18.0.{n}:{7000 + n}" for n, party in enumerate(IDS, start=1) if party != "data-owner"}
        yield Hosts(addresses, {party: ["ip", "netns", "exec", f"{prefix}-{party}"] for party in IDS})


def run(
    folder: Path,
    hosts: Hosts,
    student: Path,
    data: Path,
    job: JobDescription,
    insecure: Insecure | None,
    n_jobs: int = 1,
) -> list[Run]:
    """Write the files, start the services, run one job after the other, and end all parties.

    Args:
        folder: an empty folder.
        hosts: where the parties run.
        student, data: the folders of the model owner and of the data owner.
        job: the job.
        insecure: the insecure settings of all files.
        n_jobs: the number of jobs.
    """
    _write_files(folder, hosts, student, data, job, insecure)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done: list[Run] = []
    with ExitStack() as running:

        def start(party: str) -> "subprocess.Popen[str]":
            command = hosts.command(party, "party", "--config", folder / f"{party}.toml")
            process = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]
            running.callback(process.kill)
            return process

        services = {service: start(service) for service in SERVICES}
        for number in range(n_jobs):
            data_owner, out = start("data-owner"), folder / f"run-{number}"
            arguments = hosts.command(COORDINATOR, "coordinate", "--config", folder / "coordinator.toml", "--out", out)
            coordinator = subprocess.run(arguments, capture_output=True, text=True, timeout=RUN_S, check=False)
            assert coordinator.returncode == 0, coordinator.stderr
            said = {COORDINATOR: coordinator.stderr, "data-owner": data_owner.communicate(timeout=END_S)[0]}
            assert data_owner.returncode == 0, said
            done.append(Run(out, said))
        for name, process in services.items():
            assert process.poll() is None, "a service goes on"
            process.terminate()
            text = process.communicate(timeout=END_S)[0]
            assert process.returncode == 0, text
            for each in done:
                each.said[name] = text
    return done


def _write_files(
    folder: Path, hosts: Hosts, student: Path, data: Path, job: JobDescription, insecure: Insecure | None
) -> None:
    tls = make_certificates(folder / "certs", list(IDS))
    peers = {party: PeerAddress(id=party, address=address) for party, address in hosts.addresses.items()}
    common = {party: {"id": party, "tls": tls[party], "insecure": insecure, "join_timeout_s": 120} for party in IDS}
    known = {"coordinators": [COORDINATOR], "data_owners": ["data-owner"]}
    services = {party: common[party] | known | {"role": party, "listen": hosts.addresses[party]} for party in SERVICES}
    configs: Sequence[CoordinatorConfig | DealerConfig | ModelOwnerConfig | DataOwnerConfig] = (
        CoordinatorConfig.model_validate(
            common[COORDINATOR]
            | {"listen": hosts.addresses[COORDINATOR], "data_owner": "data-owner", "job": job}
            | {"dealer": peers["dealer"], "model_owner": peers["model-owner"]}
        ),
        DealerConfig.model_validate(services["dealer"] | {"model_owners": ["model-owner"]}),
        ModelOwnerConfig.model_validate(services["model-owner"] | {"dealers": ["dealer"], "student": student}),
        DataOwnerConfig.model_validate(
            common["data-owner"]
            | {"role": "data-owner", "coordinator": peers[COORDINATOR], "data_dir": data}
            | {"dealers": ["dealer"], "model_owners": ["model-owner"]}
            | {"public_model": export_public(student, folder / "public")}
        ),
    )
    for config in configs:
        (folder / f"{config.id}.toml").write_text(to_toml(config))


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)
