"""Run CrypTen's own tests between two of our parties, and compare with the committed list.

    make conformance CRYPTEN=DIR        # DIR is a checkout of github.com/facebookresearch/CrypTen

Each test runs in two processes, one for each party, joined by a socket; a dealer's keys are made for each test. The
tests stay where they are: this project has no copy of them. The command prints a table with the reason of each failure,
and fails if a test that is in the list of those that pass does not pass.

    --only mpc,nn:TestTFP:test_linear   these files, classes or tests alone
    --control                           unpatched CrypTen instead, over torch.distributed: for comparison only
    --write                             renew the list from this run
"""

import argparse
import contextlib
import importlib
import inspect
import json
import os
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
import types
import unittest
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
LIST = ROOT / "scripts" / "conformance.json"
# What stays out, by the name of a test's class or file.
OUT = {
    "TestTTP": "needs a trusted third party that takes part; the dealer takes its place",
    "Test3PC": "needs three parties",
    "TestRSS": "needs three parties",
    "TestPTT": "needs the plaintext tensors that CrypTen's packages do not have",
    "TestCUDA": "needs a GPU",
    "test_cuda": "needs a GPU",
    "test_baseOT": "CrypTen 0.4.1 has no oblivious transfer",
    "test_benchmark": "tests CrypTen's own benchmarks",
    "test_context": "starts processes by torch.distributed",
}
PASS, FAIL, SKIP, LEFT = "pass", "fail", "skip", "left out"
# A party that waits for one that failed is not waited for longer than this, in seconds.
GRACE_S = 3.0


@dataclass
class Outcome:
    """What one test gave."""

    name: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    trace: str = field(default="", repr=False)


class SocketChannel:
    """The channel of a party's process: tensors as their bytes, after one line of JSON."""

    def __init__(self, end: socket.socket) -> None:
        from mpcformer.channel import Counters

        self.counters = Counters()
        self._end = end
        self._file = end.makefile("rb")
        self._held: list[bytes] = []

    def send(self, tensors: Any) -> None:
        """Send a message. A thread sends it, because the other party may be sending too."""
        import threading

        raw = [tensor.detach().numpy().tobytes() for tensor in tensors]
        head = [[str(tensor.dtype), list(tensor.shape)] for tensor in tensors]
        self.counters.messages_sent += 1
        self.counters.bytes_sent += sum(map(len, raw))
        message = json.dumps([self.counters.rounds, head]).encode() + b"\n" + b"".join(raw)
        if len(message) < 1 << 15:
            self.flush()
            self._end.sendall(message)
            return
        self.flush()
        self._sender = threading.Thread(target=self._end.sendall, args=(message,), daemon=True)
        self._sender.start()

    def flush(self) -> None:
        """Wait until all is sent."""
        if sender := getattr(self, "_sender", None):
            sender.join()

    def receive(self, specs: Any) -> list[torch.Tensor]:
        """Receive a message of these types and shapes."""
        from mpcformer.errors import PartyError, ProtocolError

        line = self._file.readline()
        if not line:
            raise PartyError("peer", "is gone")
        rounds, head = json.loads(line)
        expected = [[str(spec.dtype), list(spec.shape)] for spec in specs]
        if head != expected:
            raise ProtocolError(f"expected {expected}, the peer sent {head}")
        tensors = []
        for spec in specs:
            raw = bytearray(self._file.read(spec.n_bytes))
            tensors.append(torch.frombuffer(raw, dtype=spec.dtype).view(spec.shape) if raw else torch.zeros(spec.shape))
        self.counters.messages_received += 1
        self.counters.bytes_received += sum(spec.n_bytes for spec in specs)
        self.counters.rounds = max(self.counters.rounds, rounds + 1)
        return tensors


def load(control: bool) -> Any:
    """Return CrypTen: ours, or unpatched."""
    if control:
        stand_in = types.ModuleType("torch.onnx._internal.registration")
        stand_in.registry = None  # type: ignore[attr-defined]
        sys.modules[stand_in.__name__] = stand_in
        return importlib.import_module("crypten")
    compat = importlib.import_module("mpcformer.engines.crypten.compat")
    importlib.import_module("tests.pair")
    # The tests start and stop CrypTen themselves; here `active` stands for that.
    compat.crypten.init = compat.crypten.uninit = lambda *args, **kwargs: None
    return compat.crypten


