"""Linear maps whose weights the model owner knows: one product online, at the model owner, and one message."""

from collections.abc import Mapping

import torch

from mpcformer.correlations import Request
from mpcformer.correlations.suite import times_weight, weight_mask

Shape = tuple[int, ...]


def request(names: list[str], rows: int, shapes: Mapping[str, Shape], bits: int) -> Request:
    """The correlation for all maps in `names` of the same input (rows, in), over Z_2^bits."""
    widths = [shapes[name] for name in names]
    return Request("linear", ((rows, widths[0][0]), *widths), op=",".join(names), bits=bits)


def masked_weight(weight: torch.Tensor, key: bytes, name: str, bits: int) -> torch.Tensor:
    """F = W - B, which the model owner tells the data owner once a session."""
    return weight - weight_mask(key, name, tuple(weight.shape), bits)


def data_owner_share(masked: list[torch.Tensor], tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """A F_i + c_i: party 1's shares, known before the input is."""
    a, *c = tensors
    return [times_weight(a, f) + c_i for f, c_i in zip(masked, c, strict=True)]


def model_owner_share(
    x_share: torch.Tensor, masked_input: torch.Tensor, weights: list[torch.Tensor], tensors: list[torch.Tensor]
) -> list[torch.Tensor]:
    """[x W_i] at party 0, from E = x_1 - A.

    Ideal function: x W_i over Z_2^k, no truncation; a diagonal weight multiplies the columns.
    Shapes: x (rows, in), W (in, out) or (in,), result (rows, out) each.
    Scale: f and g -> f + g.
    Range and error: exact modulo 2^k.
    Cost: 1 one-way round, k / 8 rows in bytes from party 1 to party 0; k / 8 rows out dealer bytes for each map.
    Source: W - B sent once, as in the preprocessing of Delphi (Mishra et al., USENIX Security 2020), with a dealer.
    """
    known = x_share + masked_input
    return [times_weight(known, weight) + c for weight, c in zip(weights, tensors, strict=True)]
