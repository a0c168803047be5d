"""Training on several processes that a launcher starts, each with its own device.

Every process holds the whole model and the whole training set and makes the same batches, and it computes the loss of
its share of the rows. One all-reduce per step sums the gradients of all shares, outside the model. The sum is the same
number on every process, so clipping and AdamW keep the weights equal. Only the main process, of rank 0, scores, logs
and writes. If there is a single process, nothing of this runs.

DistributedDataParallel is not used, for two reasons. It averages gradients, which is wrong if shares are unequal. And
it requires that every forward pass goes through its wrapper, which hides the hidden states and scores that the losses
here read.
"""

import contextlib
import datetime
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed

from mpcformer.errors import DependencyError, MPCFormerError, UserInputError

T = TypeVar("T")
Tensors = dict[str, torch.Tensor]
# How long the other processes wait while the main process scores, calibrates or saves.
WAIT_LIMIT = datetime.timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """This process's place among the processes of the run.

    Args:
        rank: the number of this process; 0 is the main process.
        size: the number of processes.
        device: the device of this process.
        first_here: whether this process is the first one on its machine.
    """

    rank: int
    size: int
    device: torch.device
    first_here: bool = True

    @property
    def is_main(self) -> bool:
        """Whether this process writes, scores and shows progress."""
        return self.rank == 0

    def share(self, indices: Sequence[int]) -> list[int]:
        """Return this process's part of a batch, which is empty if there are more processes than rows.

        A process takes every `size`-th row. Batches are sorted by length, so all get long and short rows evenly.
        """
        return list(indices[self.rank :: self.size])

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter], loss: torch.Tensor) -> torch.Tensor:
        """Replace each gradient by its sum over the processes, and return the sum of the scalar losses.

        The same parameters must have a gradient on every process. The cost is one all-reduce, and a buffer as large as
        all gradients.
        """
        if self.size == 1:
            return loss.detach()
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([loss.detach().reshape(1), *(gradient.reshape(-1) for gradient in gradients)])
        distributed.all_reduce(flat)
        total, *sums = torch.split(flat, [1, *(gradient.numel() for gradient in gradients)])
        for gradient, summed in zip(gradients, sums, strict=True):
            gradient.copy_(summed.view_as(gradient))
        return total[0]

    def on_main(self, work: Callable[[], T]) -> T:
        """Call `work` on the main process only, and return its result on all processes.

        Args:
            work: returns a value that JSON can represent, and does not wait for the other processes.

        Raises:
            MPCFormerError: on the other processes, if `work` failed. On the main process, the exception of `work`
                continues.
        """
        if self.size == 1:
            return work()
        if self.is_main:
            try:
                value = work()
                answer = json.dumps({"value": value})
            except Exception as error:
                self._broadcast_text(json.dumps(_failure(error)))
                raise
            self._broadcast_text(answer)
            return value
        said = json.loads(self._broadcast_text())
        if "what" in said:
            failure = MPCFormerError(said["what"], said["remedy"])
            failure.exit_code = said["status"]
            raise failure
        return said["value"]  # type: ignore[no-any-return]

    def tensors_of_main(self, read: Callable[[], Tensors]) -> Tensors:
        """Return on all processes the tensors that the main process reads, so that only its machine needs the file."""
        if self.size == 1:
            return read()
        own = read() if self.is_main else {}
        kinds = {key: (str(value.dtype).removeprefix("torch."), list(value.shape)) for key, value in own.items()}
        tensors = {}
        for key, (kind, shape) in json.loads(self._broadcast_text(json.dumps(kinds))).items():
            empty = torch.empty(shape, dtype=getattr(torch, kind), device=self.device)
            value = own[key].to(self.device).contiguous() if self.is_main else empty
            distributed.broadcast(value, 0)
            tensors[key] = value.cpu()
        return tensors

    def check_same(self, what: str, fact: Callable[[], str]) -> None:
        """Check that all processes were given the same thing.

        Args:
            what: the name of the thing, for the error.
            fact: a function that returns the thing as a text, or its digest.

        Raises:
            UserInputError: on all processes, if one of them was given something else than the main process.
        """
        if self.size == 1:
            return
        own = fact()
        if self._sum(float(self._broadcast_text(own) != own)):
            raise UserInputError(
                f"the {self.size} processes were not given the same {what}",
                "use the same files, options and versions on every machine",
            )

    @contextlib.contextmanager
    def first_here_first(self) -> Iterator[None]:
        """Let the first process of each machine go through before the machine's other processes.

        What the first process downloads, the others find in the cache.
        """
        if self.size > 1 and not self.first_here:
            self._sum(0.0)
        try:
            yield
        finally:
            if self.size > 1 and self.first_here:
                self._sum(0.0)

    def _broadcast_text(self, text: str = "") -> str:
        """Return the main process's text on all processes. Objects are not sent, so nothing has to be unpickled."""
        data = torch.tensor(list(text.encode()) if self.is_main else [], dtype=torch.uint8, device=self.device)
        size = torch.tensor(data.numel(), device=self.device)
        distributed.broadcast(size, 0)
        if not self.is_main:
            data = torch.empty(int(size), dtype=torch.uint8, device=self.device)
        distributed.broadcast(data, 0)
        return bytes(data.tolist()).decode()

    def _sum(self, number: float) -> float:
        total = torch.tensor(number, device=self.device)
        distributed.all_reduce(total)
        return float(total)


def _failure(error: Exception) -> dict[str, Any]:
    """Describe an error of the main process to the others; the text of an unknown error is not passed on."""
    known = error if isinstance(error, MPCFormerError) else MPCFormerError("the main process failed")
    return {"what": known.what, "remedy": known.remedy, "status": known.exit_code}


def current() -> Processes:
    """Return the processes of this run: those that the launcher started, or this process alone.

    Raises:
        DependencyError: there are several processes and accelerate is missing.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        return _join()
    return Processes(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def refuse_launcher(command: str) -> None:
    """Check that a command that starts processes of its own was not started by a launcher.

    Args:
        command: the command's name, for the error.

    Raises:
        UserInputError: a launcher started several processes of it.
    """
    size = os.environ.get("WORLD_SIZE") or "1"
    if int(size) > 1:
        raise UserInputError(
            f"mpcformer {command}: a launcher started {size} of it (WORLD_SIZE), and each would do all of the work",
            f"start mpcformer {command} by itself; a launcher is for mpcformer teacher and mpcformer distill",
        )


def _join() -> Processes:
    try:
        from accelerate import PartialState
    except ImportError:
        raise DependencyError(
            f"a launcher started {os.environ['WORLD_SIZE']} processes (WORLD_SIZE), and accelerate is missing",
            "pip install --no-deps 'accelerate>=1.15', or start one process without a launcher",
        ) from None
    # An Accelerator would add its own precision and gradient accumulation to the recipe; PartialState does not.
    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    state = PartialState(cpu=forced or not torch.accelerator.is_available(), timeout=WAIT_LIMIT)
    return Processes(state.process_index, state.num_processes, state.device, state.is_local_main_process)


def leave() -> None:
    """Leave the group of processes at the end of a command."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
