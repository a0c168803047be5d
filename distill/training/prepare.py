"""What both recipes need before they train: checked options, examples, batches."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from distill.recipe import DistillRecipe, TeacherRecipe
from distill.training.loop import Data, autocast, pick_device
from distill.training.losses import logit_loss
from distill.training.processes import current
from mpcformer.engines.plaintext import predict
from mpcformer.errors import UserInputError
from mpcformer.modeling import MPCFormerForSequenceClassification
from mpcformer.tasks import (
    Encoded,
    Examples,
    Task,
    carve_selection,
    compute_metrics,
    encode,
    get_task,
    load_examples,
    primary_score,
)

EVAL_BATCH = 64


@dataclass(frozen=True)
class Prepared:
    """Training data and the part set aside for choosing steps; the reported split is never loaded.

    special: the tokenizer's ids that are no words.
    """

    task: Task
    data: Data
    selection: Examples
    selection_encoded: list[Encoded]
    special: tuple[int, ...]

    def scorer(self, model: MPCFormerForSequenceClassification) -> Callable[[], float]:
        """A function that scores `model` on the selection part."""

        def score() -> float:
            return primary_score(compute_metrics(self.task, self._logits(model).numpy(), self.selection.labels))

        return score

    def nearness(
        self, student: MPCFormerForSequenceClassification, teacher: MPCFormerForSequenceClassification
    ) -> Callable[[], float]:
        """A function that says how near `student` is to `teacher` on the selection part: minus their logits' loss."""
        theirs = functools.cache(lambda: self._logits(teacher))
        return lambda: -float(logit_loss(theirs(), self._logits(student), self.task.is_regression))

    def distance(
        self, student: MPCFormerForSequenceClassification, teacher: MPCFormerForSequenceClassification
    ) -> float:
        """How far `student`'s logits are from `teacher`'s on the selection part: 0 for equal ones.

        The mean divergence of their classes' probabilities, in nats, or a regression's mean squared error.
        """
        theirs, ours = self._logits(teacher), self._logits(student)
        found, least = (float(logit_loss(theirs, logits, self.task.is_regression)) for logits in (ours, theirs))
        return found - least

    def _logits(self, model: MPCFormerForSequenceClassification) -> torch.Tensor:
        """float32 (N, C) on the selection part, in its order."""
        logits, _ = predict(model, self.selection_encoded, pad_id=self.data.pad_id, batch_size=EVAL_BATCH)
        return torch.from_numpy(logits)


def prepare(recipe: TeacherRecipe | DistillRecipe, tokenizer: Any, *, positions: int) -> Prepared:
    """Load the training split, set the selection part aside, tokenise.

    Args:
        recipe: says which examples, and how they are cut.
        tokenizer: the model's.
        positions: the longest text that the model can read.

    Raises:
        UserInputError: see `get_task`, `load_examples`, `encode`.
    """
    task = get_task(recipe.task)
    if recipe.batch_size < 1:
        raise UserInputError(f"--batch-size: {recipe.batch_size} is below 1", "give a positive number")
    with current().first_here_first():
        examples = load_examples(task, task.train_split, data_dir=recipe.data_dir, limit=recipe.limit)
    training, selection = carve_selection(examples, recipe.selection_share)
    encoded, selection_encoded = (
        encode(tokenizer, part, positions=positions, max_length=recipe.max_length) for part in (training, selection)
    )
    labels = torch.tensor(training.labels, dtype=torch.float32 if task.is_regression else torch.int64)
    data = Data(encoded, labels, tokenizer.pad_token_id, recipe.batch_size)
    return Prepared(task, data, selection, selection_encoded, tuple(tokenizer.all_special_ids))


def check_numbers(**numbers: float) -> None:
    """Refuse what is not positive; keyword names are the options'.

    Raises:
        UserInputError: naming the option and its value.
    """
    for name, value in numbers.items():
        if not value > 0:
            raise UserInputError(f"--{name.replace('_', '-')}: {value} is not positive", "give a positive number")


def check_replaced(share: float) -> None:
    """Refuse what is no share of tokens.

    Raises:
        UserInputError: naming the option and its value.
    """
    if not 0 <= share <= 1:
        raise UserInputError(f"--replaced: {share} is not in 0..1", "give a share of tokens, or 0 for none")


def check_precision(precision: str) -> None:
    """Refuse an unknown precision before work starts."""
    autocast(precision, pick_device())
