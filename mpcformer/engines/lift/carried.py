"""The proof of `overflow` once more, from the integers that are multiplied: rounding may lengthen what a map makes.

An entry of a map is rounded to its last place. The maps before a constant LayerNorm are divided by its unit: where that
is large, half a last place may be much of an entry. So the bounds are those of the rounded maps.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from mpcformer.engines.lift import fixed_point as fp
from mpcformer.engines.lift.norms import Norm
from mpcformer.engines.lift.overflow import Room, check_room, ring_room, stream_room
from mpcformer.engines.lift.scales import LiftScales, computed_length
from mpcformer.modeling.bounds import Linear, column_bound, head_length, score_bound, spectral_norm

Tensors = Mapping[str, torch.Tensor]


def check_carried(config: Any, constants: LiftScales, weights: Tensors, biases: Tensors) -> None:
    """Refuse a model some of whose values might leave their ring for some text, weights rounded as they are.

    Args:
        config, constants: public.
        weights, biases: those of `OwnedWeights`.

    Raises:
        RangeError: naming the value, its bound and the room.
    """
    for room in carried_rooms(config, constants, weights, biases):
        check_room(room)


def carried_rooms(config: Any, constants: LiftScales, weights: Tensors, biases: Tensors) -> Iterator[Room]:
    """As `overflow.rooms`; values are taken as they are computed, perhaps smaller than they are."""
    hidden, n_heads, activation = config.hidden_size, config.num_attention_heads, constants.activation

    def linear(name: str, scale: int, total: int) -> Linear:
        """A map and its bias, encoded at `scale` and `total`."""
        return weights[name].double() * 2.0**-scale, biases[name].double() * 2.0**-total

    def stream(outer: Linear, length: float, residual: str, mean: torch.Tensor, rows: float) -> float:
        """Length of a map of rows of `length`, plus gains of rows of length `rows`, less the mean of these."""
        gain = weights[residual].double() * 2.0**-fp.RESIDUAL_SCALE
        uncentred = math.sqrt(hidden) * float((gain / hidden - mean).norm())  # what rounding leaves of the mean
        return _length(outer, length) + (float(gain.abs().max()) + uncentred) * rows

    norm = constants.embedding_norm
    words, positions = linear("embeddings", norm.scale, norm.scale)
    tables = *torch.split(words, [config.vocab_size, config.type_vocab_size]), positions
    yield Room("embeddings", norm.unit * sum(float(table.norm(dim=1).max()) for table in tables), stream_room(norm))
    for n, layer in enumerate(constants.layers):
        name, rows = f"layer.{n}", _row_length(norm, hidden)
        weight, bias = linear(f"{name}.attention", fp.QUERY_WEIGHT_SCALE, fp.INPUT_SCALE + fp.QUERY_WEIGHT_SCALE)
        query, key, value = zip(weight[:, :-1].chunk(3, dim=1), bias[:-1].chunk(3), strict=True)
        scores = math.sqrt(config.head_size) * score_bound(query, key, n_heads, rows)  # the root is in the weights
        shifted = 2.0**layer.score_shift
        yield Room(f"{name}.scores", shifted * scores, shifted * ring_room(fp.SCORE_BITS, fp.SCORE_SCALE))
        finer = 2.0 ** (fp.QUERY_WEIGHT_SCALE - fp.VALUE_WEIGHT_SCALE)
        value = value[0] * finer, value[1] * finer
        yield Room(f"{name}.values", layer.row_slack * float(column_bound(*value, rows).max()), layer.value_room)
        context = (1.0 if layer.divided else layer.row_slack) * head_length(value, n_heads, rows)
        mean = weight[:, -1] * 2.0 ** (fp.QUERY_WEIGHT_SCALE - fp.MEAN_SCALE)
        outer = linear(f"{name}.attention.output", fp.OUTPUT_WEIGHT_SCALE, fp.ATTENDED_SCALE + fp.OUTPUT_WEIGHT_SCALE)
        norm = layer.attention_norm
        attended = stream(outer, context, f"{name}.attention.residual", mean, rows)
        yield Room(f"{name}.attended", norm.unit * attended, stream_room(norm))

        rows = _row_length(norm, hidden)
        weight, bias = linear(f"{name}.inner", fp.INNER_WEIGHT_SCALE, fp.INPUT_SCALE + fp.INNER_WEIGHT_SCALE)
        inner = weight[:, :-1], bias[:-1]
        largest, length = float(column_bound(*inner, rows).max()), _length(inner, rows)
        yield Room(f"{name}.activation", largest, ring_room(activation.bits, activation.scale))
        length = computed_length(activation, config.gelu, largest, length, config.intermediate_size)
        mean = weight[:, -1] * 2.0 ** (fp.INNER_WEIGHT_SCALE - fp.MEAN_SCALE)
        outer = linear(f"{name}.outer", activation.weight_scale, fp.OUTER_SCALE)
        norm = layer.output_norm
        output = stream(outer, length, f"{name}.residual", mean, rows)
        yield Room(f"{name}.output", norm.unit * output, stream_room(norm))
    pooler = linear("pooler", fp.POOLER_WEIGHT_SCALE, fp.INPUT_SCALE + fp.POOLER_WEIGHT_SCALE)
    largest = float(column_bound(*pooler, _row_length(norm, hidden)).max())
    yield Room("pooler", largest, ring_room(fp.TANH_BITS, fp.TANH_SCALE))
    weight, bias = linear("classifier", fp.LOGIT_WEIGHT_SCALE, fp.LOGIT_TOTAL_SCALE)
    logits = float((weight.abs().sum(0) + bias.abs()).max())
    yield Room("logits", logits, ring_room(fp.LOGIT_BITS, fp.LOGIT_TOTAL_SCALE))


def _row_length(norm: Norm, hidden: int) -> float:
    """The largest length of a row behind it, as the maps take it."""
    return math.sqrt(hidden) if norm.function is not None else math.sqrt(norm.limit * hidden) / norm.unit


def _length(linear: Linear, length: float) -> float:
    """Largest length of a map of rows of `length`."""
    weight, bias = linear
    return spectral_norm(weight) * length + float(bias.norm())
