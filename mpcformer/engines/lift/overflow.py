"""The model owner's proof, before a session, that no text whatever makes a value leave its ring unnoticed.

The bounds follow from the weights (`mpcformer.modeling.bounds`). Attention's weights are not negative and add up to at
most one where the row was in range. Where a constant divides rows, they add up to at most what the guard lets pass: for
some text scores may reach thirty times their usual size, and no ring would hold the square of that. A constant
LayerNorm does not divide by a row's deviation either; it leaves rows as long as the guard lets pass. Tables and the
guard watch variances and row sums during the run, because the bounds are too loose for them.

The proof is made twice: of the weights (`check_overflow`), and of the integers that are multiplied
(`check_rounded_overflow`), because rounding may lengthen what a map makes. An entry of a map is rounded to its last
place. The maps before a constant LayerNorm are divided by its unit; where the unit is large, half a last place may be
much of an entry.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from mpcformer.approximations import gelu_form
from mpcformer.engines.lift.scales import fixed_point as fp
from mpcformer.engines.lift.scales.model import LiftScales
from mpcformer.engines.lift.scales.norms import Norm
from mpcformer.engines.lift.scales.rows import LayerScales
from mpcformer.errors import RangeError
from mpcformer.modeling.bounds import (
    WorstCase,
    activated_length,
    column_bound,
    head_length,
    longest_row,
    score_bound,
    spectral_norm,
    worst_case,
)
from mpcformer.modeling.description import ModelDescription
from mpcformer.modeling.weights import BertWeights, LinearWeights

Tensors = Mapping[str, torch.Tensor]
MAX_VALUE_SHIFT = 4
# Rounding may make values this much larger: the rounded ones must fit where the exact ones were thought to.
ROUNDED_VALUES = 1.01
# The bias of a head's dense layer joins the activation's argument, and not the map's product.
DENSE_BIAS = "pooler.argument"
# Rows that a constant divides are computed in a unit that their calibrated range decides, and the weights behind divide
# them by c: errors grow by the ratio of the two. At 2^7 a context entry of usual size is right to about one percent.
MAX_UNIT_TO_DIVISOR = 2.0**7


@dataclass(frozen=True)
class Room:
    """The largest size of a value for any text, and the size that its ring carries."""

    name: str
    value: float
    room: float


def ring_room(bits: int, scale: int) -> float:
    """Return how large a number at `scale` may be in a ring of `bits`."""
    return float(2.0 ** (bits - 2 - scale))


def stream_room(norm: Norm) -> float:
    """Return how long a row may be before a LayerNorm."""
    return norm.unit * ring_room(norm.stream.bits, norm.scale)


def value_shift(layer: LayerScales, values: torch.Tensor) -> int:
    """Return how many bits smaller a layer's values are computed; the map behind attention makes up for it.

    Only the model owner knows, so it tells nobody anything.

    Args:
        layer: the layer's scales.
        values: bounds of the values, (A D,).
    """
    largest = ROUNDED_VALUES * fp.BOUND_SLACK * layer.row_slack * float(values.max())
    return max(0, math.ceil(math.log2(largest / layer.value_room)))


def check_overflow(config: ModelDescription, scales: LiftScales, weights: BertWeights) -> WorstCase:
    """Refuse a model some of whose values might leave their ring for some text.

    Returns:
        How large the model's values can be.

    Raises:
        RangeError: naming the value, its bound and the room.
    """
    guarded = [layer.row_slack * layer.unit for layer in scales.layers if not layer.divided]
    norms = scales.norms
    limits = {name: norms[name].limit for name in config.constant_norms}
    bounds = worst_case(config, weights, guarded or None, limits)
    for room in rooms(scales, bounds):
        _check_room(room)
    for n, (layer, weight, bound) in enumerate(zip(scales.layers, weights.layers, bounds.layers, strict=True)):
        if weight.log_divisor is not None:
            _check_unit(n, layer.unit * 2.0 ** value_shift(layer, bound.values), float(weight.log_divisor))
    return bounds


def check_rounded_overflow(config: ModelDescription, scales: LiftScales, weights: Tensors, biases: Tensors) -> None:
    """Refuse a model some of whose values might leave their ring for some text, with its weights rounded as they are.

    Args:
        config, scales: public.
        weights, biases: those of `OwnedWeights`.

    Raises:
        RangeError: naming the value, its bound and the room.
    """
    for room in rounded_rooms(config, scales, weights, biases):
        _check_room(room)


def _check_room(room: Room) -> None:
    if not fp.BOUND_SLACK * room.value < room.room:
        raise RangeError(
            f"{room.name} may reach {room.value:.4g} for some text; its ring carries {room.room:.4g}",
            _remedy(room.name),
            told=f"{room.name} may reach too far for some text; its ring carries {room.room:.4g}",
        )


def _remedy(name: str) -> str:
    """Return what makes room for a value."""
    if name == "logits":
        # Every logit shrinks alike, so the largest stays the largest.
        return (
            "divide the classifier's weight and bias by a number such as 1000, which changes no class, and export the"
            " student again, or use --engine crypten"
        )
    if name.endswith(".scores"):
        return (
            "distil the student again (an older release did not record how far its scores reach),"
            " or use --engine crypten"
        )
    if name == "pooler":
        return (
            "distil the student again (an older release did not record how far its head's dense layer reaches),"
            " or with a lower learning rate or another seed, or use --engine crypten"
        )
    return "distil the student again with a lower learning rate or another seed, or use --engine crypten"


def _check_unit(n: int, unit: float, log_divisor: float) -> None:
    ratio = unit / math.exp(log_divisor)
    if not ratio <= MAX_UNIT_TO_DIVISOR:
        what = f"layer.{n}.row_mean: the calibrated rows reach so far that errors grow"
        raise RangeError(
            f"{what} {ratio:.3g} times",
            f"at most {MAX_UNIT_TO_DIVISOR:.0f} is carried: distil the student again, or calibrate it on more"
            " typical sentences",
            told=f"{what} too much",
        )


def rooms(scales: LiftScales, bounds: WorstCase) -> Iterator[Room]:
    """Yield every private value that no table watches, and rows so short that their sum of squares is below 2^60."""
    yield Room("embeddings", bounds.embeddings, stream_room(scales.embedding_norm))
    activation, rings = scales.activation, scales.rings
    for n, (layer, bound) in enumerate(zip(scales.layers, bounds.layers, strict=True)):
        name, values = f"layer.{n}", layer.row_slack * float(bound.values.max())
        yield Room(f"{name}.scores", bound.scores, ring_room(rings.score_bits, rings.score_scale - layer.score_shift))
        yield Room(f"{name}.values", values, layer.value_room * 2**MAX_VALUE_SHIFT)
        yield Room(f"{name}.attended", bound.attended, stream_room(layer.attention_norm))
        yield Room(f"{name}.activation", float(bound.inner.max()), ring_room(activation.bits, activation.scale))
        yield Room(f"{name}.output", bound.output, stream_room(layer.output_norm))
    head = scales.head
    if head.dense is not None:
        yield Room("pooler", bounds.pooler, head.dense.reach)
    yield Room("logits", bounds.logits, head.logit_room)


def rounded_rooms(config: ModelDescription, scales: LiftScales, weights: Tensors, biases: Tensors) -> Iterator[Room]:
    """Yield the values of `rooms`, bounded by the rounded weights; attention's values may be computed smaller."""
    maps = _RoundedMaps(config, scales, weights, biases)
    norm, rings, head = scales.embedding_norm, scales.rings, scales.head
    yield Room("embeddings", norm.unit * maps.embeddings(), stream_room(norm))
    for n, layer in enumerate(scales.layers):
        width = config.embedding_size if n == 0 else config.hidden_size
        yield from maps.attention(f"layer.{n}", layer, norm, width)
        yield from maps.feed_forward(f"layer.{n}", layer)
        norm = layer.output_norm
    weight, bias = maps.linear("classifier", head.weight_scale, head.total_scale)
    if head.dense is None:
        logits = float(column_bound(weight, bias, maps.row_length(norm, config.hidden_size)).max())
    else:
        pooler = maps.linear("pooler", rings.pooler_weight_scale, head.dense.argument_scale, DENSE_BIAS)
        largest = float(column_bound(*pooler, maps.row_length(norm, config.hidden_size)).max())
        yield Room("pooler", largest, head.dense.reach)
        logits = float(((1.0 if head.is_tagged else largest) * weight.abs().sum(0) + bias.abs()).max())
    yield Room("logits", logits, head.logit_room)


