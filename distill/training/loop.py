"""The training loop: AdamW on batches of similar lengths, a learning-rate schedule, checkpoints, and the best epoch.

With several processes, each computes the loss of its share of every batch; see distill/training/processes.py.
"""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill.training.data import Batch, Data
from distill.training.device import autocast
from distill.training.processes import Tensors
from distill.training.workspace import Workspace
from mpcformer.console import progress
from mpcformer.errors import DependencyError, MPCFormerError
from mpcformer.tasks import shuffled_length_batches

GRADIENT_CLIP = 1.0
# The factor of a scalar parameter's learning rate. AdamW changes a number by about its learning rate per step, which is
# too little for a logarithm that starts at 3.
SCALAR_RATE = 30.0


@dataclass(frozen=True)
class Stage:
    """One stage of training: a number of epochs with one loss.

    Args:
        name: the name in the progress bar and the log; the seeds of the stage are derived from it too.
        epochs: how often the stage goes through all examples.
        learning_rate: the peak learning rate.
        loss: a function from a batch to its scalar loss, a mean over its rows; for any other mean see `Batch`.
        score: a function that is called after each epoch. The weights of the epoch with the highest score are kept,
            earlier stages included; among equal scores the last epoch wins, because it trained longer and at a lower
            rate. None keeps the last weights.
        linear_decay: whether the learning rate falls linearly to zero after the warm-up; otherwise it stays constant.
        warmup: the fraction of all steps during which the learning rate rises to its peak.
        weight_decay: AdamW's, for matrices only.
        factor: a function from a parameter's name to a factor of its learning rate.
    """

    name: str
    epochs: int
    learning_rate: float
    loss: Callable[[Batch], torch.Tensor]
    score: Callable[[], float] | None
    linear_decay: bool = True
    warmup: float = 0.1
    weight_decay: float = 0.01
    factor: Callable[[str], float] = lambda _: 1.0


@dataclass
class Options:
    """Options that are the same for all stages.

    Args:
        seed: the seed of batches and dropout.
        precision: see `autocast`.
        checkpoint_minutes: the time between two checkpoints within an epoch, in minutes.
        tensorboard: the folder for TensorBoard's events; None writes none.
    """

    seed: int
    precision: str
    checkpoint_minutes: float
    tensorboard: Path | None


def train(
    model: torch.nn.Module, stages: list[Stage], data: Data, *, work: Workspace, options: Options
) -> list[dict[str, Any]]:
    """Run the stages in order, beginning at the last checkpoint if the workspace contains one.

    Returns:
        The log, one row per epoch.

    Raises:
        UserInputError: the processes do not have the same options or training data.
        MPCFormerError: the loss is no longer finite.
    """
    how = [(stage.name, stage.epochs, stage.learning_rate) for stage in stages]
    work.processes.check_same("options", lambda: f"{how} {data.batch_size} {options.seed} {options.precision}")
    work.processes.check_same("training data", data.digest)
    if work.processes.size > 1:  # initial weights that were computed on several machines differ by rounding
        model.load_state_dict(work.processes.tensors_of_main(model.state_dict))
    saved = work.load("last")
    facts: dict[str, Any] = {"stage": 0, "step": 0, "log": []}
    optimiser_state: Tensors = {}
    if saved:
        tensors, facts = saved
        model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        optimiser_state = {k: v for k, v in tensors.items() if k.startswith("optimiser.")}
    log: list[dict[str, Any]] = facts["log"]
    for index, stage in enumerate(stages):
        if index < facts["stage"]:
            continue
        first_step = facts["step"] if index == facts["stage"] else 0
        runner = _Runner(model, stage, index, data, work, options, log)
        runner.run(first_step, optimiser_state if first_step else {})
        runner.checkpoint(index + 1, 0, with_optimiser=False)
    return log


