"""Start a student from its teacher's weights, fitted to the student's forms in closed form, layer by layer.

Quad and 2Quad differ so much from GeLU and softmax on a teacher's activations that a student with the teacher's plain
weights predicts no better than chance. Four steps bring it near its teacher. They change weights and not the
architecture, so they cost nothing in private inference:

1. Change each head's key bias to move the mean of its scores to zero. Softmax ignores this bias, 2Quad does not.
2. Scale each head's query so that the attended values under (s + 5)^2 come nearest to the teacher's under softmax.
3. Fit a quadratic a h^2 + b h + c with a > 0 to GeLU by least squares, for each unit on that unit's own inputs. Quad
   computes this quadratic with another weight and bias before it and another bias after it.
4. Refit the linear maps behind both forms, and the pooler's, to the teacher's values by ridge regression. The inputs
   are the student's own, so each layer corrects the errors of the layers before it.

If the student has fewer layers, each of them begins as the first of the teacher's layers that it stands for, and step 4
fits it to the last. If the student has fewer intermediate units, those that contribute most to the layer's output are
kept.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn

from distill.start.fit_attention import centre_scores, fit_divisor, scale_scores
from distill.start.fit_units import fit_units, strongest_units
from distill.start.layer_trace import LayerParts, Text, trace
from distill.start.ridge import refit
from distill.start.spans import layer_spans
from distill.training.data import Batch
from mpcformer.modeling import MPCFormerForSequenceClassification
from mpcformer.modeling.encoder import Bert, Context, Layer, Norm

Report = list[dict[str, float]]


@torch.no_grad()
def fit(
    teacher: MPCFormerForSequenceClassification,
    student: MPCFormerForSequenceClassification,
    batches: Iterable[Batch],
) -> Report:
    """Replace the student's weights by weights that are fitted to the teacher on some texts.

    Args:
        teacher: a model with exact forms, in evaluation mode.
        student: a model with the teacher's hidden size and any forms; it may have fewer layers and fewer intermediate
            units.
        batches: texts with input_ids, attention_mask and token_type_ids; some ten thousand tokens are enough.

    Returns:
        A row per student layer: the mean squared error of its hidden state, and the mean square of the teacher's.

    Raises:
        ValueError: the student has more layers or units than the teacher.
    """
    spans = layer_spans(len(teacher.bert.layers), len(student.bert.layers))
    _copy_rest(teacher, student)
    texts = [_embed(teacher, student, batch) for batch in batches]
    with _every_position(student.bert):
        report = [
            _fit_layer(teacher.bert.layers[first:last], layer, texts)
            for (first, last), layer in zip(spans, student.bert.layers, strict=True)
        ]
    if teacher.config.head_activation != "none":
        _fit_pooler(teacher.bert, student.bert, texts)
    return report


@contextmanager
def _every_position(student: Bert) -> Iterator[None]:
    """Let every layer of a student keep all positions: each layer is fitted to the teacher's, which does."""
    attentions = [LayerParts.of(layer).attention for layer in student.layers]
    before = [(attention.step, attention.stride) for attention in attentions]
    for attention in attentions:
        attention.step = attention.stride = 1
    try:
        yield
    finally:
        for attention, (step, stride) in zip(attentions, before, strict=True):
            attention.step, attention.stride = step, stride


def _fit_pooler(teacher: Bert, student: Bert, texts: list[Text]) -> None:
    """Fit the dense layer of the student's head to what the teacher's makes of the rows that it takes."""
    theirs, ours = (cast(nn.Linear, model.pooler["dense"]) for model in (teacher, student))
    # Heads that take each row by itself have no dense layer.
    rows = ((student.rows(text.student, text.keys), teacher.rows(text.teacher, text.keys)) for text in texts)
    refit(ours, ((own, theirs(their)) for own, their in rows))


def _copy_rest(teacher: nn.Module, student: nn.Module) -> None:
    """Copy all weights that lie outside the encoder layers."""
    state = {key: value for key, value in teacher.state_dict().items() if ".encoder." not in key}
    student.load_state_dict(state, strict=False)


def _embed(
    teacher: MPCFormerForSequenceClassification, student: MPCFormerForSequenceClassification, batch: Batch
) -> Text:
    mask = batch["attention_mask"].to(teacher.classifier.weight.dtype)
    types = batch.get("token_type_ids", torch.zeros_like(batch["input_ids"]))
    context = Context(mask[:, None, None, :], None, [])
    return Text(mask, *(model.bert.embeddings(batch["input_ids"], types, context) for model in (teacher, student)))


