"""The student's encoder as torch modules, with exchangeable GeLU, softmax and LayerNorm, up to its classifier.

Modules have the names of transformers' BERT, to which `mpcformer.modeling.families` brings the tensors of other
families. They are built from a description, or from a configuration for transformers, which also has what training
needs. An observer sees the input of every non-linearity that is private later. Nothing here imports transformers, so a
model owner can run a student without it.

Letters in the shapes beside the code: B sentences, L positions, Q positions that a layer keeps, E embedding size,
H hidden, A heads, D head size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

import torch
from torch import nn

from mpcformer.approximations import gelu_form, softmax_form
from mpcformer.modeling.description import ModelDescription
from mpcformer.modeling.families.distances import distance_buckets

if TYPE_CHECKING:
    from mpcformer.modeling.configuration import MPCFormerConfig

# Takes a name, values, and a mask of the same shape that says which values belong to real tokens.
Observer = Callable[[str, torch.Tensor, torch.Tensor], None]
Description = Union[ModelDescription, "MPCFormerConfig"]


@dataclass
class Context:
    """The values that all modules of one forward pass share.

    Args:
        keys: the mask (B, 1, 1, L) of 0 and 1 of the positions that the layer at work gets.
        observer: is shown the inputs of non-linearities; may be None.
        scores: collects the raw attention scores of each layer.

    Attributes:
        rows: the mask (B, 1, 1, Q) of the positions that the layer at work keeps.
    """

    keys: torch.Tensor
    observer: Observer | None
    scores: list[torch.Tensor]

    def __post_init__(self) -> None:
        self.rows = self.keys

    def enter(self, stride: int) -> None:
        """Begin the next layer, which keeps every stride-th of the positions that it gets."""
        self.keys = self.rows
        self.rows = self.keys[..., ::stride]

    def observe(self, name: str, values: torch.Tensor, kind: str = "tokens") -> None:
        """Show values to the observer.

        Args:
            name: of the range that they belong to.
            values: (B, Q, ...) for tokens, (B, A, Q, L) for scores, (B, A, Q, ...) for queries, (B, ...) for sentences.
            kind: tokens, scores, queries or sentences.
        """
        if self.observer is None:
            return
        valid = self.rows[:, 0, 0, :].bool()  # (B, Q)
        if kind == "scores":
            valid = valid[:, None, :, None] & self.keys.bool()
        elif kind == "queries":
            valid = valid[:, None, :, None]
        elif kind == "sentences":
            valid = torch.ones_like(valid[:, :1])
        else:
            valid = valid[:, :, None]
        self.observer(name, values, valid.expand_as(values))


class Norm(nn.LayerNorm):
    """A LayerNorm that shows the variance of its input.

    A constant one has the weight `log_deviation`, the logarithm of what it divides by instead of the row's own
    deviation. Like all weights it is the model owner's secret.
    """

    def __init__(self, config: Description, name: str) -> None:
        width = config.embedding_size if name == "embeddings" else config.hidden_size
        super().__init__(width, eps=config.layer_norm_eps)
        constant = name in config.constant_norms
        self.log_deviation = nn.Parameter(torch.zeros(())) if constant else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalised x (..., H)."""
        if self.log_deviation is None:
            return super().forward(x)
        centred = x - x.mean(-1, keepdim=True)
        return centred * (self.weight * torch.exp(-self.log_deviation)) + self.bias

    def observed(self, x: torch.Tensor, context: Context, name: str) -> torch.Tensor:
        """Return the normalised x (B, L, H), and show its variance under `name`."""
        if context.observer is not None:
            context.observe(name, x.var(-1, unbiased=False, keepdim=True))
        return self(x)  # type: ignore[no-any-return]


