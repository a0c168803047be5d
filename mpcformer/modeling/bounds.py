"""How large a model's inner values can be for any text whatever: bounds that follow from its weights alone.

A row that LayerNorm has normalised has length sqrt(H), so Cauchy and Schwarz bound every linear map of it, and the
spectral norm every bilinear one. A constant LayerNorm does not normalise: its rows are as long as a limit of their
variance allows, which private engines see to.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mpcformer.approximations import gelu_form, softmax_form
from mpcformer.errors import UserInputError
from mpcformer.modeling.configuration import norm_names

Linear = tuple[torch.Tensor, torch.Tensor]
MAX_LOG = 100.0


@dataclass(frozen=True)
class LayerBounds:
    """Largest sizes in one encoder layer.

    Args:
        scores: a number.
        values: (A D,), by column; A heads of size D.
        attended: length of the row that the first LayerNorm sees, if attention's weights add up to at most one; in
            2quad-const, to at most what `model_bounds` is told.
        inner: (I,), of GeLU's argument.
        output: length of the row that the second LayerNorm sees.
    """

    scores: float
    values: torch.Tensor
    attended: float
    inner: torch.Tensor
    output: float


@dataclass(frozen=True)
class Bounds:
    """Largest sizes in a model: length of the embeddings' row, by layer, pooler's argument, and logits."""

    embeddings: float
    layers: list[LayerBounds]
    pooler: float
    logits: float


@dataclass(frozen=True)
class NormBounds:
    """A LayerNorm: gain and bias (H,), and how long the rows are that they are applied to."""

    gain: torch.Tensor
    bias: torch.Tensor
    length: float


def norm_source(name: str) -> str:
    """The prefix in a BERT state dict of a LayerNorm of `configuration.norm_names`."""
    if name == "embeddings":
        return "bert.embeddings.LayerNorm"
    return f"bert.encoder.{name}{'.output' if name.endswith('.attention') else ''}.LayerNorm"


def deviation(name: str, state: Mapping[str, torch.Tensor]) -> float | None:
    """What a constant LayerNorm divides by; None for one that divides by each row's own deviation."""
    log = state.get(f"{norm_source(name)}.log_deviation")
    return None if log is None else math.exp(min(MAX_LOG, max(-MAX_LOG, float(log))))


def check_constants(n_layers: int, constant: Collection[str], state: Mapping[str, torch.Tensor]) -> None:
    """The weights must have a constant for the LayerNorms that the configuration calls constant, and for no other.

    Raises:
        UserInputError: naming the first LayerNorm where they differ.
    """
    for name in norm_names(n_layers):
        if (deviation(name, state) is not None) != (name in constant):
            says, has = ("among", "no") if name in constant else ("not among", "a")
            raise UserInputError(
                f"LayerNorm {name} is {says} the configuration's constant_norms, but the weights have {has}"
                f" {norm_source(name)}.log_deviation",
                "use the config.json and the weights of one student",
            )


def column_bound(weight: torch.Tensor, bias: torch.Tensor, length: float) -> torch.Tensor:
    """Largest |n weight + bias| of each column, over all rows n of `length`; weight (H, out), bias (out,)."""
    reach: torch.Tensor = weight.norm(dim=0) * length + bias.abs()
    return reach


def centred_columns(weight: torch.Tensor) -> torch.Tensor:
    """(in, out) without the part that a row orthogonal to 1 does not see."""
    return weight - weight.mean(0, keepdim=True)


def spectral_norm(weight: torch.Tensor) -> float:
    """Largest |x weight| / |x|; from the smaller Gram matrix, which takes a tenth of a decomposition's time."""
    gram = weight @ weight.t() if weight.size(0) < weight.size(1) else weight.t() @ weight
    return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(gram)[-1])))


def head_length(values: Linear, n_heads: int, length: float) -> float:
    """Largest length of a row (A D,) whose heads are averages, by any weights, of the values of rows of `length`."""
    weight, bias = values
    parts = zip(weight.chunk(n_heads, dim=1), bias.chunk(n_heads), strict=True)
    return math.hypot(*(spectral_norm(part) * length + float(offset.norm()) for part, offset in parts))


