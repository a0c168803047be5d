"""The one training loop: length-bucketed batches, AdamW, a learning-rate schedule, checkpoints, selection.

On several processes each computes its loss over its share of every batch; see distill/training/processes.py.
"""

import bisect
import contextlib
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill.training.processes import Processes, Tensors, current
from distill.training.workspace import Workspace
from mpcformer.console import progress
from mpcformer.errors import DependencyError, MPCFormerError, UserInputError
from mpcformer.tasks import Encoded, pad_batch, shuffled_length_batches

GRADIENT_CLIP = 1.0
# AdamW moves every number by about its rate a step: too little for a logarithm that starts at 3.
SCALAR_RATE = 30.0


class Batch(dict[str, torch.Tensor]):
    """Padded rows with labels: a batch, or one process's share of it, whose loss is to be multiplied with `weight`.

    Attributes:
        weight: this share of the batch's rows. Shares of a mean over rows, times their weights, add up to the batch's.
        tokens, pairs: for a mean over real tokens, or over pairs of them in a row: what to multiply it with besides.
        whole, rows: the whole batch's examples, and where among them this share's rows are.
        seed: of what is drawn for the whole batch, the same on every process.
        progress: of the stage, 0..1.
    """

    whole: Sequence[int] = ()
    rows: Sequence[int] = ()
    seed = 0
    progress = 0.0
    weight = 1.0
    tokens = 1.0
    pairs = 1.0


@dataclass(frozen=True)
class Stage:
    """One pass of training.

    Args:
        name: shown in the progress bar and the log.
        epochs: passes over the examples.
        learning_rate: its peak.
        loss: batch -> scalar loss, a mean over its rows. A mean over anything else: see `Batch`.
        score: called after each epoch, higher is better; the best epoch's weights are kept, of equals the last's,
            which trained longer and at a lower rate. None: the last ones are.
        linear_decay: to zero after the warm-up; otherwise constant.
        factor: of a parameter's name, what its learning rate is multiplied with.
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


@dataclass(frozen=True)
class Data:
    """Training examples: ids, labels (N,), and the id that pads."""

    encoded: list[Encoded]
    labels: torch.Tensor
    pad_id: int
    batch_size: int

    def batch(self, indices: list[int], device: torch.device) -> Batch:
        """One padded batch with labels, on `device`."""
        tensors = {**pad_batch([self.encoded[i] for i in indices], self.pad_id), "labels": self.labels[indices]}
        return Batch({key: value.to(device) for key, value in tensors.items()})

    def share(self, indices: list[int], processes: Processes, device: torch.device) -> Batch:
        """This process's part of a batch. Without a row of its own it takes one that counts for nothing."""
        own = processes.share(indices)
        batch = self.batch(own or indices[:1], device)
        batch.whole, batch.rows = indices, processes.share(range(len(indices))) or [0]
        if processes.size > 1:
            batch.weight = len(own) / len(indices)
            if own:
                batch.tokens = self._share_of(own, indices, 1) / batch.weight
                batch.pairs = self._share_of(own, indices, 2) / batch.weight
        return batch

    def _share_of(self, own: list[int], indices: list[int], power: int) -> float:
        mine, whole = (sum(float(len(self.encoded[i].input_ids)) ** power for i in rows) for rows in (own, indices))
        return mine / whole

    def digest(self) -> str:
        """Of all examples, in order."""
        rows = hashlib.sha256(repr(self.labels.tolist()).encode())
        for row in self.encoded:
            rows.update(f"{row.input_ids}{row.token_type_ids}".encode())
        return rows.hexdigest()

    def first(self, n_tokens: int, device: torch.device) -> Iterator[Batch]:
        """The first examples that have `n_tokens` tokens together, in batches of like lengths, without labels."""
        lengths = [len(row.input_ids) for row in self.encoded]
        count = bisect.bisect_left(list(itertools.accumulate(lengths)), n_tokens) + 1
        order = sorted(range(min(count, len(lengths))), key=lengths.__getitem__)
        for start in range(0, len(order), self.batch_size):
            batch = self.batch(order[start : start + self.batch_size], device)
            del batch["labels"]
            yield batch


@dataclass
class Options:
    """How to train, apart from what."""

    seed: int
    precision: str
    checkpoint_minutes: float
    tensorboard: Path | None


