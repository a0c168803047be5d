"""The model owner's weights as the engine takes them: integers, centred, with public factors folded in.

A LayerNorm's gain and bias fold into the next linear map; so does a map between the embeddings and the layers. The mean
that the next LayerNorm subtracts is subtracted from every map that leads to it: weights (out) are centred over their
columns, and what the residual adds to the mean is a map of its own (`mean`) with the same input. Where a learnt
constant c divides attention's rows, it divides the map behind attention. The stream before a constant LayerNorm is
computed in units: the maps before it are divided by the unit, and the LayerNorm's gain becomes gain times the unit,
over the constant.
"""

import math
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, replace

import torch

from mpcformer.channel import Spec
from mpcformer.engines.lift.overflow import DENSE_BIAS, check_overflow, check_rounded_overflow, value_shift
from mpcformer.engines.lift.rounding import check_rounding
from mpcformer.engines.lift.scales.fixed_point import Rings
from mpcformer.engines.lift.scales.model import Activation, LiftScales
from mpcformer.engines.lift.scales.norms import Norm
from mpcformer.engines.lift.scales.rows import LayerScales
from mpcformer.errors import RangeError
from mpcformer.modeling.bounds import centred_columns
from mpcformer.modeling.description import ModelDescription
from mpcformer.modeling.quantised import query_fraction
from mpcformer.modeling.weights import BertWeights, LayerWeights, LinearWeights, NormWeights, bert_weights
from mpcformer.ring.gemm import ShortMatrix
from mpcformer.ring.packing import packed_bytes

Shape = tuple[int, ...]
# The width in which public tables are sent.
TABLE_BITS = 32
ROWS_AT_ONCE = 1024


def weight_shapes(config: ModelDescription, embeddings: str = "private_table") -> dict[str, Shape]:
    """Return the shape of every weight by name: (in, out), or (in,) for a diagonal. Public tables are no weights.

    Queries and keys are one weight, `attention.scores`. The weights of a residual and of its mean are `residual` and
    `mean`: those of a layer's input begin with `attention`, the other ones are those of the row behind attention.
    Behind a map from the embeddings to the layers, the first residual is a matrix, and centred itself.
    """
    hidden, attended, inner = config.hidden_size, config.attention_size, config.intermediate_size
    width = config.embedding_size
    shapes: dict[str, Shape] = {}
    if embeddings == "private_table":
        shapes["embeddings"] = (config.vocab_size + config.type_vocab_size, width)
    for n in range(config.num_hidden_layers):
        n_in = width if n == 0 else hidden
        shapes[f"layer.{n}.attention.scores"] = (n_in, 2 * attended)
        shapes[f"layer.{n}.attention.values"] = (n_in, attended)
        if n == 0 and config.projection:
            shapes[f"layer.{n}.attention.residual"] = (width, hidden)
        else:
            shapes[f"layer.{n}.attention.residual"] = (hidden,)
            shapes[f"layer.{n}.attention.mean"] = (hidden, 1)
        shapes[f"layer.{n}.attention.output"] = (attended, hidden)
        shapes[f"layer.{n}.inner"] = (hidden, inner)
        shapes[f"layer.{n}.residual"] = (hidden,)
        shapes[f"layer.{n}.mean"] = (hidden, 1)
        shapes[f"layer.{n}.outer"] = (inner, hidden)
    if config.has_dense:
        shapes["pooler"] = (hidden, hidden)
    shapes["classifier"] = (hidden, config.num_labels)
    return shapes


def masked_specs(
    config: ModelDescription, scales: LiftScales, embeddings: str = "private_table"
) -> list[tuple[str, Spec]]:
    """Return what the data owner receives of each weight at set-up, by name."""
    return [
        (name, Spec(torch.uint8, (packed_bytes(math.prod(shape), scales.weight_bits(name)),)))
        for name, shape in weight_shapes(config, embeddings).items()
    ]


def attention_parts(config: ModelDescription, index: int) -> tuple[str, ...]:
    """Return the names, within a layer, of the weights that a layer's input is multiplied by."""
    parts = tuple(f"attention.{part}" for part in ("scores", "values", "residual", "mean"))
    return parts[:3] if index == 0 and config.projection else parts


