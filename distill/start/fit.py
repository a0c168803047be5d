"""A student's start: the teacher's weights, fitted to the student's own forms in closed form, layer by layer.

Quad and 2Quad are far from GeLU and softmax on a teacher's activations, so a teacher's weights alone start a student at
chance. Four things that cost nothing privately, since they change weights and not the architecture, bring it near:

1. A head's key bias, to which softmax is indifferent and 2Quad is not, moves the scores' mean to zero.
2. A head's query is scaled so that (s + 5)^2 follows the teacher's softmax: its attended values are nearest.
3. A unit's quadratic is the least squares fit of GELU on that unit's own inputs: a h^2 + b h + c with a > 0 is Quad of
   another weight and bias, and another bias behind it.
4. The linear maps behind both forms, and the pooler's, are refitted by ridge regression to what the teacher has there.
   Their inputs are the student's own, so a layer makes up for what those before it lost.

With fewer layers, a student's layer begins as the first of the teacher's layers that it stands for, and 4 fits it to
the last. With fewer units, those are kept that add most to the layer's output.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from distill.start.ridge import refit
from distill.training.loop import Batch
from distill.training.losses import ROW_MEANS
from mpcformer.approximations.forms import ShiftedSquare
from mpcformer.modeling import MPCFormerForSequenceClassification
from mpcformer.modeling.model import Context, Layer, Norm, ResidualOutput, SelfAttention

# Multiples of a head's scores that are tried.
SCALES = (0.25, 0.5, 0.9, 1.3, 1.8, 2.3, 3.0, 4.0, 5.5, 8.0)
# Every so many batches are looked at to choose among them.
SCALE_STRIDE = 4
# A unit's curvature: a nearly linear one would need a huge shift, which fixed point cannot carry.
CURVATURE = (0.02, 0.5)

Report = list[dict[str, float]]


@dataclass
class _Text:
    """A batch on its way through both models: mask (B, L), hidden states (B, L, H)."""

    mask: torch.Tensor
    teacher: torch.Tensor
    student: torch.Tensor

    @property
    def keys(self) -> torch.Tensor:
        """The mask as attention takes it, (B, 1, 1, L)."""
        return self.mask[:, None, None, :]

    @property
    def real(self) -> torch.Tensor:
        """Which tokens count, (B, L)."""
        return self.mask.bool()


@dataclass(frozen=True)
class _Trace:
    """What a layer computes: (B, L, H) but for `inner`, (B, L, I), GeLU's argument."""

    middle: torch.Tensor
    inner: torch.Tensor
    before: torch.Tensor  # the last LayerNorm's input
    after: torch.Tensor


@dataclass(frozen=True)
class _Parts:
    """A layer's modules by what they do."""

    attention: SelfAttention
    attention_output: ResidualOutput
    inner: nn.Linear
    output: ResidualOutput

    @classmethod
    def of(cls, layer: Layer) -> "_Parts":
        return cls(
            cast(SelfAttention, layer.attention["self"]),
            cast(ResidualOutput, layer.attention["output"]),
            cast(nn.Linear, layer.intermediate["dense"]),
            layer.output,
        )


@torch.no_grad()
def fit(
    teacher: MPCFormerForSequenceClassification,
    student: MPCFormerForSequenceClassification,
    batches: Iterable[Batch],
) -> Report:
    """Give `student` weights fitted to `teacher` on some texts.

    Args:
        teacher: with exact forms, in evaluation mode.
        student: same widths, any forms; may have fewer layers and fewer intermediate units. Its weights are replaced.
        batches: input_ids, attention_mask, token_type_ids; some ten thousand tokens are enough.

    Returns:
        By student layer: mean squared error of its hidden state, and the mean square of the teacher's.

    Raises:
        ValueError: the student has more layers or units than the teacher.
    """
    spans = layer_spans(len(teacher.bert.layers), len(student.bert.layers))
    _copy_rest(teacher, student)
    texts = [_embed(teacher, student, batch) for batch in batches]
    report = [
        _fit_layer(teacher.bert.layers[first:last], layer, texts)
        for (first, last), layer in zip(spans, student.bert.layers, strict=True)
    ]
    theirs, ours = (cast(nn.Linear, model.bert.pooler["dense"]) for model in (teacher, student))
    refit(ours, ((text.student[:, 0], theirs(text.teacher[:, 0])) for text in texts))
    return report


