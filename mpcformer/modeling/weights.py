"""A typed view of an encoder's weights: the one place that knows by which names a state dict holds them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from mpcformer.approximations import softmax_form
from mpcformer.errors import UserInputError
from mpcformer.modeling.description import ModelDescription, norm_names

MAX_LOG = 100.0


class LinearWeights(NamedTuple):
    """A linear map x weight + bias: weight (in, out), bias (out,)."""

    weight: torch.Tensor
    bias: torch.Tensor

    def double(self) -> "LinearWeights":
        """Return the map in float64 on the CPU."""
        return LinearWeights(_double(self.weight), _double(self.bias))

    def times(self, factor: float) -> "LinearWeights":
        """Return `factor` times the map."""
        return LinearWeights(self.weight * factor, self.bias * factor)

    def __repr__(self) -> str:
        return "LinearWeights(<hidden>)"


@dataclass(frozen=True, repr=False)
class NormWeights:
    """A LayerNorm: gain and bias (H,); a constant LayerNorm also has the logarithm of what it divides by."""

    gain: torch.Tensor
    bias: torch.Tensor
    log_deviation: torch.Tensor | None = None

    @property
    def deviation(self) -> float | None:
        """The constant that the LayerNorm divides by; None if it divides by each row's own deviation."""
        if self.log_deviation is None:
            return None
        return math.exp(min(MAX_LOG, max(-MAX_LOG, float(self.log_deviation))))

    def double(self) -> "NormWeights":
        """Return gain and bias in float64 on the CPU."""
        return NormWeights(_double(self.gain), _double(self.bias), self.log_deviation)


@dataclass(frozen=True, repr=False)
class LayerWeights:
    """An encoder layer.

    Args:
        query, key, value: (H, A D).
        output: the map behind attention, (A D, H).
        attention_norm: the LayerNorm behind it.
        inner, outer: the maps before and behind the activation, (H, I) and (I, H).
        output_norm: the LayerNorm behind them.
        log_divisor: the logarithm of the constant that divides attention's rows; None if the form learns none.
        score_bias: by group of distances, what each head's scores are raised by, (groups, A); None if they are not.
    """

    query: LinearWeights
    key: LinearWeights
    value: LinearWeights
    output: LinearWeights
    attention_norm: NormWeights
    inner: LinearWeights
    outer: LinearWeights
    output_norm: NormWeights
    log_divisor: torch.Tensor | None = None
    score_bias: torch.Tensor | None = None


@dataclass(frozen=True, repr=False)
class BertWeights:
    """An encoder with a head.

    Args:
        words, token_types, positions: the embeddings' tables, (V, E), (T, E) and (P, E).
        embedding_norm: the LayerNorm behind them.
        layers: the encoder.
        pooler: the head's dense layer, (H, H); None if it has none.
        classifier: (H, C).
        projection: the map from the embeddings to the layers, (E, H); None if there is none.
    """

    words: torch.Tensor
    token_types: torch.Tensor
    positions: torch.Tensor
    embedding_norm: NormWeights
    layers: tuple[LayerWeights, ...]
    pooler: LinearWeights | None
    classifier: LinearWeights
    projection: LinearWeights | None = None


def norm_source(name: str) -> str:
    """Return the prefix in a state dict of a LayerNorm of `configuration.norm_names`."""
    if name == "embeddings":
        return "bert.embeddings.LayerNorm"
    return f"bert.encoder.{name}{'.output' if name.endswith('.attention') else ''}.LayerNorm"


def bert_weights(state: Mapping[str, torch.Tensor], config: ModelDescription) -> BertWeights:
    """Return a view of a state dict, whose tensors it shares; what it does not name is ignored.

    Args:
        state: names and tensors as `MPCFormerForSequenceClassification.state_dict` gives them.
        config: the student's.

    Raises:
        UserInputError: a tensor is missing or not shaped as the configuration says, or weights and configuration differ
            in which LayerNorms are constant.
    """
    check_constant_norms(config, state)
    return _Reader(state, config).bert()