def score_bound(query: Linear, key: Linear, n_heads: int, length: float) -> float:
    """Largest |score| of any head, for weights (H, A D) and biases (A D,) that take rows of `length`."""
    size = query[0].size(1) // n_heads
    largest = 0.0
    for head in range(n_heads):
        part = slice(head * size, (head + 1) * size)
        (q, q_bias), (k, k_bias) = ((weight[:, part], bias[part]) for weight, bias in (query, key))
        # |q k^T| is that of the small factors of their QR decompositions.
        product = spectral_norm(torch.linalg.qr(q).R @ torch.linalg.qr(k).R.t()) * length**2
        mixed = float((q @ k_bias).norm() + (k @ q_bias).norm()) * length
        largest = max(largest, (product + mixed + abs(float(q_bias @ k_bias))) / math.sqrt(size))
    return largest


def model_bounds(
    config: Any,
    state: Mapping[str, torch.Tensor],
    row_means: Sequence[float] | None = None,
    norm_limits: Mapping[str, float] | None = None,
) -> Bounds:
    """Bounds of a BERT state dict.

    Args:
        config: the student's configuration.
        state: names and weights as transformers has them.
        row_means: 2quad-const, by layer: how large a row's mean of (s + 5)^2 may be; its weights add up to that / c.
        norm_limits: how large a row's variance may be at each constant LayerNorm.

    Raises:
        UserInputError: a form of the configuration is unknown.
    """
    n_heads, activation = config.num_attention_heads, gelu_form(config.gelu)
    softmax_form(config.softmax)

    def get(name: str) -> torch.Tensor:
        return state[name].double().cpu()

    def linear(name: str) -> Linear:
        return get(f"{name}.weight").t(), get(f"{name}.bias")

    def norm(name: str) -> NormBounds:
        source, divisor = norm_source(name), deviation(name, state)
        gain = get(f"{source}.weight")
        variance = 1.0 if divisor is None else (norm_limits or {})[name] / divisor**2
        return NormBounds(gain, get(f"{source}.bias"), math.sqrt(gain.size(0) * variance))

    tables = [get(f"bert.embeddings.{part}_embeddings.weight") for part in ("word", "token_type", "position")]
    embeddings = sum(float(table.norm(dim=1).max()) for table in tables)
    before = norm("embeddings")
    layers: list[LayerBounds] = []
    while f"bert.encoder.layer.{len(layers)}.output.dense.weight" in state:
        name, source = f"layer.{len(layers)}", f"bert.encoder.layer.{len(layers)}"
        query, key, value = (
            _after(before, linear(f"{source}.attention.self.{part}")) for part in ("query", "key", "value")
        )
        scores, values = score_bound(query, key, n_heads, before.length), column_bound(*value, before.length)
        row = 1.0
        if row_means:
            row = row_means[len(layers)] * float(torch.exp(-get(f"{source}.attention.self.log_divisor")))
        length = row * head_length(value, n_heads, before.length)
        attended = _stream(linear(f"{source}.attention.output.dense"), length, before)
        before = norm(f"{name}.attention")
        inner_map = _after(before, linear(f"{source}.intermediate.dense"))
        inner = column_bound(*inner_map, before.length)
        length = spectral_norm(inner_map[0]) * before.length + float(inner_map[1].norm())
        length = activation.longest(float(inner.max()), length, inner.size(0))
        output = _stream(linear(f"{source}.output.dense"), length, before)
        before = norm(f"{name}.output")
        layers.append(LayerBounds(scores, values, attended, inner, output))
    pooler = float(column_bound(*_after(before, linear("bert.pooler.dense")), before.length).max())
    weight, bias = linear("classifier")
    logits = float((weight.abs().sum(0) + bias.abs()).max())
    return Bounds(embeddings, layers, pooler, logits)


def _after(norm: NormBounds, linear: Linear) -> Linear:
    """A map of a LayerNorm's result as one of the row before gain and bias, which is orthogonal to 1."""
    weight, offset = linear
    return centred_columns(norm.gain[:, None] * weight), norm.bias @ weight + offset


def _stream(linear: Linear, length: float, norm: NormBounds) -> float:
    """Length of a map of rows of at most `length`, plus the residual; subtracting the row's mean makes it shorter."""
    weight, offset = linear
    residual = float(norm.gain.abs().max()) * norm.length + float(norm.bias.norm())
    return spectral_norm(weight) * length + float(offset.norm()) + residual