class _RoundedMaps:
    """The linear maps as integers make them, and how large their results can be; arguments as `rounded_rooms`."""

    def __init__(self, config: ModelDescription, scales: LiftScales, weights: Tensors, biases: Tensors) -> None:
        self._config, self._scales, self._weights, self._biases = config, scales, weights, biases

    def linear(self, name: str, scale: int, total: int, bias_name: str = "") -> LinearWeights:
        """Return a map whose weights are encoded at `scale` and whose bias, of the same name or not, at `total`."""
        weight, bias = self._weights[name].double(), self._biases[bias_name or name].double()
        return LinearWeights(weight * 2.0**-scale, bias * 2.0**-total)

    def row_length(self, norm: Norm, hidden: int) -> float:
        """Return the largest length of a row of H numbers behind a LayerNorm, as the maps take it."""
        return math.sqrt(hidden) if norm.function is not None else math.sqrt(norm.limit * hidden) / norm.unit

    def embeddings(self) -> float:
        """Return the largest length of the embeddings' row."""
        config, scale = self._config, self._scales.embedding_norm.scale
        words = torch.split(self._weights["embeddings"], [config.vocab_size, config.type_vocab_size])
        return sum(longest_row(table) for table in (*words, self._biases["embeddings"])) * 2.0**-scale

    def attention(self, name: str, layer: LayerScales, before: Norm, width: int) -> Iterator[Room]:
        """Yield scores, values and the row behind attention.

        The layer's input, in rows of `width`, comes from the LayerNorm `before`.
        """
        config, rows, n_heads = self._config, self.row_length(before, width), self._config.num_attention_heads
        rings = self._scales.rings
        scale = rings.query_weight_scale
        weight, bias = self.linear(f"{name}.attention.scores", scale, rings.input_scale + scale)
        query, key = zip(weight.chunk(2, dim=1), bias.chunk(2), strict=True)
        scores = math.sqrt(config.head_size) * score_bound(query, key, n_heads, rows)  # the root is in the weights
        if f"{name}.attention.score_bias" in self._biases:
            raised = float(self._biases[f"{name}.attention.score_bias"].abs().max())
            scores += raised * 2.0**-rings.score_scale
        shifted = 2.0**layer.score_shift
        yield Room(f"{name}.scores", shifted * scores, shifted * ring_room(rings.score_bits, rings.score_scale))
        scale = rings.value_weight_scale
        value = self.linear(f"{name}.attention.values", scale, rings.input_scale + scale)
        yield Room(f"{name}.values", layer.row_slack * float(column_bound(*value, rows).max()), layer.value_room)
        context = (1.0 if layer.divided else layer.row_slack) * head_length(value, n_heads, rows)
        outer = self.linear(f"{name}.attention.output", rings.output_weight_scale, rings.output_scale)
        norm = layer.attention_norm
        attended = _length(outer, context) + self._residual(f"{name}.attention", rows)
        yield Room(f"{name}.attended", norm.unit * attended, stream_room(norm))

    def feed_forward(self, name: str, layer: LayerScales) -> Iterator[Room]:
        """Yield the activation's argument and the row behind the layer's last map."""
        activation, rings = self._scales.activation, self._scales.rings
        rows = self.row_length(layer.attention_norm, self._config.hidden_size)
        scale = rings.inner_weight_scale
        inner = self.linear(f"{name}.inner", scale, rings.input_scale + scale)
        largest = float(column_bound(*inner, rows).max())
        yield Room(f"{name}.activation", largest, ring_room(activation.bits, activation.scale))
        outer = self.linear(f"{name}.outer", activation.weight_scale, rings.outer_scale)
        norm = layer.output_norm
        growth = gelu_form(self._config.gelu).growth
        output = activated_length(inner, rows, outer, activation.square, growth) + self._residual(name, rows)
        yield Room(f"{name}.output", norm.unit * output, stream_room(norm))

    def _residual(self, name: str, rows: float) -> float:
        """Bound the length of gains of rows of length `rows`, less their mean; `name` is the prefix of both."""
        gain = self._weights[f"{name}.residual"].double() * 2.0**-self._scales.rings.residual_scale
        if gain.dim() == 2:  # a matrix, which is centred itself
            return spectral_norm(gain) * rows
        mean = self._weights[f"{name}.mean"][:, 0].double() * 2.0**-self._scales.rings.mean_scale
        hidden = gain.numel()
        uncentred = math.sqrt(hidden) * float((gain / hidden - mean).norm())  # what rounding leaves of the mean
        return (float(gain.abs().max()) + uncentred) * rows


def _length(linear: LinearWeights, length: float) -> float:
    """Return the largest length of a map of rows of `length`."""
    weight, bias = linear
    return spectral_norm(weight) * length + float(bias.norm())
