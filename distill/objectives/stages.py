"""The stages of a distillation: what the student matches in each, and how its best epoch is chosen."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch.nn import functional as F

from distill.objectives.augment import replace_tokens
from distill.objectives.closeness import closeness
from distill.objectives.losses import (
    LayerPair,
    answer_loss,
    direction_loss,
    grouped,
    probability_loss,
    row_loss,
    score_loss,
    score_pairs,
    sinkhorn_loss,
    state_loss,
    state_pairs,
)
from distill.objectives.replacement import mixed_forward
from distill.recipe import DistillRecipe, GeneralRecipe
from distill.start.spans import Spans, layer_spans
from distill.training.data import Batch, Data
from distill.training.loop import Stage
from distill.training.prepare import Prepared
from mpcformer.approximations import softmax_form
from mpcformer.modeling import MPCFormerForSequenceClassification
from mpcformer.modeling.encoder import SelfAttention
from mpcformer.tasks import Task

Model = MPCFormerForSequenceClassification


def stages(recipe: DistillRecipe, task: Task, teacher: Model, student: Model, prepared: Prepared) -> list[Stage]:
    """Return the stages of a recipe, in order.

    Args:
        recipe: a recipe that was checked.
        task: its task.
        teacher: in evaluation mode, on the device that trains.
        student: likewise.
        prepared: the training examples and the selection part.
    """
    factor = _layer_factor(recipe.layer_rates, len(student.bert.layers))
    if recipe.objective == "labels":
        epochs, rate, scorer = recipe.epochs1 + recipe.epochs2, recipe.learning_rate1, prepared.scorer(student)
        return [Stage("labels", epochs, rate, lambda batch: student(**batch).loss.float(), scorer, factor=factor)]
    losses = _TaskLosses(recipe, task, teacher, student, prepared)
    by_score = recipe.choose_by == "score"
    score = prepared.scorer(student) if by_score else closeness(prepared, student, teacher)
    # Under the published recipe, a student has no meaningful logits before stage 2: its last layer was never trained.
    score1 = None if losses.published else score
    first = losses.mixture if recipe.match1 == "mixture" else losses.inside
    rate1, rate2, decay = recipe.learning_rate1, recipe.learning_rate2, recipe.linear_decay1
    return [
        Stage(f"stage 1 ({recipe.match1})", recipe.epochs1, rate1, first, score1, decay, factor=factor),
        Stage("stage 2 (logits)", recipe.epochs2, rate2, losses.logits, score, factor=factor),
    ]


def general_stage(
    recipe: GeneralRecipe, teacher: Model, student: Model, data: Data, special_ids: tuple[int, ...]
) -> Stage:
    """Return the only stage of a general distillation: stage 1 without logits. The last epoch's weights are kept.

    Args:
        recipe: a recipe that was checked.
        teacher: in evaluation mode, on the device that trains.
        student: likewise.
        data: the texts; their labels are ignored.
        special_ids: the ids of the tokenizer's special tokens.
    """
    losses = _InnerLosses(recipe, teacher, student, data, special_ids)
    return Stage("general distillation", recipe.epochs, recipe.learning_rate, losses.inside, None)


class _InnerLosses:
    """Losses that match hidden states and attention probabilities, the values inside the models.

    Args:
        recipe: a recipe that was checked.
        teacher: in evaluation mode.
        student: in evaluation mode.
        data: the training examples.
        special_ids: the ids of the tokenizer's special tokens.
        narrow: whether the rows of 2Quad are kept in a narrow range; see `row_loss`.
    """

    def __init__(
        self,
        recipe: DistillRecipe | GeneralRecipe,
        teacher: Model,
        student: Model,
        data: Data,
        special_ids: tuple[int, ...],
        narrow: bool = True,
    ) -> None:
        self.recipe: DistillRecipe | GeneralRecipe = recipe
        self.teacher, self.student, self.data, self.special_ids = teacher, student, data, special_ids
        self.spans: Spans = layer_spans(len(teacher.bert.layers), len(student.bert.layers))
        self.row_shift = softmax_form(recipe.softmax).square_shift
        self.narrow = narrow and self.row_shift is not None
        self.steps = student.config.steps

    def inside(self, batch: Batch) -> torch.Tensor:
        """Match hidden states, and what the recipe's `also1` names."""
        return self._matched(batch)[0]

    def _matched(self, batch: Batch) -> tuple[torch.Tensor, Any, Any]:
        """Return the loss, the teacher's output and the student's."""
        inputs = self._inputs(batch) | {"output_hidden_states": True, "output_attention_scores": True}
        theirs, ours = self._teacher(inputs), self.student(**inputs)
        mask = batch["attention_mask"]
        states = state_pairs(theirs, ours, mask, self.spans, self.steps)
        loss = batch.tokens * state_loss(states)
        if "directions" in self.recipe.also1:
            loss = loss + batch.tokens * direction_loss(states)
        if "probabilities" in self.recipe.also1:
            loss = loss + batch.tokens * self._probabilities(theirs, ours, mask)
        return self._add_row_loss(loss, batch, ours), theirs, ours

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """Return the models' inputs, with tokens replaced if the recipe asks for it."""
        inputs: dict[str, Any] = {key: value for key, value in batch.items() if key != "labels"}
        if self.recipe.replaced:
            # Tokens are drawn for the whole batch and not for this process's share of it, so the number of processes
            # does not change the texts.
            whole = self.data.batch(list(batch.whole), torch.device("cpu"))
            ids = replace_tokens(
                whole["input_ids"], whole["attention_mask"], self.special_ids, self.recipe.replaced, batch.seed
            )
            own = batch["input_ids"]
            inputs["input_ids"] = ids[list(batch.rows), : own.size(1)].to(own.device)
        return inputs

    def _teacher(self, inputs: dict[str, Any]) -> Any:
        with torch.no_grad():
            return self.teacher(**inputs)

    def _add_row_loss(self, loss: torch.Tensor, batch: Batch, ours: Any) -> torch.Tensor:
        if not self.narrow or self.row_shift is None:
            return loss
        return loss + batch.tokens * row_loss(ours, batch["attention_mask"], self.steps, self.row_shift)

    def _probabilities(self, theirs: Any, ours: Any, mask: torch.Tensor) -> torch.Tensor:
        """Compute both models' attention probabilities from their scores, and return the loss between them."""
        keys, pairs = mask[:, None, None, :].float(), list[LayerPair]()
        layers = zip(self.spans, self.steps, ours.attention_scores, strict=True)
        for index, ((first, _), (before, after), scores) in enumerate(layers):
            with torch.no_grad():
                raw = theirs.attention_scores[first][:, :, ::after].float()
                wanted = grouped(_attention(self.teacher, first).probabilities(raw, keys)[0], before)
            found = _attention(self.student, index).probabilities(scores.float(), keys[..., ::before])[0]
            pairs.append(LayerPair(wanted, found, mask[:, ::after], mask[:, ::before]))
        return probability_loss(pairs)


