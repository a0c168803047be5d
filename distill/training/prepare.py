"""Prepare a training: load and tokenise the examples, and set some of them aside to choose epochs by."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from distill.recipe import DistillRecipe, TeacherRecipe
from distill.training.data import Data
from distill.training.processes import current
from mpcformer.engines.plaintext import predict
from mpcformer.errors import UserInputError
from mpcformer.modeling import MPCFormerForSequenceClassification
from mpcformer.modeling.description import described as described_model
from mpcformer.modeling.folder import read_config
from mpcformer.modeling.tokenizer import Limits
from mpcformer.tasks import (
    EMBEDDING,
    Encoded,
    Examples,
    OwnData,
    Task,
    best_names,
    carve_selection,
    compute_metrics,
    embedding_task,
    encode,
    file_classes,
    get_task,
    load_examples,
    load_own,
    model_names,
    open_own,
    own_task,
    primary_score,
)

EVAL_BATCH = 64


@dataclass(frozen=True)
class Prepared:
    """The training examples of a task, and the selection part: examples set aside to choose the best epoch by.

    Both come from the task's training split. The evaluation split that scores are reported on is never loaded. Own data
    may have a file of its own to choose by.

    Attributes:
        task: the task.
        data: the examples to train on.
        selection: the selection part.
        selection_encoded: its tokenised texts.
        special_ids: the ids of the tokenizer's special tokens, such as [CLS] and [SEP].
    """

    task: Task
    data: Data
    selection: Examples
    selection_encoded: list[Encoded]
    special_ids: tuple[int, ...]

    def scorer(self, model: MPCFormerForSequenceClassification) -> Callable[[], float]:
        """Return a function that computes the task's score of `model` on the selection part."""

        def score() -> float:
            logits = self.selection_logits(model).numpy()
            return primary_score(compute_metrics(self.task, logits, self.selection.labels))

        return score

    def selection_logits(self, model: MPCFormerForSequenceClassification) -> torch.Tensor:
        """Return the logits of `model` on the selection part, in its order: float32 (N, C)."""
        logits, _ = predict(model, self.selection_encoded, pad_id=self.data.pad_id, batch_size=EVAL_BATCH)
        return torch.from_numpy(logits)


def prepare(recipe: TeacherRecipe | DistillRecipe, tokenizer: Any, *, limits: Limits) -> Prepared:
    """Load the training split, set the selection part aside, and tokenise both parts.

    Args:
        recipe: determines which examples are used and how long texts may be.
        tokenizer: the model's tokenizer.
        limits: what the model can read.

    Raises:
        UserInputError: see `training_task`, `load_examples`, `load_own`, `encode`.
    """
    task = training_task(recipe)
    if recipe.batch_size < 1:
        raise UserInputError(f"--batch-size: {recipe.batch_size} is below 1", "give a positive number")
    training, selection = _loaded(recipe, task)
    encoded, selection_encoded = (
        encode(tokenizer, part, limits=limits, max_length=recipe.max_length) for part in (training, selection)
    )
    labels = torch.tensor(training.labels, dtype=torch.float32 if task.is_regression else torch.int64)
    data = Data(encoded, labels, tokenizer.pad_token_id, recipe.batch_size)
    return Prepared(task, data, selection, selection_encoded, tuple(tokenizer.all_special_ids))


def training_task(recipe: TeacherRecipe | DistillRecipe) -> Task:
    """Return the task of a recipe: one of the registry, or that of own data.

    The classes of own data are a teacher's, if it is distilled from one, or else the file's.

    Raises:
        UserInputError: there is no such task, a file is no table or has no classes, or the teacher is none.
    """
    own = _own_data(recipe)
    if own is None:
        return get_task(recipe.task)
    if recipe.task == EMBEDDING:
        if not isinstance(recipe, DistillRecipe):
            raise UserInputError(
                f"--task: {EMBEDDING} needs no teacher of its own", "give a sentence encoder to mpcformer distill"
            )
        return embedding_task(own)
    if isinstance(recipe, DistillRecipe):
        names = best_names(own, model_names(described_model(read_config(recipe.teacher), str(recipe.teacher))))
    else:
        names = file_classes(own)
    return replace(own_task(names), text_columns=open_own(own)[0].columns)


def _own_data(recipe: TeacherRecipe | DistillRecipe) -> OwnData | None:
    if recipe.train_data is None:
        return None
    return OwnData(recipe.train_data, recipe.text_columns or (), recipe.label_column)


def _loaded(recipe: TeacherRecipe | DistillRecipe, task: Task) -> tuple[Examples, Examples]:
    """Return the examples to train on and those to choose the best epoch by."""
    own = _own_data(recipe)
    if own is None:
        with current().first_here_first():
            examples = load_examples(task, task.train_split, data_dir=recipe.data_dir, limit=recipe.limit)
    else:
        labelled = not task.is_embedding
        examples = load_own(own, task, limit=recipe.limit, labelled=labelled)
        if recipe.eval_data is not None:
            return examples, load_own(replace(own, path=recipe.eval_data), task, labelled=labelled)
    return carve_selection(examples, recipe.selection_share)