def _fit_layer(sources: Sequence[Layer], layer: Layer, texts: list[Text]) -> dict[str, float]:
    """Fit one student layer to the teacher's layers `sources`, and move the texts behind it."""
    first, last = sources[0], sources[-1]
    _copy_layer(first, last, layer, texts)
    parts = LayerParts.of(layer)
    attention = parts.attention
    if attention.form.square_shift is not None:
        centre_scores(layer, texts)
        scale_scores(first, layer, texts)
    if attention.log_divisor is not None:
        fit_divisor(layer, texts)
    refit(parts.attention_output.dense, _attention_pairs(first, layer, texts))
    if layer.activation.square is not None:
        fit_units(layer, layer.activation.square, texts)
    refit(parts.output.dense, _output_pairs(sources, layer, texts))
    return _advance(sources, layer, texts)


def _copy_layer(first: Layer, last: Layer, layer: Layer, texts: list[Text]) -> None:
    """Copy the weights of `first`, only its strongest units if the student has fewer, and the final norm of `last`."""
    ours, theirs, final = (LayerParts.of(one) for one in (layer, first, last))
    n_units, n_theirs = ours.inner.out_features, theirs.inner.out_features
    if n_units > n_theirs:
        raise ValueError(f"{n_units} intermediate units, the teacher has {n_theirs}")
    kept = strongest_units(first, texts, n_units) if n_units < n_theirs else torch.arange(n_units)
    # A student's constants have no counterpart in the teacher.
    ours.attention.load_state_dict(theirs.attention.state_dict(), strict=False)
    ours.attention_output.load_state_dict(theirs.attention_output.state_dict(), strict=False)
    ours.inner.weight.copy_(theirs.inner.weight[kept])
    ours.inner.bias.copy_(theirs.inner.bias[kept])
    ours.output.dense.weight.copy_(theirs.output.dense.weight[:, kept])
    ours.output.dense.bias.copy_(theirs.output.dense.bias)
    ours.output.LayerNorm.load_state_dict(final.output.LayerNorm.state_dict(), strict=False)


def _attention_pairs(source: Layer, layer: Layer, texts: list[Text]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield inputs (T, A D) and wanted outputs (T, H) of the linear map behind attention.

    With the wanted outputs, the student's LayerNorm gives what the teacher's gives.
    """
    ours, theirs_parts = LayerParts.of(layer), LayerParts.of(source)
    for text in texts:
        context = Context(text.keys, None, [])
        inputs = ours.attention(text.student, context, "")
        theirs = theirs_parts.attention_output.dense(theirs_parts.attention(text.teacher, context, ""))
        before = _norm_input(ours.attention_output.LayerNorm, theirs + text.teacher)
        yield inputs[text.real], (before - text.student)[text.real]


def _output_pairs(
    sources: Sequence[Layer], layer: Layer, texts: list[Text]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield inputs (T, I) and wanted outputs (T, H) of the feed-forward block's second linear map."""
    for text in texts:
        ours = trace(layer, text.student, text)
        x = text.teacher
        for source in sources:
            theirs = trace(source, x, text)
            x = theirs.after
        before = _norm_input(LayerParts.of(layer).output.LayerNorm, theirs.before)
        yield layer.activation(ours.inner)[text.real], (before - ours.middle)[text.real]


def _norm_input(norm: Norm, theirs: torch.Tensor) -> torch.Tensor:
    """Return the input with which the student's LayerNorm gives what the teacher's gives for `theirs`.

    Both norms have the same gain and bias; the student's may divide by a learnt constant.
    """
    if norm.log_deviation is None:
        return theirs
    return nn.functional.layer_norm(theirs, theirs.shape[-1:], eps=norm.eps) * norm.log_deviation.exp()


def _advance(sources: Sequence[Layer], layer: Layer, texts: list[Text]) -> dict[str, float]:
    """Move both models' hidden states behind the layer, and return how far apart they are."""
    error = square = n = 0.0
    for text in texts:
        for source in sources:
            text.teacher = trace(source, text.teacher, text).after
        text.student = trace(layer, text.student, text).after
        theirs, ours = text.teacher[text.real], text.student[text.real]
        error += float((theirs - ours).square().sum())
        square += float(theirs.square().sum())
        n += theirs.numel()
    return {"error": error / n, "mean_square": square / n}
