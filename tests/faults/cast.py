"""Parties for fault tests, each as a forked process that has its imports done and can be halted at a chosen point.

A process that is to be observed or struck at a point calls `Gate.wait` there: it reports that the point is reached, and
continues when the gate is opened. The product contains no code for this: the point is a function that is wrapped in
that process only.
"""

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from parties.runs.network import NetworkProfile, Relay
from parties.settings.config import (
    AnyConfig,
    CoordinatorConfig,
    DataOwnerConfig,
    DealerConfig,
    ModelOwnerConfig,
    PeerAddress,
    TlsFiles,
)
from parties.settings.config_file import to_toml
from parties.settings.job import JobDescription
from parties.settings.public_files import export_public
from parties.wire.tls import make_certificates
from tests.forked import context, leave, redirect
from tests.ports import free_port

PARTIES = ("dealer", "model-owner", "data-owner", "coordinator")
START_LIMIT_S = 90.0

# The points where a process can be halted: a function, and at which of its calls. Batches have one sentence, so some
# are finished by then.
POINTS: dict[str, tuple[str, int]] = {
    "offline": ("mpcformer.engines.lift.ahead.Ahead.offline", 6),
    "linear": ("mpcformer.engines.lift.online_maps.OnlineMaps.apply", 20),
    "softmax": ("mpcformer.engines.lift.attention.PrivateAttention.attend", 4),
    "reveal": ("mpcformer.engines.lift.bert.reveal", 3),
    "writing": ("parties.roles.journal.Journal.add", 2),
    "reading": ("parties.roles.data_owner.load_job", 1),
    "tokenising": ("parties.roles.data_owner.encode", 1),
    "comparing": ("parties.roles.data_owner.examples_digest", 1),
    # The weights are encoded for the default engine at the start, and for another one in the session.
    "encoding": ("parties.roles.shelf.encode_weights", 2),
    "setting up": ("mpcformer.engines.lift.engine.LiftEngine.setup", 1),
    # The beginnings and the ends of stages, in a run of six batches and two layers.
    "offline first": ("mpcformer.engines.lift.ahead.Ahead.offline", 1),
    "offline last": ("mpcformer.engines.lift.ahead.Ahead.offline", 12),
    "softmax first": ("mpcformer.engines.lift.attention.PrivateAttention.attend", 1),
    "softmax last": ("mpcformer.engines.lift.attention.PrivateAttention.attend", 12),
    "reveal first": ("mpcformer.engines.lift.bert.reveal", 1),
    "reveal last": ("mpcformer.engines.lift.bert.reveal", 6),
    "writing first": ("parties.roles.journal.Journal.add", 1),
    "writing last": ("parties.roles.journal.Journal.add", 6),
    "dealing first": ("parties.roles.dealer.deal", 1),
    "dealing last": ("parties.roles.dealer.deal", 300),
    "dealing": ("parties.roles.dealer.deal", 60),
    "hello dealer": ("parties.roles.service.SessionHost.add_to", 1),
    "hello model-owner": ("parties.roles.service.SessionHost.add_to", 1),
    "hello data-owner": ("parties.roles.start_party._take_part", 1),
    "hello coordinator": ("parties.roles.coordinator.start_server", 1),
}


@dataclass(frozen=True)
class Gate:
    """Halts a process at a point; two files carry the signals."""

    folder: Path
    point: str

    def wait(self) -> None:
        """Report that the point is reached, and wait until the gate is opened."""
        (self.folder / "reached").touch()
        deadline = time.monotonic() + START_LIMIT_S
        while not (self.folder / "go").exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    def install(self) -> None:
        """Wrap the point's function in this process."""
        path, nth = POINTS[self.point]
        parts = path.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            try:
                owner: Any = importlib.import_module(".".join(parts[:cut]))
                break
            except ModuleNotFoundError:
                continue
        for part in parts[cut:-1]:
            owner = getattr(owner, part)
        original, count = getattr(owner, parts[-1]), 0

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == nth:
                self.wait()
            return original(*args, **kwargs)

        setattr(owner, parts[-1], wrapped)

    def reached(self, timeout_s: float = START_LIMIT_S) -> None:
        """Wait, from outside, until the process has come to the point."""
        deadline = time.monotonic() + timeout_s
        while not (self.folder / "reached").exists():
            assert time.monotonic() < deadline, f"{self.point} was not reached"
            time.sleep(0.01)

    def open(self) -> None:
        """Let the process continue."""
        (self.folder / "go").touch()


def _child(log: Path, gate: Gate | None, main: Callable[..., int], *arguments: Any) -> None:
    """Run a party or the coordinator; this is the main function of a forked process."""
    redirect(log)
    if gate is not None:
        gate.install()
    leave(main(*arguments))


def _party(path: Path, once: bool) -> int:
    from parties.roles.start_party import run_party

    return run_party(path, once=once)


def _coordinate(path: Path, out: Path, resume: bool) -> int:
    from mpcformer.errors import MPCFormerError
    from parties.runs import deployed_run
    from parties.settings.config_file import load_coordinator

    try:
        deployed_run.run(load_coordinator(path), out, resume=resume)
    except MPCFormerError as error:
        print(f"error {error}", file=sys.stderr)
        return error.exit_code
    return 0