def layer_spans(n_teacher: int, n_student: int) -> list[tuple[int, int]]:
    """Which of the teacher's layers, first and one past the last, each of the student's stands for.

    Raises:
        ValueError: more layers than the teacher has, or none.
    """
    if not 0 < n_student <= n_teacher:
        raise ValueError(f"{n_student} layers cannot stand for {n_teacher}")
    ends = [round(index * n_teacher / n_student) for index in range(n_student + 1)]
    return list(itertools.pairwise(ends))


def _copy_rest(teacher: nn.Module, student: nn.Module) -> None:
    """Everything outside the layers."""
    state = {key: value for key, value in teacher.state_dict().items() if ".encoder." not in key}
    student.load_state_dict(state, strict=False)


def _embed(
    teacher: MPCFormerForSequenceClassification, student: MPCFormerForSequenceClassification, batch: Batch
) -> _Text:
    mask = batch["attention_mask"].to(teacher.classifier.weight.dtype)
    types = batch.get("token_type_ids", torch.zeros_like(batch["input_ids"]))
    context = Context(mask[:, None, None, :], None, [])
    return _Text(mask, *(model.bert.embeddings(batch["input_ids"], types, context) for model in (teacher, student)))


def _fit_layer(sources: Sequence[Layer], layer: Layer, texts: list[_Text]) -> dict[str, float]:
    first, last = sources[0], sources[-1]
    _copy_layer(first, last, layer, texts)
    parts = _Parts.of(layer)
    attention = parts.attention
    if attention.form.square_shift is not None:
        _centre_scores(layer, texts)
        _scale_scores(first, layer, texts)
    if attention.log_divisor is not None:
        _fit_divisor(layer, texts)
    refit(parts.attention_output.dense, _attention_pairs(first, layer, texts))
    if layer.activation.square is not None:
        _fit_units(layer, layer.activation.square, texts)
    refit(parts.output.dense, _output_pairs(sources, layer, texts))
    return _advance(sources, layer, texts)


def _trace(layer: Layer, x: torch.Tensor, text: _Text) -> _Trace:
    parts, context = _Parts.of(layer), Context(text.keys, None, [])
    attended = parts.attention(x, context, "")
    middle = parts.attention_output(attended, x, context, "")
    inner = parts.inner(middle)
    before = parts.output.dense(layer.activation(inner)) + middle
    return _Trace(middle, inner, before, parts.output.LayerNorm(before))


def _copy_layer(first: Layer, last: Layer, layer: Layer, texts: list[_Text]) -> None:
    """The first source's weights, the units that matter most, and the last source's final LayerNorm."""
    ours, theirs, final = (_Parts.of(one) for one in (layer, first, last))
    n_units, n_theirs = ours.inner.out_features, theirs.inner.out_features
    if n_units > n_theirs:
        raise ValueError(f"{n_units} intermediate units, the teacher has {n_theirs}")
    kept = _strongest_units(first, texts, n_units) if n_units < n_theirs else torch.arange(n_units)
    # A student's constants have no counterpart at the teacher.
    ours.attention.load_state_dict(theirs.attention.state_dict(), strict=False)
    ours.attention_output.load_state_dict(theirs.attention_output.state_dict(), strict=False)
    ours.inner.weight.copy_(theirs.inner.weight[kept])
    ours.inner.bias.copy_(theirs.inner.bias[kept])
    ours.output.dense.weight.copy_(theirs.output.dense.weight[:, kept])
    ours.output.dense.bias.copy_(theirs.output.dense.bias)
    ours.output.LayerNorm.load_state_dict(final.output.LayerNorm.state_dict(), strict=False)


def _strongest_units(first: Layer, texts: list[_Text], count: int) -> torch.Tensor:
    """Indices of the units whose output varies most in the layer's output, in order."""
    sums = _Moments()
    for text in texts:
        sums.add(first.activation(_trace(first, text.teacher, text).inner)[text.real])
    strength = sums.variance() * first.output.dense.weight.double().square().sum(0)
    return strength.topk(count).indices.sort().values


