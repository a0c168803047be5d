"""Run calls of a function on the machines of a Ray cluster, a limited number at the same time.

Ray is an optional dependency, so it is imported only when it is needed.
"""

import importlib
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mpcformer.console import console
from mpcformer.errors import DependencyError, MPCFormerError, UserInputError

Value = TypeVar("Value")
# Where work may run: on this machine, or on a cluster.
POOLS = ("local", "ray")
ADDRESS = "RAY_ADDRESS"
CONNECT_S = 5.0


@dataclass(frozen=True)
class Call:
    """The arguments of one call, and the label that is shown when the call is done."""

    label: str
    arguments: tuple[Any, ...]


def load_ray() -> Any:
    """Return the ray package.

    Raises:
        DependencyError: the package is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise DependencyError("--pool ray: the ray package is missing", "pip install 'ray>=2.60'") from None


def check(address: str | None) -> None:
    """Check that Ray is installed and that a cluster listens at the address.

    Ray itself would try to connect for minutes.

    Args:
        address: the address of the cluster; None means the address in RAY_ADDRESS.

    Raises:
        DependencyError: Ray is not installed.
        UserInputError: nobody listens at the address.
    """
    load_ray()
    where = _address(address)
    host, _, port = where.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # no address, `auto` or `local`: there is no port to try
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise _nobody(where, error) from None


def _address(address: str | None) -> str:
    return address or os.environ.get(ADDRESS, "")


def _nobody(where: str, error: Exception) -> UserInputError:
    return UserInputError(
        f"--ray-address: no Ray cluster at {where!r}: {error}",
        "start one: ray start --head; or correct the address, RAY_AUTH_MODE and RAY_AUTH_TOKEN",
    )


def run(
    function: Callable[..., Value],
    calls: Sequence[Call],
    *,
    jobs: int,
    address: str | None,
    gpu: bool,
    verb: str = "trained",
    done: Callable[[Call, Value], None] = lambda call, value: None,
) -> None:
    """Call `function(*arguments, threads)` for each of `calls`, on whichever machine has room.

    Args:
        function: a function that every machine can import; its argument `threads` is the number of processor cores
            that it may use.
        calls: the arguments of the calls.
        jobs: the number of calls at the same time, on all machines together.
        address: the address of the cluster; None means the address in RAY_ADDRESS or, without that, a cluster on this
            machine for this run alone.
        gpu: whether each call needs a GPU.
        verb: what a call has done, for the line that is printed then.
        done: called with each call that is done and what it returned.

    Raises:
        UserInputError: no cluster answers, or none of its machines is suitable.
        MPCFormerError: a call failed; calls that are under way are finished first.
    """
    ray = load_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # do not report usage to Ray's makers
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        # Without an address Ray would look for any cluster started here before, and wait minutes for a dead one.
        ray.init(address=_address(address) or "local", log_to_driver=False, logging_level="warning")
    except (ConnectionError, ValueError) as error:
        raise _nobody(_address(address), error) from None
    try:
        signal.signal(signal.SIGTERM, terminated)  # Ray's own handler aborts with a stack
        threads = _threads([node["Resources"] for node in ray.nodes() if node["Alive"]], jobs, gpu)
        remote = ray.remote(num_cpus=threads, num_gpus=int(gpu))(function)
        for n_done, (call, value) in enumerate(_all(ray, remote, calls, jobs, threads), start=1):
            done(call, value)
            console.print(f"{n_done}/{len(calls)} {verb}: {call.label}", markup=False)
    finally:
        ray.shutdown()


def _threads(machines: Sequence[dict[str, float]], jobs: int, gpu: bool) -> int:
    """Return the cores of one call: an equal part of the cluster's, at most those of the smallest machine."""
    cores = [int(machine.get("CPU", 0)) for machine in machines if machine.get("GPU", 0) >= 1 or not gpu]
    cores = [count for count in cores if count]
    if not cores:
        raise UserInputError(
            f"--pool ray: none of {len(machines)} machines has {'a GPU, as this one does, and ' if gpu else ''}a core",
            f"start machines like this one{', or hide its GPU: CUDA_VISIBLE_DEVICES=' if gpu else ''}",
        )
    return max(1, min(sum(cores) // jobs, *cores))


def _all(ray: Any, remote: Any, calls: Sequence[Call], jobs: int, threads: int) -> Iterator[tuple[Call, Any]]:
    """Yield each call with what it returned; after a failure, those that were under way, and then raise."""
    waiting, pending = list(calls), dict[Any, Call]()
    failure: MPCFormerError | None = None
    while pending or (waiting and failure is None):
        while waiting and failure is None and len(pending) < jobs:
            call = waiting.pop(0)
            pending[remote.remote(*call.arguments, threads)] = call
        (ready,), _ = ray.wait(list(pending), num_returns=1)
        call = pending.pop(ready)
        try:
            value = ray.get(ready)
        except ray.exceptions.RayError as error:
            failure = failure or _failure(error, call)
        else:
            yield call, value
    if failure:
        raise failure


def _failure(error: Any, call: Call) -> MPCFormerError:
    """Return the error of a call: our own error as it was raised, or the last line of Ray's."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, MPCFormerError):
        return cause
    last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return MPCFormerError(f"--pool ray: {call.label}: {last}", "run the same command again; it continues")
