"""Run several processes of one training. They are forked after all imports and use gloo, without a launcher."""

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from distill.training import processes
from tests.forked import context, leave, redirect

TIMEOUT_S = 120


def together(folder: Path, job: Callable[..., Any], *arguments: Any, size: int = 2) -> list[Any]:
    """Call `job(*arguments)` in each of `size` processes, and return the results in the order of their ranks.

    Args:
        folder: a new folder for the logs and the results.
        job: a function of a module; it returns a value that JSON can represent.
        arguments: its arguments.
        size: the number of processes.

    Raises:
        AssertionError: a process failed; the message contains the logs.
    """
    folder.mkdir(parents=True)
    started = [context.Process(target=_run, args=(rank, size, folder, job, arguments)) for rank in range(size)]
    for process in started:
        process.start()
    for process in started:
        process.join(TIMEOUT_S)
        process.kill()
    logs = [(folder / f"{rank}.log").read_text() for rank in range(size)]
    assert not any(process.exitcode for process in started), "\n".join(logs)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def _run(rank: int, size: int, folder: Path, job: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    redirect(folder / f"{rank}.log")
    status = 1
    try:
        torch.set_num_threads(1)
        os.environ["WORLD_SIZE"] = str(size)
        store = distributed.FileStore(str(folder / "store"), size)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)
        mine = processes.Processes(rank, size, torch.device("cpu"), first_here=rank == 0)
        processes._join = lambda: mine  # type: ignore[assignment]
        (folder / f"{rank}.json").write_text(json.dumps(job(*arguments)))
        processes.leave()
        status = 0
    except BaseException:
        traceback.print_exc()
    leave(status)