class Embeddings(nn.Module):
    """The embeddings of word, position and token type, added up, normalised, and brought to the width of the layers."""

    def __init__(self, config: Description) -> None:
        super().__init__()
        width = config.embedding_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=getattr(config, "pad_token_id", None))
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = Norm(config, "embeddings")
        self.dropout = _dropout(config, "hidden_dropout_prob")
        self.projection = nn.Linear(width, config.hidden_size) if config.projection else None

    def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor, context: Context) -> torch.Tensor:
        """Return the embeddings (B, L, H) of ids (B, L)."""
        positions = self.position_embeddings.weight[: input_ids.size(1)]
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids) + positions
        x = self.dropout(self.LayerNorm.observed(x, context, "embeddings.variance"))  # (B, L, E)
        return x if self.projection is None else self.projection(x)  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    """Multi-head attention before its output projection.

    If the form of softmax divides rows by a learnt constant c, the module has the weight `log_divisor`, the logarithm
    of c, which keeps c positive. Like all weights it is the model owner's secret.

    Attributes:
        stride: the number of positions of which one is kept, and asks.
        step: how far apart in the text the positions are.
    """

    def __init__(self, config: Description, index: int) -> None:
        super().__init__()
        before, after = config.steps[index]
        self.step, self.stride = before, after // before
        self.n_heads = config.num_attention_heads
        self.form = softmax_form(config.softmax)
        divisor = self.form.divisor
        self.log_divisor = None if divisor is None else nn.Parameter(torch.tensor(math.log(divisor)))
        self.query = nn.Linear(config.hidden_size, config.attention_size)
        self.key = nn.Linear(config.hidden_size, config.attention_size)
        self.value = nn.Linear(config.hidden_size, config.attention_size)
        buckets = config.score_buckets
        self.score_bias = nn.Embedding(buckets, config.num_attention_heads) if buckets else None
        self.dropout = _dropout(config, "attention_probs_dropout_prob")

    def forward(self, x: torch.Tensor, context: Context, name: str) -> torch.Tensor:
        """Return the attended values (B, Q, A D) of x (B, L, H)."""
        kept = x[:, :: self.stride]
        inputs = ((self.query, kept), (self.key, x), (self.value, x))
        query, key, value = (part(rows).unflatten(2, (self.n_heads, -1)).transpose(1, 2) for part, rows in inputs)
        scores = self.scores(query, key)
        context.scores.append(scores)
        context.observe(f"{name}.scores", scores, "scores")
        probabilities, row_mean = self.probabilities(scores, context.keys)
        context.observe(f"{name}.row_mean", row_mean, "queries")
        attended: torch.Tensor = self.dropout(probabilities) @ value
        return attended.transpose(1, 2).flatten(2)

    def scores(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Return the raw scores (B, A, Q, L) of queries (B, A, Q, D) and keys (B, A, L, D)."""
        scores = query @ key.transpose(2, 3) / math.sqrt(query.size(-1))
        return scores if self.score_bias is None else scores + self.bias(scores.size(-1))

    def bias(self, n_positions: int) -> torch.Tensor:
        """Return what the scores are raised by, (A, Q, L), in a layer that learns it."""
        assert self.score_bias is not None
        table = self.score_bias.weight  # (buckets, A)
        buckets = distance_buckets(n_positions, table.size(0), self.step)[:: self.stride]
        return table[buckets.to(table.device)].permute(2, 0, 1)

    def probabilities(self, scores: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights and row means of scores (B, A, Q, L) and keys (B, 1, 1, L), see `SoftmaxForm.__call__`."""
        return self.form(scores, keys, None if self.log_divisor is None else self.log_divisor.exp())


class ResidualOutput(nn.Module):
    """A linear map whose result is added to the residual and normalised."""

    def __init__(self, config: Description, n_inputs: int, norm: str) -> None:
        super().__init__()
        self.dense = nn.Linear(n_inputs, config.hidden_size)
        self.LayerNorm = Norm(config, norm)
        self.dropout = _dropout(config, "hidden_dropout_prob")

    def forward(self, x: torch.Tensor, residual: torch.Tensor, context: Context, name: str) -> torch.Tensor:
        """Return the normalised sum (B, L, H) of the map of x (B, L, I) and the residual (B, L, H)."""
        return self.LayerNorm.observed(self.dropout(self.dense(x)) + residual, context, name)


class Layer(nn.Module):
    """An encoder layer: attention and feed-forward, with submodules named as in a BERT."""

    def __init__(self, config: Description, index: int) -> None:
        super().__init__()
        name = f"layer.{index}"
        output = ResidualOutput(config, config.attention_size, f"{name}.attention")
        self.attention = nn.ModuleDict({"self": SelfAttention(config, index), "output": output})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.intermediate_size)})
        self.output = ResidualOutput(config, config.intermediate_size, f"{name}.output")
        self.activation = gelu_form(config.gelu)

    @property
    def stride(self) -> int:
        """The number of positions of which the layer keeps one."""
        attention = self.attention["self"]
        assert isinstance(attention, SelfAttention)
        return attention.stride

    def forward(self, x: torch.Tensor, context: Context, name: str) -> torch.Tensor:
        """Return the next hidden state (B, Q, H) of x (B, L, H)."""
        context.enter(self.stride)
        attended = self.attention["self"](x, context, name)
        x = self.attention["output"](attended, x[:, :: self.stride], context, f"{name}.attention.variance")
        inner = self.intermediate["dense"](x)
        context.observe(f"{name}.activation", inner)
        x = self.output(self.activation(inner), x, context, f"{name}.output.variance")
        context.observe(f"{name}.hidden", x)
        return x


class Bert(nn.Module):
    """Embeddings, encoder, and the head up to the classifier."""

    def __init__(self, config: Description) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers = [Layer(config, index) for index in range(config.num_hidden_layers)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(self.layers)})
        self.pooling, self.head_activation = config.pooling, config.head_activation
        if config.head_activation != "none":
            self.pooler = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.hidden_size)})

    def rows(self, x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Return what the head takes of the last hidden state (B, L, H): (B, H), or (B, L, H) for each row by itself.

        Args:
            x: the hidden state.
            keys: the mask (B, 1, 1, L).
        """
        if self.pooling == "first":
            return x[:, 0]
        if self.pooling == "each":
            return x
        weights = keys[:, 0, 0, :, None]
        return (x * weights).sum(1) / weights.sum(1)

    def pool(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """Return what the classifier takes of the last hidden state (B, L, H), in the shape of `rows`."""
        rows = self.rows(x, context.rows)
        if self.head_activation == "none":
            return rows
        before = self.pooler["dense"](rows)
        context.observe(f"pooler.{self.head_activation}", before, "tokens" if self.pooling == "each" else "sentences")
        return torch.tanh(before) if self.head_activation == "tanh" else gelu_form(self.head_activation)(before)

    def forward(
        self, input_ids: torch.Tensor, token_type_ids: torch.Tensor, context: Context
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return what the classifier takes, and the hidden states (B, Q, H) of the embeddings and of each layer."""
        x = self.embeddings(input_ids, token_type_ids, context)
        hidden = [x]
        for index, layer in enumerate(self.layers):
            x = layer(x, context, f"layer.{index}")
            hidden.append(x)
        return self.pool(x, context), hidden


def _dropout(config: Description, name: str) -> nn.Dropout:
    # A description has no dropout, which is for training alone.
    return nn.Dropout(getattr(config, name, 0.0))