class Cast:
    """All parties of a job, each from its configuration, with a relay on every link.

    Args:
        folder: the folder for configurations and logs, and for the coordinator's run folder.
        student, public, data_dir: the folders that the owners need.
        tls: party id -> certificate files.
        job: what the parties shall compute.
        join_timeout_s: party id -> how long it waits for the others.
        changes: party id -> further keys of its configuration.
    """

    def __init__(
        self,
        folder: Path,
        *,
        student: Path,
        public: Path,
        data_dir: Path,
        tls: dict[str, TlsFiles],
        job: JobDescription,
        join_timeout_s: dict[str, float] | None = None,
        changes: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.folder, self.out = folder, folder / "run"
        self.processes: dict[str, BaseProcess] = {}
        ports = {name: free_port() for name in ("dealer", "model-owner", "coordinator")}
        links = {
            "coordinator->dealer": ports["dealer"],
            "coordinator->model-owner": ports["model-owner"],
            "owners->dealer": ports["dealer"],
            "data-owner->model-owner": ports["model-owner"],
            "data-owner->coordinator": ports["coordinator"],
        }
        loopback = NetworkProfile("x", 0.0, 1e10)
        self.relays = {name: Relay(f"127.0.0.1:{port}", loopback) for name, port in links.items()}
        waits = {name: (join_timeout_s or {}).get(name, 60.0) for name in PARTIES}
        common = {
            name: {"id": name, "tls": tls[name], "join_timeout_s": waits[name]} | (changes or {}).get(name, {})
            for name in PARTIES
        }
        service = {"coordinators": ["coordinator"], "data_owners": ["data-owner"], "grace_s": 2.0}

        def address(link: str) -> str:
            return self.relays[link].address

        self.configs: dict[str, AnyConfig] = {
            "dealer": DealerConfig(
                role="dealer",
                listen=f"127.0.0.1:{ports['dealer']}",
                model_owners=["model-owner"],
                **(service | common["dealer"]),
            ),
            "model-owner": ModelOwnerConfig(
                role="model-owner",
                listen=f"127.0.0.1:{ports['model-owner']}",
                dealers=["dealer"],
                student=student,
                **(service | {"budget_file": folder / "budget.json"} | common["model-owner"]),
            ),
            "data-owner": DataOwnerConfig(
                role="data-owner",
                coordinator=PeerAddress(id="coordinator", address=address("data-owner->coordinator")),
                model_owners=["model-owner"],
                dealers=["dealer"],
                public_model=public,
                data_dir=data_dir,
                **common["data-owner"],
            ),
            "coordinator": CoordinatorConfig(
                listen=f"127.0.0.1:{ports['coordinator']}",
                dealer=PeerAddress(id="dealer", address=address("coordinator->dealer")),
                model_owner=PeerAddress(id="model-owner", address=address("coordinator->model-owner")),
                data_owner="data-owner",
                job=job,
                **common["coordinator"],
            ),
        }

    def start(self, *names: str, gates: dict[str, Gate] | None = None, once: bool = True, resume: bool = False) -> None:
        """Fork these parties. The coordinator gives the owners addresses of relays in front of the services."""
        for name in names:
            path = self.folder / f"{name}.toml"
            path.write_text(to_toml(self.configs[name]))
            gate = (gates or {}).get(name)
            arguments: tuple[Any, ...] = (_party, path, once)
            if name == "coordinator":
                routes = {
                    self.relays["coordinator->dealer"].address: self.relays["owners->dealer"].address,
                    self.relays["coordinator->model-owner"].address: self.relays["data-owner->model-owner"].address,
                }
                arguments = (_routed, routes, path, self.out, resume)
            process = context.Process(target=_child, args=(self.log_of(name), gate, *arguments), name=name)
            process.start()
            self.processes[name] = process

    def log_of(self, name: str) -> Path:
        """Return the file with everything that a party printed."""
        return self.folder / f"{name}.log"

    def said(self, name: str) -> str:
        """Return what a party has printed."""
        path = self.log_of(name)
        return path.read_text() if path.is_file() else ""

    def wait(self, name: str, timeout_s: float) -> int:
        """Return the exit status of a party; fail if it does not end in time."""
        process = self.processes[name]
        process.join(timeout_s)
        assert process.exitcode is not None, f"{name} still runs after {timeout_s:.0f} s; it said: {self.said(name)}"
        return process.exitcode

    def cut_off(self, name: str) -> None:
        """Cut all connections of a party."""
        for link, relay in self.relays.items():
            near, far = link.split("->")
            owners = near == "owners" and name == "model-owner"
            if name in (near, far) or owners:
                relay.cut()

    def end(self) -> None:
        """Kill the processes that are left and close the relays."""
        for process in self.processes.values():
            if process.exitcode is None and process.pid is not None:
                process.kill()
            process.join()
        for relay in self.relays.values():
            relay.close()


def _routed(routes: dict[str, str], path: Path, out: Path, resume: bool) -> int:
    """Run a coordinator that gives the owners the addresses in `routes` in place of the services' own."""
    from parties.roles import coordinator

    original = coordinator.Coordinator.new_job

    def job(self: Any, **of_a_resumed_run: Any) -> Any:
        message = original(self, **of_a_resumed_run)
        message.dealer_address = routes[message.dealer_address]
        message.model_owner_address = routes[message.model_owner_address]
        return message

    coordinator.Coordinator.new_job = job  # type: ignore[method-assign]
    return _coordinate(path, out, resume)


@contextmanager
def cast_of(
    folder: Path,
    student: Path,
    data_dir: Path,
    job: JobDescription,
    *,
    tls: dict[str, TlsFiles] | None = None,
    **more: Any,
) -> Iterator[Cast]:
    """Yield a cast for a student, with public files and, if none are given, certificates of its own; end it then."""
    made = Cast(
        folder,
        student=student,
        public=export_public(student, folder / "public"),
        data_dir=data_dir,
        tls=tls or make_certificates(folder / "tls", list(PARTIES)),
        job=job,
        **more,
    )
    try:
        yield made
    finally:
        made.end()
