"""Fit the units of a feed-forward block: choose which ones a smaller student keeps, and write GeLU as Quad."""

import torch
from torch import nn

from distill.start.layer_trace import LayerParts, Text, trace
from distill.start.moments import Moments
from mpcformer.approximations.forms import ShiftedSquare
from mpcformer.modeling.encoder import Layer

# The bounds of a unit's curvature. A nearly linear unit would need a huge shift, which fixed point cannot represent.
CURVATURE = (0.02, 0.5)


def strongest_units(source: Layer, texts: list[Text], count: int) -> torch.Tensor:
    """Return the indices, in ascending order, of the units that contribute most variance to the layer's output.

    Args:
        source: a layer of the teacher.
        texts: batches that stand before this layer.
        count: how many units to keep.
    """
    moments = Moments()
    for text in texts:
        moments.add(source.activation(trace(source, text.teacher, text).inner)[text.real])
    strength = moments.variance() * source.output.dense.weight.double().square().sum(0)
    return strength.topk(count).indices.sort().values


def fit_units(layer: Layer, square: ShiftedSquare, texts: list[Text]) -> None:
    """Approximate GeLU by a h^2 + b h + c for each unit, by least squares, and write this as Quad of other weights.

    The layer's first linear map takes the scale and the shift; the bias of the second takes the constant that is left.
    """
    dense, after = LayerParts.of(layer).inner, LayerParts.of(layer).output.dense
    a, b, c = _quadratics(layer, texts)
    # For Quad, a h^2 + b h + c = (h' + 1)^2 / 8 + 3/8 + offset, where h' + 1 = root (h + b / 2a).
    root = (a / square.factor).sqrt()
    dense.weight.mul_(root[:, None].to(dense.weight))
    dense.bias.copy_(root * (dense.bias.double() + b / (2 * a)) - square.shift)
    offset = c - b.square() / (4 * a) - square.offset
    after.bias.add_((after.weight.double() @ offset).to(after.bias))


def _quadratics(layer: Layer, texts: list[Text]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a, b and c of each unit's least squares fit, (I,) each in float64, with a clamped to CURVATURE."""
    dense = LayerParts.of(layer).inner
    gram = torch.zeros(3, 3, dense.out_features, dtype=torch.float64, device=dense.weight.device)
    right = torch.zeros(3, dense.out_features, dtype=torch.float64, device=dense.weight.device)
    n = 0
    for text in texts:
        h = trace(layer, text.student, text).inner[text.real].double()
        powers = (torch.ones_like(h), h, h * h)
        wanted = nn.functional.gelu(h)
        n += len(h)
        for i, left in enumerate(powers):
            right[i] += (left * wanted).sum(0)
            for j, other in enumerate(powers):
                gram[i, j] += (left * other).sum(0)
    matrix, vector = gram.permute(2, 0, 1) / n, right.t() / n  # (I, 3, 3), (I, 3)
    small = 1e-6 * torch.eye(3, dtype=torch.float64, device=matrix.device)
    a = torch.linalg.solve(matrix + small, vector)[:, 2].clamp(*CURVATURE)
    rest = torch.linalg.solve((matrix + small)[:, :2, :2], vector[:, :2] - a[:, None] * matrix[:, :2, 2])
    return a, rest[:, 1], rest[:, 0]