def shapes_of(config: ModelDescription) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a student by its name, as `bert_weights` reads them."""
    reader = _Shapes({}, config)
    reader.bert()
    return reader.found


def check_constant_norms(config: ModelDescription, state: Mapping[str, torch.Tensor]) -> None:
    """Check that the weights have a constant for the LayerNorms that the configuration calls constant, and no other.

    Raises:
        UserInputError: naming the first LayerNorm where they differ.
    """
    for name in norm_names(config.num_hidden_layers):
        log_deviation, constant = f"{norm_source(name)}.log_deviation", name in config.constant_norms
        if (log_deviation in state) != constant:
            says, has = ("among", "no") if constant else ("not among", "a")
            raise UserInputError(
                f"LayerNorm {name} is {says} the configuration's constant_norms, but the weights have {has}"
                f" {log_deviation}",
                "use the config.json and the weights of one student",
            )


class _Reader:
    """Reads the parts of a BERT from a state dict, and checks shapes against the configuration."""

    def __init__(self, state: Mapping[str, torch.Tensor], config: ModelDescription) -> None:
        self._state, self._config = state, config

    def bert(self) -> BertWeights:
        config, prefix = self._config, "bert.embeddings"
        hidden, width = config.hidden_size, config.embedding_size
        return BertWeights(
            words=self._tensor(f"{prefix}.word_embeddings.weight", config.vocab_size, width),
            token_types=self._tensor(f"{prefix}.token_type_embeddings.weight", config.type_vocab_size, width),
            positions=self._tensor(f"{prefix}.position_embeddings.weight", config.max_position_embeddings, width),
            embedding_norm=self._norm("embeddings"),
            layers=tuple(self._layer(f"layer.{n}") for n in range(config.num_hidden_layers)),
            pooler=self._linear("bert.pooler.dense", hidden, hidden) if config.has_dense else None,
            classifier=self._linear("classifier", hidden, config.num_labels),
            projection=self._linear(f"{prefix}.projection", width, hidden) if config.projection else None,
        )

    def _layer(self, name: str) -> LayerWeights:
        hidden, attended, inner = (
            self._config.hidden_size,
            self._config.attention_size,
            self._config.intermediate_size,
        )
        source = f"bert.encoder.{name}"
        query, key, value = (
            self._linear(f"{source}.attention.self.{part}", hidden, attended) for part in ("query", "key", "value")
        )
        buckets = self._config.score_buckets
        table = f"{source}.attention.self.score_bias.weight", buckets, self._config.num_attention_heads
        learns_divisor = softmax_form(self._config.softmax).divisor is not None
        return LayerWeights(
            query,
            key,
            value,
            output=self._linear(f"{source}.attention.output.dense", attended, hidden),
            attention_norm=self._norm(f"{name}.attention"),
            inner=self._linear(f"{source}.intermediate.dense", hidden, inner),
            outer=self._linear(f"{source}.output.dense", inner, hidden),
            output_norm=self._norm(f"{name}.output"),
            log_divisor=self._tensor(f"{source}.attention.self.log_divisor") if learns_divisor else None,
            score_bias=self._tensor(*table) if buckets else None,
        )

    def _linear(self, name: str, n_in: int, n_out: int) -> LinearWeights:
        return LinearWeights(self._tensor(f"{name}.weight", n_out, n_in).t(), self._tensor(f"{name}.bias", n_out))

    def _norm(self, name: str) -> NormWeights:
        source, hidden = norm_source(name), self._config.norm_width(name)
        log_deviation = self._tensor(f"{source}.log_deviation") if name in self._config.constant_norms else None
        gain, bias = (self._tensor(f"{source}.{part}", hidden) for part in ("weight", "bias"))
        return NormWeights(gain, bias, log_deviation)

    def _tensor(self, name: str, *shape: int) -> torch.Tensor:
        tensor = self._state.get(name)
        if tensor is None or tuple(tensor.shape) != shape:
            has = "lack" if tensor is None else f"have a {tuple(tensor.shape)} of"
            raise UserInputError(
                f"the weights {has} {name}, which is {shape} by the configuration",
                "use the config.json and the weights of one student",
            )
        return tensor


class _Shapes(_Reader):
    """Notes what is read, in place of reading it."""

    def __init__(self, state: Mapping[str, torch.Tensor], config: ModelDescription) -> None:
        super().__init__(state, config)
        self.found: dict[str, tuple[int, ...]] = {}

    def _tensor(self, name: str, *shape: int) -> torch.Tensor:
        self.found[name] = shape
        return torch.empty(shape, device="meta")


def _double(x: torch.Tensor) -> torch.Tensor:
    return x.double().cpu()
