"""The model owner's weights as the `mpcformer` engine wants them: integers, centred, with public factors folded in.

A LayerNorm's gain and bias fold into the next linear map; the mean that the next LayerNorm subtracts is subtracted
from every map that leads to it: weights (out) are centred over their columns, and what the residual adds to the mean is
one column more (`mean`) of the map that has the same input. 2quad-const's c divides the map behind attention. A
constant LayerNorm's stream is computed in units: the maps before it are divided by the unit; gain times the unit, over
the constant, is its gain.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from mpcformer.channel import Spec
from mpcformer.engines.lift import fixed_point as fp
from mpcformer.engines.lift.carried import check_carried
from mpcformer.engines.lift.norms import Norm
from mpcformer.engines.lift.overflow import check_overflow, value_shift
from mpcformer.engines.lift.scales import LiftScales
from mpcformer.errors import RangeError
from mpcformer.modeling.bounds import centred_columns, deviation, norm_source
from mpcformer.ring.packing import packed_bytes

Shape = tuple[int, ...]


def weight_shapes(config: Any, embeddings: str = "private_table") -> dict[str, Shape]:
    """Name -> (in, out), or (in,) for a diagonal, from the public configuration; public tables are no weights."""
    hidden, attended, inner = config.hidden_size, config.attention_size, config.intermediate_size
    shapes: dict[str, Shape] = {}
    if embeddings == "private_table":
        shapes["embeddings"] = (config.vocab_size + config.type_vocab_size, hidden)
    for n in range(config.num_hidden_layers):
        shapes[f"layer.{n}.attention"] = (hidden, 3 * attended + 1)
        shapes[f"layer.{n}.attention.residual"] = (hidden,)
        shapes[f"layer.{n}.attention.output"] = (attended, hidden)
        shapes[f"layer.{n}.inner"] = (hidden, inner + 1)
        shapes[f"layer.{n}.residual"] = (hidden,)
        shapes[f"layer.{n}.outer"] = (inner, hidden)
    shapes["pooler"] = (hidden, hidden)
    shapes["classifier"] = (hidden, config.num_labels)
    return shapes


def weight_bits(name: str) -> int:
    """The ring in which a weight is masked and multiplied."""
    if name == "embeddings":
        return fp.EMBEDDING_BITS
    if name == "classifier":
        return fp.LOGIT_BITS
    return fp.ACTIVATED_BITS if name.endswith(".outer") else fp.INPUT_BITS


def masked_specs(config: Any, embeddings: str = "private_table") -> list[tuple[str, Spec]]:
    """What the data owner receives of each weight at set-up."""
    return [
        (name, Spec(torch.uint8, (packed_bytes(math.prod(shape), weight_bits(name)),)))
        for name, shape in weight_shapes(config, embeddings).items()
    ]


@dataclass
class OwnedWeights:
    """Integers: weights as in `weight_shapes`, and biases at the scale of the map's result."""

    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    biases: dict[str, torch.Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"OwnedWeights(<{len(self.weights)} tensors hidden>)"


def owned_weights(config: Any, constants: LiftScales, state: dict[str, torch.Tensor]) -> OwnedWeights:
    """From a BERT state dict.

    Raises:
        RangeError: a value that fixed point cannot carry, or one that might overflow its ring for some text.
        UserInputError: weights and configuration differ in which LayerNorms are constant.
    """
    bounds = check_overflow(config, constants, state)
    owned = OwnedWeights()
    hidden = config.hidden_size
    root = math.sqrt(math.sqrt(config.head_size))

    def get(name: str) -> torch.Tensor:
        return state[name].double()

    def put(name: str, weight: torch.Tensor, scale: int, bias: torch.Tensor | None = None, bias_scale: int = 0) -> None:
        encoded = _encode(name, weight, scale)
        owned.weights[name] = encoded.to(torch.int32) if weight_bits(name) == 32 else encoded
        if bias is not None:
            owned.biases[name] = _encode(f"{name}.bias", bias, bias_scale)

    def norm(name: str, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
        source, divisor = norm_source(name), deviation(name, state)
        factor = 1.0 if divisor is None else norm.unit / divisor
        return get(f"{source}.weight") * factor, get(f"{source}.bias")

    prefix = "bert.embeddings"
    scale, unit = constants.embedding_norm.scale, constants.embedding_norm.unit
    tables = [_centred(get(f"{prefix}.{part}_embeddings.weight")) / unit for part in ("word", "token_type")]
    positions = _centred(get(f"{prefix}.position_embeddings.weight")) / unit
    put("embeddings", torch.cat(tables), scale, positions, scale)
    gain, bias = norm("embeddings", constants.embedding_norm)

    mean = 2.0**fp.MEAN_SCALE / hidden
    mean_bias = torch.zeros(1, dtype=torch.float64)
    for n, layer in enumerate(constants.layers):
        name, source = f"layer.{n}", f"bert.encoder.layer.{n}"
        columns, offsets, smaller = [], [], 0
        unit = layer.attention_norm.unit
        for part in ("query", "key", "value"):
            weight = get(f"{source}.attention.self.{part}.weight").t()
            column, offset = (
                centred_columns(gain[:, None] * weight),
                bias @ weight + get(f"{source}.attention.self.{part}.bias"),
            )
            factor = 2.0 ** (-layer.score_shift / 2) / root
            if part == "value":  # the same matrix, a larger scale
                smaller = value_shift(layer, bounds.layers[n].values)
                factor = 2.0 ** (fp.VALUE_WEIGHT_SCALE - fp.QUERY_WEIGHT_SCALE - smaller)
            columns.append(column * factor)
            offsets.append(offset * factor)
        put(
            f"{name}.attention",
            torch.cat([*columns, gain[:, None] * (mean / unit * 2.0**-fp.QUERY_WEIGHT_SCALE)], dim=1),
            fp.QUERY_WEIGHT_SCALE,
            torch.cat([*offsets, mean_bias]),
            fp.INPUT_SCALE + fp.QUERY_WEIGHT_SCALE,
        )
        put(f"{name}.attention.residual", gain / unit, fp.RESIDUAL_SCALE)
        weight = _centred(get(f"{source}.attention.output.dense.weight").t()) / unit
        offset = _centred(get(f"{source}.attention.output.dense.bias") + bias) / unit
        attended = fp.ATTENDED_SCALE + fp.OUTPUT_WEIGHT_SCALE
        if not layer.divided:
            weight = weight * layer.unit * torch.exp(-get(f"{source}.attention.self.log_divisor"))
        put(f"{name}.attention.output", weight * 2.0**smaller, fp.OUTPUT_WEIGHT_SCALE, offset, attended)

        gain, bias = norm(f"{name}.attention", layer.attention_norm)
        unit = layer.output_norm.unit
        weight = get(f"{source}.intermediate.dense.weight").t()
        put(
            f"{name}.inner",
            torch.cat(
                [centred_columns(gain[:, None] * weight), gain[:, None] * (mean / unit * 2.0**-fp.INNER_WEIGHT_SCALE)],
                dim=1,
            ),
            fp.INNER_WEIGHT_SCALE,
            torch.cat([bias @ weight + get(f"{source}.intermediate.dense.bias"), mean_bias]),
            fp.INPUT_SCALE + fp.INNER_WEIGHT_SCALE,
        )
        put(f"{name}.residual", gain / unit, fp.RESIDUAL_SCALE)
        weight = _centred(get(f"{source}.output.dense.weight").t()) / unit
        offset = _centred(get(f"{source}.output.dense.bias") + bias) / unit
        activation = constants.activation
        offset = offset + activation.addend * weight.sum(0)
        put(f"{name}.outer", weight * activation.factor, constants.activation.weight_scale, offset, fp.OUTER_SCALE)
        gain, bias = norm(f"{name}.output", layer.output_norm)

    weight = get("bert.pooler.dense.weight").t()
    offset = bias @ weight + get("bert.pooler.dense.bias")
    pooled = fp.INPUT_SCALE + fp.POOLER_WEIGHT_SCALE
    put("pooler", centred_columns(gain[:, None] * weight), fp.POOLER_WEIGHT_SCALE, offset, pooled)
    logit_scale = fp.LOGIT_TOTAL_SCALE
    put("classifier", get("classifier.weight").t(), fp.LOGIT_WEIGHT_SCALE, get("classifier.bias"), logit_scale)
    check_carried(config, constants, owned.weights, owned.biases)
    return owned


def _centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(-1, keepdim=True)


def _encode(name: str, value: torch.Tensor, scale: int) -> torch.Tensor:
    scaled = (value * 2.0**scale).round()
    if not bool(torch.isfinite(scaled).all()) or float(scaled.abs().max()) >= 2.0**62:
        raise RangeError(f"weight {name} is not finite or too large for fixed point", "check the checkpoint")
    return scaled.to(torch.int64).contiguous()  # torch multiplies row-major int64 half as fast again