def collect(names: list[str]) -> Iterator[tuple[Any, str, str]]:
    """Yield class, method and name of each test of these files, classes or methods."""
    for name in names:
        file, *inner = name.split(":")
        try:
            module = importlib.import_module(f"test.{file}")
        except Exception as error:
            yield None, "", f"{file}: cannot be imported: {type(error).__name__}: {error}"
            continue
        for class_name, found in inspect.getmembers(module, inspect.isclass):
            if not issubclass(found, unittest.TestCase) or found.__module__ != module.__name__:
                continue
            if inner and inner[0] != class_name:
                continue
            for method in sorted(member for member in dir(found) if member.startswith("test")):
                if len(inner) < 2 or inner[1] == method:
                    yield found, method, f"{file}:{class_name}:{method}"


def play(test: Any, method: str, rank: int, state: Any, crypten: Any, control: bool) -> Outcome:
    """Run a test as one of the parties."""
    # Both parties draw the same test data, as CrypTen's fresh processes do by torch's first seed.
    torch.manual_seed(torch.default_generator.initial_seed())
    __import__("random").seed(0)
    __import__("numpy").random.seed(0)
    case = test(method)
    case.rank, case.world_size, case.file = rank, 2, ""
    outcome = Outcome(method, PASS)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            if state is not None:
                compat = importlib.import_module("mpcformer.engines.crypten.compat")
                stack.enter_context(compat.active(state, gradients=True))
            elif control:
                crypten.init()
            case.setUp()
            if getattr(case, "world_size", 2) != 2:
                raise unittest.SkipTest("needs three parties")
            getattr(case, method)()
    except unittest.SkipTest as skip:
        outcome = Outcome(method, SKIP, str(skip))
    except BaseException as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/test/" in f.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: " if frames else ""
        first = (str(error).strip() or "assertion").splitlines()[0][:160]
        outcome = Outcome(method, FAIL, f"{where}{type(error).__name__}: {first}", trace=traceback.format_exc())
    return outcome


