"""Training on several processes, each with a device of its own, as a launcher starts them. Alone, nothing of this runs.

Every process holds the whole model and the whole training set and makes the same batches; of each batch it takes a
share of the rows. The shares' gradients are summed by one all-reduce a step, outside the model. That is exact and asks
nothing of a recipe, where DistributedDataParallel averages, wrong for unequal shares, and wants every forward pass to
go through its wrapper, past which the losses here read hidden states and scores. The sum is the same number on every
process, so clipping and AdamW keep their weights equal. Only the main process (rank 0) scores, logs and writes.
"""

import contextlib
import datetime
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import distributed

from mpcformer.errors import DependencyError, MPCFormerError, UserInputError

T = TypeVar("T")
Tensors = dict[str, torch.Tensor]
# The others wait this long while the main process scores, calibrates or saves.
PATIENCE = datetime.timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Args:
        rank: its number; 0 is the main process.
        size: how many there are.
        device: its own.
        first_here: it is the first on its machine.
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
        """This process's part of a batch, empty if there are more processes than rows.

        Batches are sorted by length; every size-th row spreads long and short ones evenly.
        """
        return list(indices[self.rank :: self.size])

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter], loss: torch.Tensor) -> torch.Tensor:
        """Replace each gradient by its sum over the processes; returns the sum of the scalar losses.

        The same parameters must have a gradient on every process. Cost: one all-reduce and a buffer of the gradients.
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
        """What `work` gives on the main process, on all of them: a value that JSON holds.

        `work` must not itself wait for the other processes.

        Raises:
            MPCFormerError: `work` failed on the main process, which raises what it raised.
        """
        if self.size == 1:
            return work()
        if self.is_main:
            try:
                value = work()
                answer = json.dumps({"value": value})
            except Exception as error:
                known = error if isinstance(error, MPCFormerError) else MPCFormerError("the main process failed")
                self._tell(json.dumps({"what": known.what, "remedy": known.remedy, "status": known.exit_code}))
                raise
            self._tell(answer)
            return value
        said = json.loads(self._tell())
        if "what" in said:
            failure = MPCFormerError(said["what"], said["remedy"])
            failure.exit_code = said["status"]
            raise failure
        return said["value"]  # type: ignore[no-any-return]

    def tensors_of_main(self, read: Callable[[], Tensors]) -> Tensors:
        """The tensors that the main process reads, on all: no file has to be seen by more than one machine."""
        if self.size == 1:
            return read()
        own = read() if self.is_main else {}
        kinds = {key: (str(value.dtype).removeprefix("torch."), list(value.shape)) for key, value in own.items()}
        tensors = {}
        for key, (kind, shape) in json.loads(self._tell(json.dumps(kinds))).items():
            empty = torch.empty(shape, dtype=getattr(torch, kind), device=self.device)
            value = own[key].to(self.device).contiguous() if self.is_main else empty
            distributed.broadcast(value, 0)
            tensors[key] = value.cpu()
        return tensors

    def check_same(self, what: str, fact: Callable[[], str]) -> None:
        """Refuse processes that were given different things.

        Args:
            what: named in the error.
            fact: a text or digest of it.

        Raises:
            UserInputError: one of them has another than the main process; raised on all.
        """
        if self.size == 1:
            return
        own = fact()
        if self._sum(float(self._tell(own) != own)):
            raise UserInputError(
                f"the {self.size} processes were not given the same {what}",
                "on every machine: the same files, options and versions",
            )

    @contextlib.contextmanager
    def first_here_first(self) -> Iterator[None]:
        """The first process of each machine goes through before its others, so that a download happens once."""
        if self.size > 1 and not self.first_here:
            self._sum(0.0)
        try:
            yield
        finally:
            if self.size > 1 and self.first_here:
                self._sum(0.0)

    def _tell(self, text: str = "") -> str:
        """The main process's text on all of them. Text, not objects: nothing another machine sent is unpickled."""
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


def current() -> Processes:
    """The processes that the launcher started this one among; alone without a launcher.

    Raises:
        DependencyError: there are several and accelerate is missing.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        return _join()
    return Processes(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def refuse_launcher(command: str) -> None:
    """For commands that start processes of their own.

    Raises:
        UserInputError: a launcher started several of this one.
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
    # Its state only, not an Accelerator: that would bring a precision and an accumulation of its own into the recipe.
    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    state = PartialState(cpu=forced or not torch.accelerator.is_available(), timeout=PATIENCE)
    return Processes(state.process_index, state.num_processes, state.device, state.is_local_main_process)


def leave() -> None:
    """Part from the other processes at the end of a command."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
