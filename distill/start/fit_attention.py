"""Fit an attention block to 2Quad: centre and scale its scores, and set the divisor of 2quad-const.

Source of 2Quad: Li et al., MPCFormer, ICLR 2023.
"""

import math

import torch

from distill.start.layer_trace import LayerParts, Text
from distill.start.moments import Moments
from mpcformer.modeling.encoder import Context, Layer, SelfAttention

# A row's mean of (s + 5)^2 should lie in this interval: the tables of a private reciprocal grow with the ratio of its
# bounds. The fit chooses scales by it, and training adds a loss outside it.
ROW_MEANS = (4.0, 100.0)
# The factors that are tried for a head's scores.
SCALES = (0.25, 0.5, 0.9, 1.3, 1.8, 2.3, 3.0, 4.0, 5.5, 8.0)
# Only one batch in so many is used to choose among the scales.
SCALE_STRIDE = 4


def centre_scores(layer: Layer, texts: list[Text]) -> None:
    """Subtract the average key from the key bias, and the average bias of scores, if they have one, from that bias.

    This moves a row's mean score to about zero.
    """
    attention, average = LayerParts.of(layer).attention, Moments()
    for text in texts:
        average.add(attention.key(text.student)[text.real])
    attention.key.bias.sub_(average.mean().to(attention.key.bias))
    if attention.score_bias is not None:
        total, n = torch.zeros(attention.n_heads, dtype=torch.float64), 0.0
        for text in texts:
            pairs = text.mask[:, :, None] * text.mask[:, None, :]  # (B, L, L)
            total += torch.einsum("ajk,bjk->a", attention.bias(pairs.size(1)), pairs).double().cpu()
            n += float(pairs.sum())
        attention.score_bias.weight.sub_((total / n).to(attention.score_bias.weight))


def scale_scores(source: Layer, layer: Layer, texts: list[Text]) -> None:
    """Multiply each head's query by the factor that brings its attended values nearest to the teacher's.

    Factors that push a row's mean out of ROW_MEANS are chosen only if every factor does. The distance ignores a common
    factor per head, because the refit of the next linear map makes up for such a factor.
    """
    theirs, ours = LayerParts.of(source).attention, LayerParts.of(layer).attention
    distance, excess = _distances(theirs, ours, texts), _excess(ours, texts)
    best = torch.where(excess > 0, distance.max() * (1 + excess), distance).argmin(0)
    head_size = ours.query.out_features // ours.n_heads
    scales = torch.tensor(SCALES)[best].to(ours.query.weight).repeat_interleave(head_size)
    ours.query.weight.mul_(scales[:, None])
    ours.query.bias.mul_(scales)
    if ours.score_bias is not None:
        ours.score_bias.weight.mul_(torch.tensor(SCALES)[best].to(scales))


def _distances(theirs: SelfAttention, ours: SelfAttention, texts: list[Text]) -> torch.Tensor:
    """Return the squared distance of attended values at each scale, up to a factor: float64 (scales, heads)."""
    products = torch.zeros(3, len(SCALES), ours.n_heads, dtype=torch.float64)
    for text in texts[::SCALE_STRIDE]:
        weight = text.mask[:, None, :, None]
        target = _attended(theirs, text.teacher, 1.0, text.keys)
        for index, scale in enumerate(SCALES):
            found = _attended(ours, text.student, scale, text.keys)
            for row, product in enumerate((found * target, found * found, target * target)):
                products[row, index] += (product * weight).sum((0, 2, 3)).double().cpu()
    mixed, own, wanted = products.unbind()
    return wanted - mixed.square() / own.clamp(min=1e-12)


def _excess(attention: SelfAttention, texts: list[Text]) -> torch.Tensor:
    """Return how far row means of (scale s + 5)^2 leave ROW_MEANS, as a logarithm: (scales, heads), 0 if none does."""
    shift = attention.form.square_shift
    assert shift is not None
    low = torch.full((len(SCALES), attention.n_heads), math.inf)
    high = torch.zeros(len(SCALES), attention.n_heads)
    for text in texts:
        context = Context(text.keys, None, [])
        attention(text.student, context, "")
        scores, n_keys = context.scores[0], text.keys.sum(-1)
        first, second = ((text.keys * power).sum(-1) / n_keys for power in (scores, scores.square()))  # (B, A, L)
        first, second = (moment.transpose(1, 2)[text.real].t().cpu() for moment in (first, second))  # (A, T)
        # The scales are rounded to float32, in which `scale_scores` applies them.
        for index, scale in enumerate(torch.tensor(SCALES).tolist()):
            rows = scale * scale * second + 2 * shift * scale * first + shift**2
            low[index] = torch.minimum(low[index], rows.amin(1))
            high[index] = torch.maximum(high[index], rows.amax(1))
    least, most = ROW_MEANS
    return torch.relu((least / low.clamp(min=1e-6)).log()) + torch.relu((high / most).log())


def _attended(attention: SelfAttention, x: torch.Tensor, scale: float, keys: torch.Tensor) -> torch.Tensor:
    """Return the attended values, (B, A, L, D), when all scores are multiplied by `scale`."""
    parts = (attention.query(x), attention.key(x), attention.value(x))
    query, key, value = (_split_heads(part, attention.n_heads) for part in parts)
    return attention.form(scale * attention.scores(query, key), keys)[0] @ value


def _split_heads(x: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Reshape (B, L, H) to (B, A, L, D)."""
    return x.view(*x.shape[:2], n_heads, -1).transpose(1, 2)


def fit_divisor(layer: Layer, texts: list[Text]) -> None:
    """Set the divisor of 2quad-const to the mean of (s + 5)^2: rows then add up to one on average."""
    total, count, attention = 0.0, 0.0, LayerParts.of(layer).attention
    assert attention.log_divisor is not None
    for text in texts:
        context = Context(text.keys, None, [])
        attention(text.student, context, "")
        mean = attention.form(context.scores[0], text.keys)[1][..., 0]  # (B, A, L)
        total += float((mean * text.mask[:, None, :]).sum())
        count += float(text.mask.sum()) * mean.size(1)
    attention.log_divisor.fill_(math.log(total / count))