def party(test: Any, method: str, rank: int, end: socket.socket, keys: Any, crypten: Any, out: int) -> None:
    """Be one party's process, and write the outcome to the file descriptor `out`."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    state, channel = None, None
    if keys is not None:
        from mpcformer.engines.crypten.compat import PartyState
        from tests.pair import InlineDealer

        channel = SocketChannel(end)
        store = InlineDealer(rank, keys[0], keys[1])
        state = PartyState(rank=rank, channel=channel, store=store, zero_key=keys[2])  # type: ignore[arg-type]
    outcome = play(test, method, rank, state, crypten, control=keys is None)
    if channel is not None:
        channel.flush()
    os.write(out, json.dumps(vars(outcome)).encode()[:60_000])
    os._exit(0)


def run_test(test: Any, method: str, name: str, crypten: Any, control: bool, timeout_s: float) -> Outcome:
    """Run a test in two processes."""
    keys = None
    if not control:
        from mpcformer.ring.random import fresh_key

        keys = ([fresh_key(), fresh_key()], fresh_key(), fresh_key())
    ends = socket.socketpair()
    start, pids, pipes = time.monotonic(), [], {}
    rendezvous = tempfile.mktemp(prefix="conformance")
    for rank in (0, 1):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            ends[1 - rank].close()
            os.environ.update(WORLD_SIZE="2", RANK=str(rank), RENDEZVOUS=f"file://{rendezvous}", BACKEND="gloo")
            try:
                party(test, method, rank, ends[rank], keys, crypten, writer)
            finally:
                os._exit(1)
        os.close(writer)
        pids.append(pid)
        pipes[reader] = b""
    for end in ends:
        end.close()
    outcomes, deadline = [], start + timeout_s
    while pipes and time.monotonic() < deadline:
        ready, _, _ = select.select(list(pipes), [], [], max(0.0, deadline - time.monotonic()))
        for reader in ready:
            if part := os.read(reader, 1 << 16):
                pipes[reader] += part
                continue
            raw = pipes.pop(reader)
            os.close(reader)
            found = Outcome(**json.loads(raw)) if raw else Outcome(method, FAIL, "the party's process ended")
            outcomes.append(found)
            if found.status == FAIL:
                deadline = min(deadline, time.monotonic() + GRACE_S)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    for reader in pipes:
        os.close(reader)
    Path(rendezvous).unlink(missing_ok=True)
    # What failed by itself tells more than what failed because the other party was gone.
    failed = [outcome for outcome in outcomes if outcome.status == FAIL]
    own = [outcome for outcome in failed if "PartyError" not in outcome.reason and "BrokenPipe" not in outcome.reason]
    late = Outcome(method, FAIL, f"not done within {timeout_s:.0f} s")
    result = (own or failed or ([] if len(outcomes) == 2 else [late]) or outcomes)[0]
    result.name, result.seconds = name, time.monotonic() - start
    return result


def left_out(test: Any, name: str) -> str:
    """Return why a test cannot be one of two parties, or nothing."""
    file, class_name, _ = name.split(":")
    for kind in (class_name, file, *(base.__name__ for base in test.__mro__)):
        if kind in OUT:
            return OUT[kind]
    return ""


def report(outcomes: list[Outcome], known: dict[str, Any]) -> list[str]:
    """Print the table, and return the names of those that passed and no longer do."""
    reasons, control = known.get("reasons", {}), known.get("control", {})
    for outcome in outcomes:
        if outcome.status == FAIL:
            why = reasons.get(outcome.name, "")
            unpatched = control.get(outcome.name, "")
            print(
                f"{outcome.name}\n    {outcome.reason}"
                + (f"\n    {why}" if why else "")
                + (f"\n    unpatched CrypTen: {unpatched}" if unpatched else "")
            )
    counts = {status: sum(outcome.status == status for outcome in outcomes) for status in (PASS, FAIL, SKIP, LEFT)}
    print(", ".join(f"{n} {status}" for status, n in counts.items()))
    return sorted(o.name for o in outcomes if o.status != PASS and o.name in set(known.get("passed", [])))


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a checkout of CrypTen")
    parser.add_argument("--only", default="", help="files, classes or tests, such as mpc,nn:TestTFP:test_linear")
    parser.add_argument("--control", action="store_true", help="unpatched CrypTen instead")
    parser.add_argument("--write", action="store_true", help="renew the list from this run")
    parser.add_argument("--timeout", type=float, default=1200.0, help="seconds for a test")
    parser.add_argument("--out", type=Path, help="append each outcome to this file, as a line of JSON")
    args = parser.parse_args()
    folder = args.checkout / "test"
    if not (folder / "multiprocess_test_case.py").is_file():
        print(f"error: {folder} has no tests of CrypTen\nfix: give a checkout of facebookresearch/CrypTen")
        return 2
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT))
    crypten = load(args.control)
    # The checkout itself stays off the path, because it has a version of CrypTen.
    package = types.ModuleType("test")
    package.__path__ = [str(folder)]
    sys.modules["test"] = package
    names = [name if name.startswith("test_") else f"test_{name}" for name in args.only.split(",") if name]
    names = names or sorted(path.stem for path in folder.glob("test_*.py"))
    known = json.loads(LIST.read_text()) if LIST.is_file() else {}
    outcomes = []
    for test, method, name in collect(names):
        if test is None:
            file = name.partition(":")[0]
            outcome = Outcome(name, LEFT if file in OUT else FAIL, OUT.get(file, name))
        elif reason := left_out(test, name):
            outcome = Outcome(name, LEFT, reason)
        else:
            outcome = run_test(test, method, name, crypten, args.control, args.timeout)
        outcomes.append(outcome)
        print(f"{outcome.status:8} {outcome.name} {outcome.seconds:.1f} s {outcome.reason}", flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.write(json.dumps(vars(outcome)) + "\n")
    worse = report(outcomes, known)
    if args.write:
        ran = {outcome.name for outcome in outcomes}
        passed = {o.name for o in outcomes if o.status == PASS} | (set(known.get("passed", [])) - ran)
        if args.control:
            failed = {o.name: o.reason for o in outcomes if o.status == FAIL}
            known["control"] = {n: r for n, r in known.get("control", {}).items() if n not in ran} | failed
        else:
            known["passed"] = sorted(passed)
        LIST.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    elif worse and not args.control:
        print("these passed before and do not now: " + ", ".join(worse))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
