"""Run the parties of parties/deploy/compose.yaml from an image's file system, without a container runtime.

    sudo .venv/bin/python scripts/containers.py --image build/image --site SITE --out build/containers

The image is what scripts/image.py built, and SITE is the folder with certs/, student/, public/, data/ and budget/ that
the head of compose.yaml describes. Each service gets namespaces of its own: processes; a network, which a bridge joins
to the others', with the names of the compose file in /etc/hosts; and mounts, which are the image, read-only, and the
service's volumes alone. It runs as the user that the compose file names, without capabilities. Services that the
compose file restarts are started first and must become healthy. Then the others run until they end, and the services
are stopped in order.

The folder --out gets the log of each service and the volumes that have a name. `LEFT_OUT` has the settings that this
script does not carry out; one that it does not know is an error.
"""

import argparse
import contextlib
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

try:
    from scripts.image import APART, ROOT, Image, ScriptError, missing
except ModuleNotFoundError:  # This file was started by its path, so its folder is where modules are looked for.
    from image import APART, ROOT, Image, ScriptError, missing  # type: ignore[no-redef]

COMPOSE = ROOT / "parties" / "deploy" / "compose.yaml"
# Published ports need a host beside the containers, the limits need control groups, and nothing is restarted here.
LEFT_OUT = {"image", "ports", "mem_limit", "pids_limit"}
KNOWN = {"user", "read_only", "tmpfs", "cap_drop", "security_opt", "ulimits", "restart", "stop_grace_period", "command"}
KNOWN |= {"networks", "healthcheck", "volumes"}
# Settings that are carried out in this form only.
ONLY = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
DEVICES = ("null", "zero", "full", "random", "urandom")
BETWEEN_CHECKS_S, KILLED_S = 1.0, 10.0


@dataclass(frozen=True)
class Volume:
    """A file or folder of the host, or a named volume, and where it is mounted."""

    source: str
    target: str
    read_only: bool


@dataclass(frozen=True)
class Service:
    """One service of a compose file.

    Args:
        name: its name.
        names: all names by which the others reach it.
        command: the words after the image's entrypoint.
        user: UID:GID.
        tmpfs: folders that are kept in memory.
        ulimits: name -> limit, for `prlimit`.
        volumes: what is mounted.
        stays: whether it is restarted, so that it runs until it is stopped.
        grace_s: how long it may take to end after SIGTERM.
        check: the command that tells whether it is healthy; none: it has no such command.
        check_s: how long that may take to succeed for the first time.
    """

    name: str
    names: tuple[str, ...]
    command: tuple[str, ...]
    user: str
    tmpfs: tuple[str, ...]
    ulimits: tuple[tuple[str, int], ...]
    volumes: tuple[Volume, ...]
    stays: bool
    grace_s: float
    check: tuple[str, ...]
    check_s: float


def read(compose: Path, variables: Mapping[str, str]) -> list[Service]:
    """Return the services of a compose file, in its order.

    Args:
        compose: the file.
        variables: the values of its ${VARIABLES}.

    Raises:
        ScriptError: the file has a setting that this script does not carry out.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise ScriptError(f"{compose.name}: the variable {match[1]} has no value: {(match[2] or '').lstrip(':?')}")
        return variables[match[1]]

    text = re.sub(r"\$\{(\w+)(:\?[^}]*)?\}", value, compose.read_text())
    return [_service(name, settings, compose) for name, settings in yaml.safe_load(text)["services"].items()]


def _service(name: str, settings: dict[str, Any], compose: Path) -> Service:
    if unknown := sorted(set(settings) - KNOWN - LEFT_OUT):
        raise ScriptError(f"{compose.name}: {name} has {', '.join(unknown)}, which this script does not know")
    for key, only in ONLY.items():
        if settings.get(key) != only:
            raise ScriptError(f"{compose.name}: {name} has {key} {settings.get(key)!r}; only {only!r} is known here")
    networks = settings["networks"]
    if len(networks) != 1:
        raise ScriptError(f"{compose.name}: {name} is in {len(networks)} networks; only one is known here")
    aliases = next(iter(networks.values()))["aliases"] if isinstance(networks, dict) else []
    volumes = []
    for volume in settings.get("volumes", []):
        source, target, *mode = volume.split(":")
        if source.startswith("."):
            source = str((compose.parent / source).resolve())
        volumes.append(Volume(source, target, mode == ["ro"]))
    health = settings.get("healthcheck", {})
    check = health.get("test", ["CMD"])
    if check[0] != "CMD":
        raise ScriptError(f"{compose.name}: {name}: a healthcheck that begins with {check[0]!r} is not known here")
    return Service(
        name=name,
        names=(name, *aliases),
        command=tuple(settings["command"]),
        user=settings["user"],
        tmpfs=tuple(settings.get("tmpfs", [])),
        ulimits=tuple(settings.get("ulimits", {}).items()),
        volumes=tuple(volumes),
        stays="restart" in settings,
        grace_s=_seconds(settings.get("stop_grace_period", "10s")),
        check=tuple(check[1:]),
        check_s=_seconds(health.get("start_period", "0s")) + _seconds(health.get("timeout", "30s")),
    )


def _possible(ulimit: tuple[str, int]) -> tuple[str, int]:
    """Return a limit as it can be set: at most this process's own, which root cannot raise on some machines."""
    name, limit = ulimit
    own = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1]
    return name, limit if own == resource.RLIM_INFINITY else min(limit, own)