@dataclass(repr=False)
class OwnedWeights:
    """The weights as integers, shaped as in `weight_shapes`, and biases at the scale of the map's result.

    Among the biases are also those of scores by group of distances, (groups, A), as `layer.N.attention.score_bias`, and
    of a head's dense layer, at the scale of the activation's argument, as DENSE_BIAS.
    """

    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    biases: dict[str, torch.Tensor] = field(default_factory=dict)
    # The matrices among the weights whose products are faster than those of any ring elements; they share their memory.
    short: dict[str, ShortMatrix] = field(default_factory=dict)

    def put(self, name: str, weight: torch.Tensor, scale: int) -> None:
        """Encode a weight at `scale`.

        Raises:
            RangeError: fixed point cannot carry it.
        """
        encoded = _encode(name, weight, scale)
        if encoded.numel() and float(encoded.double().abs().max()) < 2.0**31:
            # Nearly all weights fit, and half or a quarter of the memory holds them.
            encoded = encoded.to(torch.int32)
            if encoded.dim() == 2 and name != "classifier":
                self.short[name] = ShortMatrix.of(encoded)
                encoded = self.short[name].numbers
        self.weights[name] = encoded

    def put_map(self, name: str, linear: LinearWeights, scale: int, total: int) -> None:
        """Encode a map, its weight at `scale` and its bias at `total`.

        Raises:
            RangeError: fixed point cannot carry it.
        """
        self.put(name, linear.weight, scale)
        self.biases[name] = _encode(f"{name}.bias", linear.bias, total)

    def __repr__(self) -> str:
        return f"OwnedWeights(<{len(self.weights)} tensors hidden>)"


@dataclass(frozen=True, repr=False)
class _Gain:
    """A LayerNorm's gain and bias (H,), which fold into the maps of its rows, with a constant LayerNorm's factors.

    Behind the embeddings' LayerNorm a map to the layers may stand, which folds too. `bias` is the one after it.
    """

    gain: torch.Tensor
    bias: torch.Tensor
    projection: torch.Tensor | None = None

    @classmethod
    def of(cls, weights: NormWeights, norm: Norm, projection: LinearWeights | None = None) -> "_Gain":
        weights, deviation = weights.double(), weights.deviation
        gain = weights.gain * (1.0 if deviation is None else norm.unit / deviation)
        if projection is None:
            return cls(gain, weights.bias)
        projection = projection.double()
        return cls(gain, weights.bias @ projection.weight + projection.bias, gain[:, None] * projection.weight)

    def folded(self, linear: LinearWeights) -> LinearWeights:
        """Return a map of the LayerNorm's result as a map of the row before gain and bias, which is centred."""
        if self.projection is None:
            weight = centred_columns(self.gain[:, None] * linear.weight)
        else:
            weight = centred_columns(self.projection @ linear.weight)
        return LinearWeights(weight, self.bias @ linear.weight + linear.bias)

    def put_residual(self, owned: OwnedWeights, name: str, unit: float, rings: Rings) -> None:
        """Encode the residual of the rows, in the unit of the next stream, and its mean; `name` is their prefix."""
        if self.projection is not None:
            owned.put(f"{name}.residual", _centred(self.projection) / unit, rings.residual_scale)
            return
        owned.put(f"{name}.residual", self.gain / unit, rings.residual_scale)
        owned.put(f"{name}.mean", self.gain[:, None] / (unit * self.gain.numel()), rings.mean_scale)

    def centred(self, linear: LinearWeights, unit: float) -> LinearWeights:
        """Return a map to the next LayerNorm's stream: centred, in its unit, and with the residual's bias."""
        return LinearWeights(_centred(linear.weight) / unit, _centred(linear.bias + self.bias) / unit)


def owned_weights(
    config: ModelDescription, scales: LiftScales, state: Mapping[str, torch.Tensor], *, frees: bool = False
) -> OwnedWeights:
    """Return the integers of a BERT state dict.

    Args:
        config: the model's description.
        scales: its scales.
        state: the weights.
        frees: whether to empty `state`, a dictionary, so that the memory of each weight is free when it is encoded.

    Raises:
        RangeError: a value that fixed point cannot carry, one that might overflow its ring for some text, or a head
            that makes too much of rounding.
        UserInputError: a tensor is missing or has another shape than the configuration says.
    """
    weights = bert_weights(state, config)
    bounds = check_overflow(config, scales, weights)
    check_rounding(config, scales, state)
    layers = list(weights.layers)
    weights = replace(weights, layers=())
    if frees and isinstance(state, MutableMapping):
        state.clear()
    owned, rings = OwnedWeights(), scales.rings
    _put_embeddings(owned, weights, scales.embedding_norm)
    weights = replace(weights, words=torch.empty(0), token_types=torch.empty(0), positions=torch.empty(0))
    gain = _Gain.of(weights.embedding_norm, scales.embedding_norm, weights.projection)
    for n, layer_scales in enumerate(scales.layers):
        layer, name = layers.pop(0), f"layer.{n}"
        smaller = value_shift(layer_scales, bounds.layers[n].values)
        _put_attention(owned, f"{name}.attention", layer, layer_scales, gain, smaller, config.head_size)
        gain = _Gain.of(layer.attention_norm, layer_scales.attention_norm)
        _put_feed_forward(owned, name, layer, layer_scales, gain, scales.activation)
        gain = _Gain.of(layer.output_norm, layer_scales.output_norm)
    head, classifier = scales.head, weights.classifier.double()
    if weights.pooler is None or head.dense is None:
        classifier = gain.folded(classifier)
    else:
        pooler = gain.folded(weights.pooler.double())
        owned.put("pooler", pooler.weight, rings.pooler_weight_scale)
        owned.biases[DENSE_BIAS] = _encode("pooler.bias", pooler.bias, head.dense.argument_scale)
    owned.put_map("classifier", classifier, head.weight_scale, head.total_scale)
    check_rounded_overflow(config, scales, owned.weights, owned.biases)
    return owned