class _Runner:
    """The state of one stage while it runs."""

    def __init__(
        self,
        model: torch.nn.Module,
        stage: Stage,
        index: int,
        data: Data,
        work: Workspace,
        options: Options,
        log: list[dict[str, Any]],
    ) -> None:
        self.model, self.stage, self.index, self.data = model, stage, index, data
        self.work, self.options, self.log = work, options, log
        self.processes = work.processes
        self.device = next(model.parameters()).device
        groups = self._parameter_groups()
        self.optimiser = torch.optim.AdamW(groups, lr=stage.learning_rate, fused=True)
        self.parameters: list[torch.nn.Parameter] = [p for group in groups for p in group["params"]]
        self.steps_per_epoch = math.ceil(len(data.encoded) / data.batch_size)
        self.n_steps = self.steps_per_epoch * stage.epochs
        self.writer = _tensorboard(options.tensorboard if self.processes.is_main else None)
        self.last_save_s = time.monotonic()
        self.smooth_loss = 0.0

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's parameter groups: matrices with weight decay, then vectors and scalars without."""
        return [
            {"params": parameters, "weight_decay": decay, "factor": factor * own}
            for n_axes, decay, factor in ((2, self.stage.weight_decay, 1.0), (1, 0.0, 1.0), (0, 0.0, SCALAR_RATE))
            for own, parameters in self._by_factor(n_axes).items()
        ]

    def _by_factor(self, n_axes: int) -> dict[float, list[torch.nn.Parameter]]:
        """Return the parameters with `n_axes` axes (2 stands for 2 or more), grouped by the stage's factor for them."""
        found: dict[float, list[torch.nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if min(parameter.dim(), 2) == n_axes:
                found.setdefault(self.stage.factor(name), []).append(parameter)
        return found

    def run(self, step: int, optimiser_state: Tensors) -> None:
        """Train from `step` to the end of the stage; afterwards load the best epoch's weights if epochs are scored."""
        self._load_optimiser(optimiser_state)
        with progress(shown=self.processes.is_main) as bar:
            task = bar.add_task(self.stage.name, total=self.n_steps, completed=step, info="")

            def show(step: int) -> None:
                bar.update(task, completed=step, info=f"loss {self.smooth_loss:.4f}")

            while step < self.n_steps:
                step = self._run_epoch(step, show)
        if self.stage.score is not None:
            best = self.work.load("best")
            if best:
                self.model.load_state_dict(best[0])

    def _run_epoch(self, step: int, show: Callable[[int], None]) -> int:
        """Train from `step` to the end of its epoch, and return the first step of the next epoch."""
        epoch, position = divmod(step, self.steps_per_epoch)
        batches = self._batches(epoch)[position:]
        total = 0.0
        for indices in batches:
            loss = self._step(step, indices)
            total, step = total + loss, step + 1
            self.smooth_loss = loss if self.smooth_loss == 0 else 0.95 * self.smooth_loss + 0.05 * loss
            show(step)
            if self.writer:
                self.writer.add_scalar(f"{self.stage.name}/loss", loss, step)
            due = time.monotonic() - self.last_save_s > 60 * self.options.checkpoint_minutes
            if due and step < (epoch + 1) * self.steps_per_epoch:
                self.checkpoint(self.index, step)
                self.last_save_s = time.monotonic()
        self._end_epoch(epoch, step, total / max(1, len(batches)))
        return step

    def _batches(self, epoch: int) -> list[list[int]]:
        """Return the indices of each batch of an epoch; they follow from the seed alone."""
        generator = torch.Generator().manual_seed(_mix(self.options.seed, self.stage.name, epoch))
        order = torch.randperm(len(self.data.encoded), generator=generator).tolist()
        lengths = [len(row.input_ids) for row in self.data.encoded]
        return shuffled_length_batches(lengths, self.data.batch_size, order)

    def _step(self, step: int, indices: list[int]) -> float:
        """Make one step of the optimiser on a batch, and return the loss of the whole batch."""
        other = f" of process {self.processes.rank}" if self.processes.rank else ""
        torch.manual_seed(_mix(self.options.seed, f"{self.stage.name} dropout{other}", step))
        rate = self.stage.learning_rate * self._schedule(step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        batch = self.data.share(indices, self.processes, self.device)
        batch.seed = _mix(self.options.seed, f"{self.stage.name} dropout", step)
        batch.progress = step / self.n_steps
        with autocast(self.options.precision, self.device):
            loss = self.stage.loss(batch) * batch.weight
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        value = float(self.processes.sum_gradients(self.parameters, loss))
        if not math.isfinite(value):
            raise MPCFormerError(
                f"{self.stage.name}: the loss is {value} at step {step}", "lower the learning rate of this stage"
            )
        torch.nn.utils.clip_grad_norm_(self.parameters, GRADIENT_CLIP)
        self.optimiser.step()
        return value

    def _schedule(self, step: int) -> float:
        """Return the learning rate of a step as a fraction of the peak."""
        warm = max(1, round(self.n_steps * self.stage.warmup))
        if step < warm and self.stage.warmup:
            return (step + 1) / warm
        return (self.n_steps - step) / max(1, self.n_steps - warm) if self.stage.linear_decay else 1.0

    def _end_epoch(self, epoch: int, step: int, loss: float) -> None:
        """Score the weights, keep them if they are the best so far, and write the log and a checkpoint."""
        row: dict[str, Any] = {"stage": self.stage.name, "epoch": epoch + 1, "loss": round(loss, 6)}
        if self.stage.score is not None:
            row["selection_score"] = score = round(self.processes.on_main(self.stage.score), 6)
            best = max((r["selection_score"] for r in self.log if "selection_score" in r), default=-math.inf)
            if score >= best:
                self.work.save("best", dict(self.model.state_dict()), {"stage": self.index, "step": step})
            if self.writer:
                self.writer.add_scalar(f"{self.stage.name}/selection", score, step)
        self.log.append(row)
        self.checkpoint(self.index, step)

    def checkpoint(self, stage: int, step: int, with_optimiser: bool = True) -> None:
        """Save the point from which a resumed run continues: the stage's index, the step within it, and all state."""
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        if with_optimiser:
            for i, parameter in enumerate(self.parameters):
                for key, value in self.optimiser.state[parameter].items():
                    tensors[f"optimiser.{i}.{key}"] = value
        self.work.save("last", tensors, {"stage": stage, "step": step, "log": self.log})

    def _load_optimiser(self, state: Tensors) -> None:
        for name, value in state.items():
            _, index, key = name.split(".")
            parameter = self.parameters[int(index)]
            self.optimiser.state[parameter][key] = value.to(parameter.device)


def _tensorboard(folder: Path | None) -> Any:
    if folder is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise DependencyError("--tensorboard: the tensorboard package is missing", "pip install tensorboard") from None
    return SummaryWriter(str(folder))


def _mix(seed: int, purpose: str, number: int) -> int:
    """Derive a 63-bit seed for one purpose; different purposes give unrelated sequences."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