def _seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


@contextmanager
def networks(names: Sequence[str]) -> Iterator[dict[str, tuple[str, str]]]:
    """Yield name -> (network namespace, address); one more namespace has the bridge that joins them.

    The network of this host does not change. The addresses are those that RFC 2544 reserves for tests.
    """

    def ip(*words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ScriptError(f"this machine makes no network for containers: ip {' '.join(words)}: {done.stderr}")

    prefix = f"mpcfc{os.getpid()}"
    hub, made = f"{prefix}-hub", {}
    with ExitStack() as remove:
        for space in (hub, *(f"{prefix}-{name}" for name in names)):
            ip("netns", "add", space)
            remove.callback(ip, "netns", "delete", space)
        ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", hub, "link", "set", "bridge", "up")
        for number, name in enumerate(names, start=1):
            space, address = f"{prefix}-{name}", f"198.18.0.{number}"
            ip("-n", hub, "link", "add", f"to{number}", "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("-n", hub, "link", "set", f"to{number}", "master", "bridge", "up")
            ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")
            made[name] = (space, address)
        yield made


class Containers:
    """The services of a compose file as containers; all are ended when the context is left.

    Args:
        image: the folder of the image.
        services: the services.
        out: the folder for logs and named volumes.

    Attributes:
        services: name -> service.
        addresses: name -> address, once the context is entered.

    Raises:
        ScriptError: this machine cannot run them.
    """

    def __init__(self, image: Path, services: Sequence[Service], out: Path) -> None:
        if reason := missing(("ip", "iproute2"), ("nsenter", "util-linux"), ("setpriv", "util-linux")):
            raise ScriptError(reason)
        self._image, self._root, self._out = Image.read(image), image.resolve() / "root", out.resolve()
        self.services = {service.name: service for service in services}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._end = ExitStack()

    def __enter__(self) -> "Containers":
        self._spaces = self._end.enter_context(networks(list(self.services)))
        self.addresses = {name: address for name, (_, address) in self._spaces.items()}
        self._layers = Path(self._end.enter_context(tempfile.TemporaryDirectory(prefix="mpcformer-containers-")))
        self._end.callback(self._kill)
        return self

    def __exit__(self, *error: object) -> None:
        self._end.close()

    def start(self, name: str) -> None:
        """Start a service.

        Raises:
            ScriptError: something that it mounts does not exist.
        """
        service, (space, _) = self.services[name], self._spaces[name]
        lines = [*self._file_system(service), f"exec {shlex.join(self._as_user(service, service.command))}"]
        log = self.log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._running[name] = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{space}", *APART, "sh", "-ec", "\n".join(lines)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    def _file_system(self, service: Service) -> Iterator[str]:
        """Yield the lines for the shell that make the service's file system and make it the root."""
        layer = self._layers / service.name
        layer.mkdir(exist_ok=True)
        # What an engine adds to the image, such as mount points, is in a layer of the container's own.
        yield shlex.join(["mount", "-t", "tmpfs", "layer", str(layer)])
        yield f"cd {shlex.quote(str(layer))} && mkdir upper work root"
        yield f"mount -t overlay -o lowerdir={shlex.quote(str(self._root))},upperdir=upper,workdir=work image root"
        yield "cd root"
        yield "mount -t proc -o nosuid,nodev,noexec proc proc"
        yield "mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys"
        yield "mount -t tmpfs -o mode=755,nosuid,noexec,size=64k dev dev && mkdir dev/shm"
        yield "mount -t tmpfs -o mode=1777,nosuid,nodev,noexec,size=64m shm dev/shm && ln -s /proc/self/fd dev/fd"
        for device in DEVICES:
            yield f"touch dev/{device} && mount --bind /dev/{device} dev/{device}"
        for folder in service.tmpfs:
            yield f"mount -t tmpfs -o mode=1777,nosuid,nodev,noexec tmp .{shlex.quote(folder)}"
        hosts = ["127.0.0.1 localhost"]
        hosts += [f"{self._spaces[other.name][1]} {' '.join(other.names)}" for other in self.services.values()]
        yield f"rm -f etc/resolv.conf && printf '%s\\n' {shlex.join(hosts)} > etc/hosts && hostname {service.name}"
        for volume in service.volumes:
            source, target = self._source(volume), shlex.quote(f".{volume.target}")
            place = f"mkdir -p {target}" if source.is_dir() else f"mkdir -p $(dirname {target}) && touch {target}"
            yield f"{place} && mount --bind {shlex.quote(str(source))} {target}"
            yield f"mount -o remount,bind,nosuid,nodev,{'ro' if volume.read_only else 'rw'} {target}"
        yield "mount -o remount,ro ."
        # The new root is put over the old one, which is taken away: see pivot_root(2).
        yield "pivot_root . . && umount -l . && cd /"

    def _source(self, volume: Volume) -> Path:
        if volume.source.startswith("/"):
            if not Path(volume.source).exists():
                raise ScriptError(f"{volume.source} does not exist, and is to be mounted at {volume.target}")
            return Path(volume.source)
        # A named volume begins as what the image has in its place.
        folder, place = self._out / "volumes" / volume.source, self._root / volume.target.lstrip("/")
        if not folder.exists():
            folder.mkdir(parents=True)
            os.chown(folder, place.stat().st_uid, place.stat().st_gid)
        return folder

    def _as_user(self, service: Service, command: Sequence[str], *, entrypoint: bool = True) -> list[str]:
        uid, _, gid = service.user.partition(":")
        none = [f"--{which}=-all" for which in ("inh-caps", "ambient-caps", "bounding-set")]
        words = ["prlimit", *(f"--{name}={limit}:{limit}" for name, limit in map(_possible, service.ulimits))]
        words += ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", *none, "--no-new-privs"]
        words += ["env", "--ignore-environment", f"--chdir={self._image.workdir}"]
        words += [f"{name}={value}" for name, value in self._image.env.items()]
        return [*words, *(self._image.entrypoint if entrypoint else []), *command]

    def execute(self, name: str, command: Sequence[str], timeout_s: float = 60.0) -> "subprocess.CompletedProcess[str]":
        """Run one more command in the container of a service, as its user, and return what became of it."""
        inside = ["nsenter", f"--target={self._first(name)}"]
        inside += ["--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wdns=/"]
        words = [*inside, *self._as_user(self.services[name], command, entrypoint=False)]
        return subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)

    def _first(self, name: str) -> int:
        """Return the process, as this host numbers it, that is number one in a service's container."""
        process = self._running[name]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None:
            with contextlib.suppress(FileNotFoundError):
                if found := children.read_text().split():
                    return int(found[0])
            time.sleep(0.01)
        raise self.ended(name, process.returncode)

    def ended(self, name: str, status: int) -> ScriptError:
        """Return the error that a service ended."""
        last = (self.log(name).read_text().strip().splitlines() or ["it said nothing"])[-1]
        return ScriptError(f"{name} ended with status {status}: {last}; its log is {self.log(name)}")

    def log(self, name: str) -> Path:
        """Return the file with all that a service wrote."""
        return self._out / "logs" / f"{name}.log"

    def wait_healthy(self, name: str) -> None:
        """Wait until a service's own check succeeds.

        Raises:
            ScriptError: it did not within the time that the compose file gives, or the service ended.
        """
        service = self.services[name]
        deadline = time.monotonic() + service.check_s
        while (done := self.execute(name, service.check, timeout_s=service.check_s)).returncode:
            if time.monotonic() > deadline:
                raise ScriptError(f"{name} is not healthy after {service.check_s:g} s: {done.stdout}{done.stderr}")
            time.sleep(BETWEEN_CHECKS_S)

    def wait(self, name: str, timeout_s: float | None = None) -> int:
        """Wait until a service ends by itself, and return its exit status."""
        return self._running[name].wait(timeout_s)

    def stop(self, name: str) -> int:
        """End a service as an engine does, and return its exit status: SIGTERM, and SIGKILL after its grace period."""
        process = self._running[name]
        os.kill(self._first(name), signal.SIGTERM)
        try:
            return process.wait(self.services[name].grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(KILLED_S)

    def _kill(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait(KILLED_S)


def run(containers: Containers) -> None:
    """Run all services as the head of this file says.

    Raises:
        ScriptError: a service did not become healthy, or ended with another status than 0.
    """
    staying = [service.name for service in containers.services.values() if service.stays]
    others = [name for name in containers.services if name not in staying]
    for name in staying:
        containers.start(name)
    for name in staying:
        containers.wait_healthy(name)
        print(f"{name}: healthy", flush=True)
    for name in others:
        containers.start(name)
    for name in others:
        if status := containers.wait(name):
            raise containers.ended(name, status)
        print(f"{name}: ended", flush=True)
    for name in staying:
        if status := containers.stop(name):
            raise containers.ended(name, status)
        print(f"{name}: stopped", flush=True)


def main() -> int:
    """Run the parties and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, required=True, help="folder that scripts/image.py made")
    parser.add_argument("--site", type=Path, required=True, help="folder with certs, student, public, data and budget")
    parser.add_argument("--out", type=Path, required=True, help="folder for logs and named volumes")
    given = parser.parse_args()
    try:
        services = read(COMPOSE, {"SITE": str(given.site.resolve())})
        with Containers(given.image, services, given.out) as containers:
            run(containers)
    except ScriptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
