"""BERT's parameters as the private computation wants them: transposed, merged, and with public factors folded in."""

import math
from typing import Any

import torch

from mpcformer.engines.crypten.constants import ModelConstants
from mpcformer.errors import RangeError
from mpcformer.modeling.bounds import MAX_LOG, check_constants, deviation, norm_source
from mpcformer.modeling.load import MAX_WEIGHT

ParameterShapes = dict[str, tuple[int, ...]]


def parameter_shapes(config: Any) -> ParameterShapes:
    """Name -> shape, from the public configuration alone; the order is fixed."""
    hidden, attended, inner = config.hidden_size, config.attention_size, config.intermediate_size
    shapes: ParameterShapes = {
        "embeddings.words_and_types": (config.vocab_size + config.type_vocab_size, hidden),
        "embeddings.positions": (config.max_position_embeddings, hidden),
    }

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (hidden,)

    def linear(name: str, n_in: int, n_out: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (n_in, n_out), (n_out,)

    norm("embeddings.norm")
    for index in range(config.num_hidden_layers):
        for part in ("query", "key", "value"):
            linear(f"layer.{index}.attention.{part}", hidden, attended)
        linear(f"layer.{index}.attention.output", attended, hidden)
        norm(f"layer.{index}.attention.norm")
        linear(f"layer.{index}.intermediate", hidden, inner)
        linear(f"layer.{index}.output", inner, hidden)
        norm(f"layer.{index}.norm")
    linear("pooler", hidden, hidden)
    linear("classifier", hidden, config.num_labels)
    return shapes


def parameter_values(config: Any, constants: ModelConstants, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The model owner's float tensors, named and shaped as `parameter_shapes` says, from a BERT state dict.

    The queries carry 1 / sqrt(D) and the layer's 2^-score_scale, both exact where they are powers of two; what follows
    attention carries 2quad-const's 1 / c, and the square of 2^score_scale. A constant norm's gain carries what the norm
    divides by.

    Raises:
        RangeError: a weight so large, once it carries them, that fixed point cannot.
        UserInputError: weights and configuration differ in which LayerNorms are constant.
    """
    check_constants(config.num_hidden_layers, config.constant_norms, state)
    values: dict[str, torch.Tensor] = {}

    def norm(name: str, which: str) -> None:
        source, divisor = norm_source(which), deviation(which, state)
        values[f"{name}.weight"], values[f"{name}.bias"] = state[f"{source}.weight"], state[f"{source}.bias"]
        if divisor is not None:
            values[f"{name}.weight"] = state[f"{source}.weight"] / divisor
            _check_size(f"{source}.weight divided by its deviation", values[f"{name}.weight"])

    def linear(name: str, source: str, factor: float = 1.0, bias_factor: float = 1.0) -> None:
        values[f"{name}.weight"] = state[f"{source}.weight"].t().contiguous() * factor
        values[f"{name}.bias"] = state[f"{source}.bias"] * bias_factor

    source = "bert.embeddings"
    tables = [state[f"{source}.{part}_embeddings.weight"] for part in ("word", "token_type")]
    values["embeddings.words_and_types"] = torch.cat(tables)
    values["embeddings.positions"] = state[f"{source}.position_embeddings.weight"]
    norm("embeddings.norm", "embeddings")
    for index, layer in enumerate(constants.layers):
        name, source = f"layer.{index}", f"bert.encoder.layer.{index}"
        factor = 2.0**-layer.score_scale / math.sqrt(config.head_size)
        linear(f"{name}.attention.query", f"{source}.attention.self.query", factor, factor)
        linear(f"{name}.attention.key", f"{source}.attention.self.key")
        linear(f"{name}.attention.value", f"{source}.attention.self.value")
        behind = 1.0
        if layer.row is None:
            log_divisor = float(state[f"{source}.attention.self.log_divisor"].double())
            behind = layer.row_unit * math.exp(min(MAX_LOG, -log_divisor))
            output = f"{source}.attention.output.dense"
            _check_size(f"{output} divided by c", state[f"{output}.weight"].double() * behind)
        linear(f"{name}.attention.output", f"{source}.attention.output.dense", behind)
        norm(f"{name}.attention.norm", f"{name}.attention")
        linear(f"{name}.intermediate", f"{source}.intermediate.dense")
        linear(f"{name}.output", f"{source}.output.dense")
        norm(f"{name}.norm", f"{name}.output")
    linear("pooler", "bert.pooler.dense")
    linear("classifier", "classifier")
    return values


def _check_size(name: str, weight: torch.Tensor) -> None:
    largest = float(weight.abs().max())
    if not largest <= MAX_WEIGHT:
        raise RangeError(
            f"{name} reaches {largest:.3g}, more than {MAX_WEIGHT:.0f}",
            "distil the student again",
            told=f"{name} reaches more than {MAX_WEIGHT:.0f}",
        )