class _Moments:
    """Mean and variance by column of rows that come bit by bit."""

    def __init__(self) -> None:
        self.n = 0
        self.total = self.squares = torch.zeros(())

    def add(self, rows: torch.Tensor) -> None:
        self.n += len(rows)
        self.total = self.total + rows.double().sum(0)
        self.squares = self.squares + rows.double().square().sum(0)

    def mean(self) -> torch.Tensor:
        return self.total / self.n

    def variance(self) -> torch.Tensor:
        return self.squares / self.n - self.mean().square()


def _heads(x: torch.Tensor, n_heads: int) -> torch.Tensor:
    """(B, L, H) -> (B, A, L, D)."""
    return x.view(*x.shape[:2], n_heads, -1).transpose(1, 2)


def _centre_scores(layer: Layer, texts: list[_Text]) -> None:
    """Take the average key from the key bias: a row's mean score becomes about zero."""
    attention, average = _Parts.of(layer).attention, _Moments()
    for text in texts:
        average.add(attention.key(text.student)[text.real])
    attention.key.bias.sub_(average.mean().to(attention.key.bias))


def _scale_scores(source: Layer, layer: Layer, texts: list[_Text]) -> None:
    """Scale each head's query by what brings its attended values nearest to the teacher's, among what rows can bear.

    Nearest up to a factor a head, which the next linear map's refit takes up.
    """
    theirs, ours = _Parts.of(source).attention, _Parts.of(layer).attention
    n_heads = ours.n_heads
    errors = torch.zeros(3, len(SCALES), n_heads, dtype=torch.float64)
    for text in texts[::SCALE_STRIDE]:
        weight = text.mask[:, None, :, None]
        target = _attended(theirs, text.teacher, 1.0, text.keys)
        for index, scale in enumerate(SCALES):
            found = _attended(ours, text.student, scale, text.keys)
            for row, product in enumerate((found * target, found * found, target * target)):
                errors[row, index] += (product * weight).sum((0, 2, 3)).double().cpu()
    mixed, own, wanted = errors
    distance = wanted - mixed.square() / own.clamp(min=1e-12)
    excess = _excess(ours, texts)
    best = torch.where(excess > 0, distance.max() * (1 + excess), distance).argmin(0)
    scales = torch.tensor(SCALES)[best].to(ours.query.weight).repeat_interleave(ours.query.out_features // n_heads)
    ours.query.weight.mul_(scales[:, None])
    ours.query.bias.mul_(scales)


def _excess(attention: SelfAttention, texts: list[_Text]) -> torch.Tensor:
    """How far rows' means of (scale s + 5)^2 lie outside ROW_MEANS, as a logarithm: (scales, heads), 0 is inside."""
    shift = attention.form.square_shift
    assert shift is not None
    scales = torch.tensor(SCALES)[:, None]
    low = torch.full((len(SCALES), attention.n_heads), math.inf)
    high = torch.zeros(len(SCALES), attention.n_heads)
    for text in texts:
        context = Context(text.keys, None, [])
        attention(text.student, context, "")
        scores, n_keys = context.scores[0], text.keys.sum(-1)
        first, second = ((text.keys * power).sum(-1) / n_keys for power in (scores, scores.square()))  # (B, A, L)
        first, second = (moment.transpose(1, 2)[text.real].t().cpu() for moment in (first, second))  # (A, T)
        for index, scale in enumerate(scales[:, 0].tolist()):
            rows = scale * scale * second + 2 * shift * scale * first + shift**2
            low[index] = torch.minimum(low[index], rows.amin(1))
            high[index] = torch.maximum(high[index], rows.amax(1))
    least, most = ROW_MEANS
    return torch.relu((least / low.clamp(min=1e-6)).log()) + torch.relu((high / most).log())


def _attended(attention: SelfAttention, x: torch.Tensor, scale: float, keys: torch.Tensor) -> torch.Tensor:
    """Attended values (B, A, L, D) of scores that are `scale` times as large."""
    parts = (attention.query(x), attention.key(x), attention.value(x))
    query, key, value = (_heads(part, attention.n_heads) for part in parts)
    scores = scale / math.sqrt(query.size(-1)) * (query @ key.transpose(2, 3))
    return attention.form(scores, keys)[0] @ value


def _fit_divisor(layer: Layer, texts: list[_Text]) -> None:
    """2quad-const's c: the mean of (s + 5)^2, so that rows add up to one on average."""
    total, count, attention = 0.0, 0.0, _Parts.of(layer).attention
    assert attention.log_divisor is not None
    for text in texts:
        context = Context(text.keys, None, [])
        attention(text.student, context, "")
        mean = attention.form(context.scores[0], text.keys)[1][..., 0]  # (B, A, L)
        total += float((mean * text.mask[:, None, :]).sum())
        count += float(text.mask.sum()) * mean.size(1)
    attention.log_divisor.fill_(math.log(total / count))


def _fit_units(layer: Layer, square: ShiftedSquare, texts: list[_Text]) -> None:
    """Least squares of GELU by a h^2 + b h + c for each unit, written as Quad of other weights."""
    dense, after = _Parts.of(layer).inner, _Parts.of(layer).output.dense
    gram = torch.zeros(3, 3, dense.out_features, dtype=torch.float64, device=dense.weight.device)
    right = torch.zeros(3, dense.out_features, dtype=torch.float64, device=dense.weight.device)
    n = 0
    for text in texts:
        h = _trace(layer, text.student, text).inner[text.real].double()
        powers = (torch.ones_like(h), h, h * h)
        wanted = nn.functional.gelu(h)
        n += len(h)
        for i, left in enumerate(powers):
            right[i] += (left * wanted).sum(0)
            for j, other in enumerate(powers):
                gram[i, j] += (left * other).sum(0)
    matrix, vector = gram.permute(2, 0, 1) / n, right.t() / n  # (I, 3, 3), (I, 3)
    small = 1e-6 * torch.eye(3, dtype=torch.float64, device=matrix.device)
    a = torch.linalg.solve(matrix + small, vector)[:, 2].clamp(*CURVATURE)
    rest = torch.linalg.solve((matrix + small)[:, :2, :2], vector[:, :2] - a[:, None] * matrix[:, :2, 2])
    c, b = rest[:, 0], rest[:, 1]
    # For Quad, a h^2 + b h + c = (h' + 1)^2 / 8 + 3/8 + offset, where h' + 1 = root (h + b / 2a).
    root = (a / square.factor).sqrt()
    dense.weight.mul_(root[:, None].to(dense.weight))
    dense.bias.copy_(root * (dense.bias.double() + b / (2 * a)) - square.shift)
    offset = c - b.square() / (4 * a) - square.offset
    after.bias.add_((after.weight.double() @ offset).to(after.bias))


def _attention_pairs(source: Layer, layer: Layer, texts: list[_Text]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and wanted outputs of the map behind attention, (T, A D) and (T, H): its LayerNorm's input is theirs."""
    ours, theirs_parts = _Parts.of(layer), _Parts.of(source)
    for text in texts:
        context = Context(text.keys, None, [])
        inputs = ours.attention(text.student, context, "")
        theirs = theirs_parts.attention_output.dense(theirs_parts.attention(text.teacher, context, ""))
        before = _before(ours.attention_output.LayerNorm, theirs + text.teacher)
        yield inputs[text.real], (before - text.student)[text.real]


def _output_pairs(
    sources: Sequence[Layer], layer: Layer, texts: list[_Text]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and wanted outputs of the feed-forward's second map, (T, I) and (T, H)."""
    for text in texts:
        ours = _trace(layer, text.student, text)
        x = text.teacher
        for source in sources:
            theirs = _trace(source, x, text)
            x = theirs.after
        before = _before(_Parts.of(layer).output.LayerNorm, theirs.before)
        yield layer.activation(ours.inner)[text.real], (before - ours.middle)[text.real]


def _before(norm: Norm, theirs: torch.Tensor) -> torch.Tensor:
    """What a student's LayerNorm must be given to give what the teacher's, of the same gain, gives for `theirs`."""
    if norm.log_deviation is None:
        return theirs
    return nn.functional.layer_norm(theirs, theirs.shape[-1:], eps=norm.eps) * norm.log_deviation.exp()


def _advance(sources: Sequence[Layer], layer: Layer, texts: list[_Text]) -> dict[str, float]:
    """Bring both models' hidden states behind the layer; how far they are apart."""
    error = square = n = 0.0
    for text in texts:
        for source in sources:
            text.teacher = _trace(source, text.teacher, text).after
        text.student = _trace(layer, text.student, text).after
        theirs, ours = text.teacher[text.real], text.student[text.real]
        error += float((theirs - ours).square().sum())
        square += float(theirs.square().sum())
        n += theirs.numel()
    return {"error": error / n, "mean_square": square / n}
