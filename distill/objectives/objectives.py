"""The stages of a distillation: what each has a student match, and by what its best epoch is known."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch.nn import functional as F

from distill.objectives.augment import replace_tokens
from distill.objectives.replacement import mixed_forward
from distill.recipe import DistillRecipe, GeneralRecipe
from distill.start.fit import layer_spans
from distill.training.loop import Batch, Data, Stage
from distill.training.losses import (
    Spans,
    direction_loss,
    logit_loss,
    probability_loss,
    row_loss,
    score_loss,
    sinkhorn_loss,
    state_loss,
)
from distill.training.prepare import Prepared
from mpcformer.approximations import softmax_form
from mpcformer.modeling import MPCFormerForSequenceClassification
from mpcformer.modeling.model import SelfAttention
from mpcformer.tasks import Task

Model = MPCFormerForSequenceClassification


def stages(recipe: DistillRecipe, task: Task, teacher: Model, student: Model, prepared: Prepared) -> list[Stage]:
    """What a recipe trains, in order.

    Args:
        recipe: a checked one.
        task: its task.
        teacher, student: in evaluation mode, on the device of the training.
        prepared: training examples, and those set aside.
    """
    factor = _layer_factor(recipe.layer_rates, len(student.bert.layers))
    if recipe.objective == "labels":
        epochs, rate, scorer = recipe.epochs1 + recipe.epochs2, recipe.learning_rate1, prepared.scorer(student)
        return [Stage("labels", epochs, rate, lambda batch: student(**batch).loss.float(), scorer, factor=factor)]
    losses = _Losses(recipe, task, teacher, student, prepared)
    by_score = recipe.choose_by == "score"
    score = prepared.scorer(student) if by_score else prepared.nearness(student, teacher)
    # Published, a student has no logits before stage 2: its last layer was never trained.
    score1 = None if losses.published else score
    first = losses.mixture if recipe.match1 == "mixture" else losses.inside
    rate1, rate2, decay = recipe.learning_rate1, recipe.learning_rate2, recipe.linear_decay1
    return [
        Stage(f"stage 1 ({recipe.match1})", recipe.epochs1, rate1, first, score1, decay, factor=factor),
        Stage("stage 2 (logits)", recipe.epochs2, rate2, losses.logits, score, factor=factor),
    ]


def general_stage(recipe: GeneralRecipe, teacher: Model, student: Model, data: Data, special: tuple[int, ...]) -> Stage:
    """What a general student is trained by: stage 1 without logits. The last epoch's weights are kept.

    Args:
        recipe: a checked one.
        teacher, student: in evaluation mode, on the device of the training.
        data: texts; their labels are not looked at.
        special: the tokenizer's ids that are no words.
    """
    losses = _Inner(recipe, teacher, student, data, special)
    return Stage("general distillation", recipe.epochs, recipe.learning_rate, losses.alone, None)


class _Inner:
    """What is matched inside the models.

    Args:
        recipe: a checked one.
        teacher, student: in evaluation mode.
        data, special: as `general_stage` has them.
        narrow: whether 2Quad's rows are held in a range.
    """

    def __init__(
        self,
        recipe: DistillRecipe | GeneralRecipe,
        teacher: Model,
        student: Model,
        data: Data,
        special: tuple[int, ...],
        narrow: bool = True,
    ) -> None:
        self.recipe: DistillRecipe | GeneralRecipe = recipe
        self.teacher, self.student, self.data, self.special = teacher, student, data, special
        self.spans: Spans = layer_spans(len(teacher.bert.layers), len(student.bert.layers))
        self.row_shift = softmax_form(recipe.softmax).square_shift
        self.narrow = narrow and self.row_shift is not None

    def alone(self, batch: Batch) -> torch.Tensor:
        """Nothing besides."""
        return self._matched(batch)[0]

    def _matched(self, batch: Batch) -> tuple[torch.Tensor, Any, Any]:
        """The loss, and what both models gave."""
        inputs = self._inputs(batch) | {"output_hidden_states": True, "output_attention_scores": True}
        theirs, ours = self._teacher(inputs), self.student(**inputs)
        mask = batch["attention_mask"]
        loss = batch.tokens * state_loss(theirs, ours, mask, self.spans)
        if "directions" in self.recipe.also1:
            loss = loss + batch.tokens * direction_loss(theirs, ours, mask, self.spans)
        if "probabilities" in self.recipe.also1:
            loss = loss + batch.tokens * self._probabilities(theirs, ours, mask)
        return self._narrow(loss, batch, ours), theirs, ours

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        inputs: dict[str, Any] = {key: value for key, value in batch.items() if key != "labels"}
        if self.recipe.replaced:
            # Drawn for the whole batch, of which this process may have a share: any number of processes reads the same.
            whole = self.data.batch(list(batch.whole), torch.device("cpu"))
            ids = replace_tokens(
                whole["input_ids"], whole["attention_mask"], self.special, self.recipe.replaced, batch.seed
            )
            own = batch["input_ids"]
            inputs["input_ids"] = ids[list(batch.rows), : own.size(1)].to(own.device)
        return inputs

    def _teacher(self, inputs: dict[str, Any]) -> Any:
        with torch.no_grad():
            return self.teacher(**inputs)

    def _narrow(self, loss: torch.Tensor, batch: Batch, ours: Any) -> torch.Tensor:
        if not self.narrow or self.row_shift is None:
            return loss
        return loss + batch.tokens * row_loss(ours, batch["attention_mask"], self.row_shift)

    def _probabilities(self, theirs: Any, ours: Any, mask: torch.Tensor) -> torch.Tensor:
        keys = mask[:, None, None, :].float()
        with torch.no_grad():
            wanted = [
                _attention(self.teacher, first).probabilities(theirs.attention_scores[first].float(), keys)[0]
                for first, _ in self.spans
            ]
        found = [
            _attention(self.student, index).probabilities(scores.float(), keys)[0]
            for index, scores in enumerate(ours.attention_scores)
        ]
        return probability_loss(wanted, found, mask)


class _Losses(_Inner):
    """Of a student on a task."""

    recipe: DistillRecipe

    def __init__(self, recipe: DistillRecipe, task: Task, teacher: Model, student: Model, prepared: Prepared) -> None:
        self.published = recipe.match1 == "states+scores"
        # The published recipe leaves the rows as they come.
        super().__init__(recipe, teacher, student, prepared.data, prepared.special, narrow=not self.published)
        self.task = task

    def inside(self, batch: Batch) -> torch.Tensor:
        """Stage 1: what is inside, and logits or raw scores."""
        loss, theirs, ours = self._matched(batch)
        if self.published:
            return loss + batch.pairs * score_loss(theirs, ours, batch["attention_mask"], self.spans)
        return loss + logit_loss(theirs.logits, ours.logits, self.task.is_regression)

    def mixture(self, batch: Batch) -> torch.Tensor:
        """Stage 1 by gradual replacement: logits of both models' layers mixed."""
        inputs = self._inputs(batch)
        how: dict[str, Any] = {"progress": batch.progress, "seed": batch.seed}
        logits, ours = mixed_forward(self.teacher, self.student, inputs, self.spans, **how)
        loss = logit_loss(self._teacher(inputs).logits, logits, self.task.is_regression)
        return self._narrow(loss, batch, ours)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Stage 2."""
        inputs = self._inputs(batch) | {"output_attention_scores": self.narrow}
        theirs, ours = self._teacher(inputs), self.student(**inputs)
        loss = self._narrow(logit_loss(theirs.logits, ours.logits, self.task.is_regression), batch, ours)
        if "sinkhorn" in self.recipe.also2:
            loss = loss + sinkhorn_loss(theirs.logits, ours.logits, self.task.is_regression)
        if "labels" in self.recipe.also2:
            loss = loss + self._labels(batch, inputs["input_ids"], ours.logits)
        return loss

    def _labels(self, batch: Batch, input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Of texts as they are: nobody has labelled one with replaced words."""
        as_is = (input_ids == batch["input_ids"]).all(1).float()
        if self.task.is_regression:
            losses = (logits[:, 0].float() - batch["labels"].float()).square()
        else:
            losses = F.cross_entropy(logits.float(), batch["labels"], reduction="none")
        return (losses * as_is).mean()


def _attention(model: Model, layer: int) -> SelfAttention:
    return cast(SelfAttention, model.bert.layers[layer].attention["self"])


def _layer_factor(rates: float | None, n_layers: int) -> Callable[[str], float]:
    """Of a parameter's name, its rate over that of pooler and head, which the top layer has too."""

    def factor(name: str) -> float:
        if rates is None:
            return 1.0
        if name.startswith("bert.embeddings."):
            return rates**n_layers
        if name.startswith("bert.encoder.layer."):
            return rates ** (n_layers - 1 - int(name.split(".")[3]))
        return 1.0

    return factor