def _put_embeddings(owned: OwnedWeights, weights: BertWeights, norm: Norm) -> None:
    def encoded(table: torch.Tensor) -> Iterator[torch.Tensor]:
        # The words are many: in one piece, their copies would decide how much memory the model owner needs.
        for first in range(0, table.size(0), ROWS_AT_ONCE):
            rows = table[first : first + ROWS_AT_ONCE].double()
            yield _encode("embeddings", _centred(rows) / norm.unit, norm.scale)

    tables = weights.words, weights.token_types
    rows = torch.empty((sum(table.size(0) for table in tables), weights.words.size(1)), dtype=torch.int32)
    at = 0
    for part in (part for table in tables for part in encoded(table)):
        rows[at : at + part.size(0)] = part
        at += part.size(0)
    owned.weights["embeddings"] = rows
    owned.biases["embeddings"] = torch.cat(list(encoded(weights.positions)))


def _put_attention(
    owned: OwnedWeights, name: str, layer: LayerWeights, scales: LayerScales, gain: _Gain, smaller: int, head_size: int
) -> None:
    """Encode queries and keys as one map, the values, the residual, and the map behind attention.

    Args:
        owned: what is added to.
        name: the prefix of the maps' names.
        layer: the layer's weights.
        scales: the layer's scales.
        gain: what the layer's input is multiplied by first.
        smaller: how many bits smaller the values are computed.
        head_size: D; queries and keys share the division of scores by its root.
    """
    unit, rings = scales.attention_norm.unit, scales.rings
    # Queries and keys share the factor, as evenly as the keys' being a power of two allows.
    fraction = query_fraction(head_size)
    log_factor = round(-math.log2(head_size) / 2 - math.log2(fraction)) - scales.score_shift
    factors = fraction * 2.0 ** (log_factor - log_factor // 2), 2.0 ** (log_factor // 2)
    parts = [gain.folded(w.double()).times(f) for w, f in zip((layer.query, layer.key), factors, strict=True)]
    both = LinearWeights(torch.cat([p.weight for p in parts], dim=1), torch.cat([p.bias for p in parts]))
    owned.put_map(f"{name}.scores", both, rings.query_weight_scale, rings.input_scale + rings.query_weight_scale)
    value = gain.folded(layer.value.double()).times(2.0**-smaller)
    owned.put_map(f"{name}.values", value, rings.value_weight_scale, rings.input_scale + rings.value_weight_scale)
    gain.put_residual(owned, name, unit, rings)
    weight, bias = gain.centred(layer.output.double(), unit)
    if layer.log_divisor is not None:
        weight = weight * scales.unit * torch.exp(-layer.log_divisor.double())
    output = LinearWeights(weight * 2.0**smaller, bias)
    owned.put_map(f"{name}.output", output, rings.output_weight_scale, rings.output_scale)
    if layer.score_bias is not None:
        table, scale = layer.score_bias.double().cpu(), rings.score_scale - scales.score_shift
        owned.biases[f"{name}.score_bias"] = _encode(f"{name}.score_bias", table, scale)


def _put_feed_forward(
    owned: OwnedWeights, name: str, layer: LayerWeights, scales: LayerScales, gain: _Gain, activation: Activation
) -> None:
    """Encode the map before the activation, the residual, and the map behind the activation, which carries its rest."""
    unit, rings = scales.output_norm.unit, scales.rings
    inner = gain.folded(layer.inner.double())
    owned.put_map(f"{name}.inner", inner, rings.inner_weight_scale, rings.input_scale + rings.inner_weight_scale)
    gain.put_residual(owned, name, unit, rings)
    weight, bias = gain.centred(layer.outer.double(), unit)
    outer = LinearWeights(weight * activation.factor, bias + activation.addend * weight.sum(0))
    owned.put_map(f"{name}.outer", outer, activation.weight_scale, rings.outer_scale)


def _centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(-1, keepdim=True)


def _encode(name: str, value: torch.Tensor, scale: int) -> torch.Tensor:
    scaled = (value * 2.0**scale).round()
    if not bool(torch.isfinite(scaled).all()) or float(scaled.abs().max()) >= 2.0**62:
        raise RangeError(f"weight {name} is not finite or too large for fixed point", "check the checkpoint")
    return scaled.to(torch.int64).contiguous()  # torch multiplies row-major int64 half as fast again
