"""Bounds of a model's inner values for any text whatever, which follow from its weights alone.

A row that LayerNorm has normalised has length sqrt(H), so Cauchy and Schwarz bound every linear map of it, and the
spectral norm every bilinear one. A constant LayerNorm does not normalise: its rows are as long as a limit of their
variance allows, and private engines enforce that limit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mpcformer.approximations import gelu_form, softmax_form
from mpcformer.approximations.forms import ShiftedSquare
from mpcformer.modeling.description import ModelDescription
from mpcformer.modeling.weights import BertWeights, LinearWeights, NormWeights

Linear = tuple[torch.Tensor, torch.Tensor]
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class LayerWorstCase:
    """The largest sizes of the values in one encoder layer.

    Args:
        scores: the largest |score|.
        values: the largest |value| of each column, (A D,) for A heads of size D.
        attended: the length of the row that the first LayerNorm sees, if attention's weights add up to at most one, or
            to what `worst_case` is told.
        inner: the largest |argument| of GeLU by column, (I,).
        output: the length of the row that the second LayerNorm sees.
    """

    scores: float
    values: torch.Tensor
    attended: float
    inner: torch.Tensor
    output: float


@dataclass(frozen=True)
class WorstCase:
    """The largest sizes of the values in a model.

    Args:
        embeddings: the length of the embeddings' row.
        layers: the values of each encoder layer.
        pooler: the largest |argument| of the pooler's tanh.
        logits: the largest |logit|.
    """

    embeddings: float
    layers: list[LayerWorstCase]
    pooler: float
    logits: float


@dataclass(frozen=True)
class NormBounds:
    """A LayerNorm's gain and bias (H,), and the largest length of the rows to which they are applied.

    Behind the embeddings' LayerNorm a map to the layers may stand. Then gain and bias have the embeddings' width.
    """

    gain: torch.Tensor
    bias: torch.Tensor
    length: float
    projection: LinearWeights | None = None


def column_bound(weight: torch.Tensor, bias: torch.Tensor, length: float) -> torch.Tensor:
    """Return the largest |n weight + bias| of each column over all rows n of `length`; weight (H, out), bias (out,)."""
    reach: torch.Tensor = weight.norm(dim=0) * length + bias.abs()
    return reach


def centred_columns(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight (in, out) without the part that a row orthogonal to 1 does not see."""
    return weight - weight.mean(0, keepdim=True)


def longest_row(table: torch.Tensor) -> float:
    """Return the largest length of a row of (R, H); the table may have so many rows that a copy is too large."""
    starts = range(0, table.size(0), ROWS_AT_ONCE)
    return max(float(table[first : first + ROWS_AT_ONCE].double().norm(dim=1).max()) for first in starts)


def spectral_norm(weight: torch.Tensor) -> float:
    """Return the largest |x weight| / |x|, from the smaller Gram matrix: a tenth of the time of a decomposition."""
    gram = weight @ weight.t() if weight.size(0) < weight.size(1) else weight.t() @ weight
    return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(gram)[-1])))


def head_length(values: Linear, n_heads: int, length: float) -> float:
    """Return the largest length of a row (A D,) whose heads average, by any weights, the values of rows of `length`."""
    weight, bias = values
    parts = zip(weight.chunk(n_heads, dim=1), bias.chunk(n_heads), strict=True)
    return math.hypot(*(spectral_norm(part) * length + float(offset.norm()) for part, offset in parts))


def activated_length(
    inner: Linear, length: float, outer: Linear, square: ShiftedSquare | None, growth: float = 1.0
) -> float:
    """Return a bound of the length of g(n inner) outer, for all rows n of `length` and a form g of GeLU.

    Each unit's g is d times u, which is its argument plus the square's shift. Where g is a square, |d| is at most its
    factor times the largest |u|; elsewhere it is at most `growth`. With any positive scale s for each unit, the result
    is that of the map before g, times d / s, and then of s times the map behind g, so its length is bounded by the
    product of the two spectral norms. The s below balances the sizes of both; a bound that takes the largest d for all
    units comes out three to five times as large for trained students.

    Args:
        inner: the map (H, I) and (I,) before g.
        length: the rows'.
        outer: the map (I, H) and (H,) behind g.
        square: g, if it is one.
        growth: as `GeluForm` states it.
    """
    weight, bias = inner
    behind, offset = outer
    largest, slope = column_bound(weight, bias, length), torch.full_like(bias, growth)
    if square is not None:
        bias, offset = bias + square.shift, offset + square.offset * behind.sum(0)
        largest = column_bound(weight, bias, length)
        slope = square.factor * largest
    scale = torch.sqrt(_not_zero(slope * largest) / _not_zero(behind.norm(dim=1)))
    share = slope / scale
    before = spectral_norm(weight * share) * length + float((bias * share).norm())
    return spectral_norm(scale[:, None] * behind) * before + float(offset.norm())


def _not_zero(sizes: torch.Tensor) -> torch.Tensor:
    """Return sizes with those that are next to nothing beside the largest raised, so that one may divide by them."""
    return sizes.clamp(min=max(1e-12 * float(sizes.max()), 1e-100))


