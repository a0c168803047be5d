"""BERT's parameters as the private computation takes them: transposed, merged, and with public factors folded in."""

import math
from collections.abc import Mapping

import torch

from mpcformer.engines.crypten.constants import LayerScales, NewtonScales
from mpcformer.errors import RangeError
from mpcformer.modeling.description import ModelDescription
from mpcformer.modeling.weights import MAX_LOG, LayerWeights, LinearWeights, NormWeights, bert_weights, norm_source
from mpcformer.modeling.weights_file import MAX_WEIGHT

ParameterShapes = dict[str, tuple[int, ...]]


def parameter_shapes(config: ModelDescription) -> ParameterShapes:
    """Return the shapes by name, from the public configuration alone, in a fixed order."""
    hidden, attended, inner = config.hidden_size, config.attention_size, config.intermediate_size
    width = config.embedding_size
    shapes: ParameterShapes = {
        "embeddings.words_and_types": (config.vocab_size + config.type_vocab_size, width),
        "embeddings.positions": (config.max_position_embeddings, width),
    }

    def norm(name: str, length: int = hidden) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (length,)

    def linear(name: str, n_in: int, n_out: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (n_in, n_out), (n_out,)

    norm("embeddings.norm", width)
    if config.projection:
        linear("embeddings.projection", width, hidden)
    for index in range(config.num_hidden_layers):
        for part in ("query", "key", "value"):
            linear(f"layer.{index}.attention.{part}", hidden, attended)
        if config.score_buckets:
            shapes[f"layer.{index}.attention.score_bias"] = (config.score_buckets, config.num_attention_heads)
        linear(f"layer.{index}.attention.output", attended, hidden)
        norm(f"layer.{index}.attention.norm")
        linear(f"layer.{index}.intermediate", hidden, inner)
        linear(f"layer.{index}.output", inner, hidden)
        norm(f"layer.{index}.norm")
    if config.has_dense:
        linear("pooler", hidden, hidden)
    linear("classifier", hidden, config.num_labels)
    return shapes


def parameter_values(
    config: ModelDescription, scales: NewtonScales, state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the model owner's float tensors, named and shaped as `parameter_shapes` says, from a BERT state dict.

    The queries carry 1 / sqrt(D) and the layer's 2^-score_scale, both exact where they are powers of two. Where a
    learnt constant c divides attention's rows, the map behind attention carries 1 / c and the unit of the rows. A
    constant LayerNorm's gain carries what it divides by.

    Raises:
        RangeError: a weight is too large for fixed point once it carries its factors.
        UserInputError: a tensor is missing or has another shape than the configuration says.
    """
    weights = bert_weights(state, config)
    values: dict[str, torch.Tensor] = {}

    def put_norm(name: str, norm: NormWeights, which: str) -> None:
        values[f"{name}.weight"], values[f"{name}.bias"] = norm.gain, norm.bias
        if norm.deviation is not None:
            values[f"{name}.weight"] = norm.gain / norm.deviation
            _check_size(f"{norm_source(which)}.weight divided by its deviation", values[f"{name}.weight"])

    def put_map(name: str, linear: LinearWeights, factor: float = 1.0, bias_factor: float = 1.0) -> None:
        values[f"{name}.weight"] = linear.weight.contiguous() * factor
        values[f"{name}.bias"] = linear.bias * bias_factor

    values["embeddings.words_and_types"] = torch.cat([weights.words, weights.token_types])
    values["embeddings.positions"] = weights.positions
    put_norm("embeddings.norm", weights.embedding_norm, "embeddings")
    if weights.projection is not None:
        put_map("embeddings.projection", weights.projection)
    for n, (layer, layer_scales) in enumerate(zip(weights.layers, scales.layers, strict=True)):
        name = f"layer.{n}"
        factor = 2.0**-layer_scales.score_scale / math.sqrt(config.head_size)
        put_map(f"{name}.attention.query", layer.query, factor, factor)
        put_map(f"{name}.attention.key", layer.key)
        put_map(f"{name}.attention.value", layer.value)
        if layer.score_bias is not None:
            values[f"{name}.attention.score_bias"] = layer.score_bias * 2.0**-layer_scales.score_scale
        put_map(f"{name}.attention.output", layer.output, _behind_attention(n, layer, layer_scales))
        put_norm(f"{name}.attention.norm", layer.attention_norm, f"{name}.attention")
        put_map(f"{name}.intermediate", layer.inner)
        put_map(f"{name}.output", layer.outer)
        put_norm(f"{name}.norm", layer.output_norm, f"{name}.output")
    if weights.pooler is not None:
        put_map("pooler", weights.pooler)
    put_map("classifier", weights.classifier)
    return values


def _behind_attention(n: int, layer: LayerWeights, scales: LayerScales) -> float:
    """Return the factor of the map behind attention: 1, or the unit of its rows over the constant that divides them."""
    if layer.log_divisor is None:
        return 1.0
    factor = scales.row_unit * math.exp(min(MAX_LOG, -float(layer.log_divisor.double())))
    _check_size(f"bert.encoder.layer.{n}.attention.output.dense divided by c", layer.output.weight.double() * factor)
    return factor


def _check_size(name: str, weight: torch.Tensor) -> None:
    largest = float(weight.abs().max())
    if not largest <= MAX_WEIGHT:
        raise RangeError(
            f"{name} reaches {largest:.3g}, more than {MAX_WEIGHT:.0f}",
            "distil the student again",
            told=f"{name} reaches more than {MAX_WEIGHT:.0f}",
        )