class _TaskLosses(_InnerLosses):
    """Losses for distilling a student on one task."""

    recipe: DistillRecipe

    def __init__(self, recipe: DistillRecipe, task: Task, teacher: Model, student: Model, prepared: Prepared) -> None:
        self.published = recipe.match1 == "states+scores"
        # The published recipe does not keep the rows in a range.
        super().__init__(recipe, teacher, student, prepared.data, prepared.special_ids, narrow=not self.published)
        self.task = task

    def inside(self, batch: Batch) -> torch.Tensor:
        """Stage 1: match the values inside the models, and the logits or, as published, the raw attention scores."""
        loss, theirs, ours = self._matched(batch)
        if self.published:
            return loss + batch.pairs * score_loss(
                score_pairs(theirs, ours, batch["attention_mask"], self.spans, self.steps)
            )
        return loss + answer_loss(self.task, theirs.logits, ours.logits)

    def mixture(self, batch: Batch) -> torch.Tensor:
        """Stage 1 by gradual replacement: match the logits of a mixture of both models' layers."""
        inputs = self._inputs(batch)
        how: dict[str, Any] = {"progress": batch.progress, "seed": batch.seed}
        logits, ours = mixed_forward(self.teacher, self.student, inputs, self.spans, **how)
        loss = answer_loss(self.task, self._teacher(inputs).logits, logits)
        return self._add_row_loss(loss, batch, ours)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Stage 2: match the logits, and what the recipe's `also2` names."""
        inputs = self._inputs(batch) | {"output_attention_scores": self.narrow}
        theirs, ours = self._teacher(inputs), self.student(**inputs)
        loss = self._add_row_loss(answer_loss(self.task, theirs.logits, ours.logits), batch, ours)
        if "sinkhorn" in self.recipe.also2:
            loss = loss + sinkhorn_loss(theirs.logits, ours.logits, self.task.is_regression)
        if "labels" in self.recipe.also2:
            loss = loss + self._labels(batch, inputs["input_ids"], ours.logits)
        return loss

    def _labels(self, batch: Batch, input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return the loss against the labels. Texts with replaced tokens have no label and count as zero."""
        as_is = (input_ids == batch["input_ids"]).all(1).float()
        if self.task.is_regression:
            losses = (logits[:, 0].float() - batch["labels"].float()).square()
        else:
            losses = F.cross_entropy(logits.float(), batch["labels"], reduction="none")
        return (losses * as_is).mean()


def _attention(model: Model, layer: int) -> SelfAttention:
    return cast(SelfAttention, model.bert.layers[layer].attention["self"])


def _layer_factor(rates: float | None, n_layers: int) -> Callable[[str], float]:
    """Return a function from a parameter's name to its learning rate, as a multiple of the pooler's and the head's.

    Args:
        rates: the learning rate of a layer divided by that of the next higher layer; None: all are equal.
        n_layers: the number of layers; the highest has the same rate as pooler and head.
    """

    def factor(name: str) -> float:
        if rates is None:
            return 1.0
        if name.startswith("bert.embeddings."):
            return rates**n_layers
        if name.startswith("bert.encoder.layer."):
            return rates ** (n_layers - 1 - int(name.split(".")[3]))
        return 1.0

    return factor