def score_bound(query: Linear, key: Linear, n_heads: int, length: float) -> float:
    """Return the largest |score| of any head, for weights (H, A D) and biases (A D,) that take rows of `length`."""
    size = query[0].size(1) // n_heads
    largest = 0.0
    for head in range(n_heads):
        part = slice(head * size, (head + 1) * size)
        (q, q_bias), (k, k_bias) = ((weight[:, part], bias[part]) for weight, bias in (query, key))
        # The norm of q k^T is that of the small factors of the QR decompositions.
        product = spectral_norm(torch.linalg.qr(q).R @ torch.linalg.qr(k).R.t()) * length**2
        mixed = float((q @ k_bias).norm() + (k @ q_bias).norm()) * length
        largest = max(largest, (product + mixed + abs(float(q_bias @ k_bias))) / math.sqrt(size))
    return largest


def worst_case(
    config: ModelDescription,
    weights: BertWeights,
    row_means: Sequence[float] | None = None,
    norm_limits: Mapping[str, float] | None = None,
) -> WorstCase:
    """Return how large the values of a model can be.

    Args:
        config: the student's configuration.
        weights: the student's weights.
        row_means: by layer, how large a row's mean numerator may be where a learnt constant c divides rows: attention's
            weights add up to that / c. None stands for weights that add up to at most one.
        norm_limits: by name, how large a row's variance may be at each constant LayerNorm.

    Raises:
        UserInputError: a form of the configuration is unknown.
    """
    n_heads, activation = config.num_attention_heads, gelu_form(config.gelu)
    softmax_form(config.softmax)
    limits = norm_limits or {}
    embeddings = sum(longest_row(table.cpu()) for table in (weights.words, weights.token_types, weights.positions))
    before = _norm_bounds(weights.embedding_norm, limits.get("embeddings"), weights.projection)
    layers: list[LayerWorstCase] = []
    for n, layer in enumerate(weights.layers):
        query, key, value = (_after(before, linear.double()) for linear in (layer.query, layer.key, layer.value))
        scores, values = score_bound(query, key, n_heads, before.length), column_bound(*value, before.length)
        if layer.score_bias is not None:
            scores += float(layer.score_bias.abs().max())
        row = 1.0
        if row_means and layer.log_divisor is not None:
            row = row_means[n] * float(torch.exp(-layer.log_divisor.double()))
        length = row * head_length(value, n_heads, before.length)
        weight, offset = layer.output.double()
        attended = spectral_norm(weight) * length + float(offset.norm()) + _residual_length(before)
        before = _norm_bounds(layer.attention_norm, limits.get(f"layer.{n}.attention"))
        inner_map = _after(before, layer.inner.double())
        inner = column_bound(*inner_map, before.length)
        # The mean of a row before LayerNorm is subtracted with the map's.
        outer = _centred(layer.outer.double())
        output = activated_length(inner_map, before.length, outer, activation.square, activation.growth)
        output += _residual_length(before)
        before = _norm_bounds(layer.output_norm, limits.get(f"layer.{n}.output"))
        layers.append(LayerWorstCase(scores, values, attended, inner, output))
    if weights.pooler is None:
        logits = float(column_bound(*_after(before, weights.classifier.double()), before.length).max())
        return WorstCase(embeddings, layers, 0.0, logits)
    pooler = float(column_bound(*_after(before, weights.pooler.double()), before.length).max())
    weight, bias = weights.classifier.double()
    # What stands behind tanh is at most one. The other activations make no number larger.
    largest = 1.0 if config.head_activation == "tanh" else pooler
    logits = float((largest * weight.abs().sum(0) + bias.abs()).max())
    return WorstCase(embeddings, layers, pooler, logits)


def _norm_bounds(norm: NormWeights, limit: float | None, projection: LinearWeights | None = None) -> NormBounds:
    """Bound the rows of a LayerNorm; `limit` bounds the variance before a constant one."""
    deviation, norm, variance = norm.deviation, norm.double(), 1.0
    if deviation is not None:
        if limit is None:
            raise ValueError("a constant LayerNorm has no limit of its rows' variance")
        variance = limit / deviation**2
    after = None if projection is None else projection.double()
    return NormBounds(norm.gain, norm.bias, math.sqrt(norm.gain.size(0) * variance), after)


def _after(norm: NormBounds, linear: LinearWeights) -> LinearWeights:
    """Return a map of a LayerNorm's result as a map of the row before gain and bias, which is orthogonal to 1."""
    weight, offset = linear
    if norm.projection is not None:
        weight, offset = norm.projection.weight @ weight, norm.projection.bias @ weight + offset
    return LinearWeights(centred_columns(norm.gain[:, None] * weight), norm.bias @ weight + offset)


def _centred(linear: LinearWeights) -> LinearWeights:
    """Return a map without the mean of its result."""
    weight, offset = linear
    return LinearWeights(weight - weight.mean(1, keepdim=True), offset - offset.mean())


def _residual_length(norm: NormBounds) -> float:
    """Bound the length of a residual, the rows behind a LayerNorm. Subtracting a row's mean makes it shorter."""
    if norm.projection is None:
        return float(norm.gain.abs().max()) * norm.length + float(norm.bias.norm())
    rows = _after(norm, LinearWeights(torch.eye(norm.projection.bias.numel()).double(), torch.zeros(()).double()))
    return spectral_norm(rows.weight) * norm.length + float(rows.bias.norm())
