"""Run single encoder layers of both models and keep the intermediate values that a fit needs."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from mpcformer.modeling.encoder import Context, Layer, ResidualOutput, SelfAttention


@dataclass
class Text:
    """A batch of texts on its way through both models, layer by layer.

    Attributes:
        mask: (B, L), 1 for real tokens and 0 for padding, in the models' floating-point type.
        teacher: (B, L, H), the teacher's hidden states where the batch stands now.
        student: (B, L, H), the student's.
    """

    mask: torch.Tensor
    teacher: torch.Tensor
    student: torch.Tensor

    @property
    def keys(self) -> torch.Tensor:
        """The mask in the shape that attention takes, (B, 1, 1, L)."""
        return self.mask[:, None, None, :]

    @property
    def real(self) -> torch.Tensor:
        """Whether each token is real rather than padding, (B, L), boolean."""
        return self.mask.bool()


@dataclass(frozen=True)
class LayerTrace:
    """Intermediate values of one encoder layer.

    Attributes:
        middle: (B, L, H), the attention block's output.
        inner: (B, L, I), the argument of GeLU.
        before: (B, L, H), the input of the last LayerNorm.
        after: (B, L, H), the layer's output.
    """

    middle: torch.Tensor
    inner: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor


@dataclass(frozen=True)
class LayerParts:
    """The modules of an encoder layer, named by what they do."""

    attention: SelfAttention
    attention_output: ResidualOutput
    inner: nn.Linear
    output: ResidualOutput

    @classmethod
    def of(cls, layer: Layer) -> "LayerParts":
        """Find the modules of a layer."""
        return cls(
            cast(SelfAttention, layer.attention["self"]),
            cast(ResidualOutput, layer.attention["output"]),
            cast(nn.Linear, layer.intermediate["dense"]),
            layer.output,
        )


def trace(layer: Layer, x: torch.Tensor, text: Text) -> LayerTrace:
    """Run a layer on hidden states `x`, (B, L, H), with the text's mask."""
    parts, context = LayerParts.of(layer), Context(text.keys, None, [])
    attended = parts.attention(x, context, "")
    middle = parts.attention_output(attended, x, context, "")
    inner = parts.inner(middle)
    before = parts.output.dense(layer.activation(inner)) + middle
    return LayerTrace(middle, inner, before, parts.output.LayerNorm(before))