def pick_device() -> torch.device:
    """The launcher's device for this process; alone, a CUDA device where there is one."""
    return current().device


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 products where asked, or where `auto` finds hardware for them.

    Raises:
        UserInputError: an unknown precision.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise UserInputError(f"--precision: {precision!r} is unknown", "choose one of: auto, fp32, bf16")
    native = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if precision == "fp32" or (precision == "auto" and not native):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def train(
    model: torch.nn.Module, stages: list[Stage], data: Data, *, work: Workspace, options: Options
) -> list[dict[str, Any]]:
    """Run the stages in order, from the last checkpoint if the workspace has one; returns the log, a row per epoch.

    Raises:
        UserInputError: several processes differ in what they train, on what, or how.
        MPCFormerError: the loss is no longer finite.
    """
    how = [(stage.name, stage.epochs, stage.learning_rate) for stage in stages]
    work.processes.check_same("options", lambda: f"{how} {data.batch_size} {options.seed} {options.precision}")
    work.processes.check_same("training data", data.digest)
    if work.processes.size > 1:  # a start that was computed differs by rounding between machines
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
        groups: list[dict[str, Any]] = [
            {"params": parameters, "weight_decay": decay, "factor": factor * own}
            for n_axes, decay, factor in ((2, stage.weight_decay, 1.0), (1, 0.0, 1.0), (0, 0.0, SCALAR_RATE))
            for own, parameters in self._by_factor(n_axes).items()
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=stage.learning_rate, fused=True)
        self.parameters: list[torch.nn.Parameter] = [p for group in groups for p in group["params"]]
        self.steps_per_epoch = math.ceil(len(data.encoded) / data.batch_size)
        self.n_steps = self.steps_per_epoch * stage.epochs
        self.writer = _tensorboard(options.tensorboard if self.processes.is_main else None)

    def _by_factor(self, n_axes: int) -> dict[float, list[torch.nn.Parameter]]:
        """Parameters with so many axes, two standing for more, by what the stage multiplies their rates with."""
        found: dict[float, list[torch.nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if min(parameter.dim(), 2) == n_axes:
                found.setdefault(self.stage.factor(name), []).append(parameter)
        return found

    def run(self, step: int, optimiser_state: Tensors) -> None:
        self._load_optimiser(optimiser_state)
        last_save, smooth = time.monotonic(), 0.0
        with progress(shown=self.processes.is_main) as bar:
            task = bar.add_task(self.stage.name, total=self.n_steps, completed=step, info="")
            while step < self.n_steps:
                epoch, position = divmod(step, self.steps_per_epoch)
                batches = self._batches(epoch)
                total, start = 0.0, position
                for indices in batches[position:]:
                    loss = self._step(step, indices)
                    total, step = total + loss, step + 1
                    smooth = loss if smooth == 0 else 0.95 * smooth + 0.05 * loss
                    bar.update(task, completed=step, info=f"loss {smooth:.4f}")
                    if self.writer:
                        self.writer.add_scalar(f"{self.stage.name}/loss", loss, step)
                    due = time.monotonic() - last_save > 60 * self.options.checkpoint_minutes
                    if due and step < (epoch + 1) * self.steps_per_epoch:
                        self.checkpoint(self.index, step)
                        last_save = time.monotonic()
                self._end_epoch(epoch, step, total / max(1, len(batches) - start))
        if self.stage.score is not None:
            best = self.work.load("best")
            if best:
                self.model.load_state_dict(best[0])

    def _batches(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(_mix(self.options.seed, self.stage.name, epoch))
        order = torch.randperm(len(self.data.encoded), generator=generator).tolist()
        lengths = [len(row.input_ids) for row in self.data.encoded]
        return shuffled_length_batches(lengths, self.data.batch_size, order)

    def _step(self, step: int, indices: list[int]) -> float:
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
        warm = max(1, round(self.n_steps * self.stage.warmup))
        if step < warm and self.stage.warmup:
            return (step + 1) / warm
        return (self.n_steps - step) / max(1, self.n_steps - warm) if self.stage.linear_decay else 1.0

    def _end_epoch(self, epoch: int, step: int, loss: float) -> None:
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
    """A 63-bit seed for one purpose, so that no two purposes share a sequence."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
