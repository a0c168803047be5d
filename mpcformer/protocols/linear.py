"""Linear maps whose weights the model owner knows: one message online, and one product at the model owner."""

from collections.abc import Mapping, Sequence

import torch

from mpcformer.correlations import Request
from mpcformer.correlations.linear import LinearSpec, Weight, times_weight, weight_mask
from mpcformer.protocols.cost import ProtocolCost, dealt, message
from mpcformer.protocols.party import MODEL_OWNER, half_bytes
from mpcformer.ring.fused import Fused
from mpcformer.ring.packing import Operand

Shape = tuple[int, ...]


def request(names: Sequence[str], rows: int, shapes: Mapping[str, Shape], widths: Sequence[int]) -> Request:
    """Return the request for all maps in `names` of the same input (rows, in), each over Z_2^k for its own width k."""
    return LinearSpec(tuple(names), rows, tuple(shapes[name] for name in names), tuple(widths)).request()


def cost(rows: int, weights: Sequence[Shape], widths: Sequence[int]) -> ProtocolCost:
    """Return the cost of maps of the same input (rows, in), as `model_owner_share` states it."""
    names = tuple(str(n) for n in range(len(weights)))
    correlation = LinearSpec(names, rows, tuple(weights), tuple(widths)).request()
    return message(MODEL_OWNER, ((rows, weights[0][0]), max(widths))) + dealt(correlation)


def setup_cost(weights: Sequence[Shape], bits: int) -> ProtocolCost:
    """Return the cost of masked weights, as `masked_weight` states it."""
    return ProtocolCost(setup_bytes=sum(half_bytes((weight, bits)) for weight in weights))


def masked_weight(weight: torch.Tensor, key: bytes, name: str, bits: int) -> torch.Tensor:
    """Compute F = W - B, which the model owner sends to the data owner once a session.

    Cost for n weights over Z_2^k: k / 8 n set-up bytes.
    """
    return weight - weight_mask(key, name, tuple(weight.shape), bits)


def tag(tags: torch.Tensor, correction: torch.Tensor) -> torch.Tensor:
    """Compute the data owner's tag of its masked input E = x_1 - A: one number a row.

    It is not sent. The owners' numbers, this one and `expected_tag`, are compared on shares: a model owner that deals
    out wrong keys of tables would otherwise learn from the difference what the tables were asked.

    The model owner has a key a_j for each column, and the owners share x_j a_j beside each x_j. The masks' sum of A_j
    a_j is dealt like any product with a weight: the keys are a weight whose mask the model owner knows as such.

    Ideal function: none; `expected_tag` gives the same number if E is x_1 - A for the shared x.
    Shapes: tags (rows, n), the data owner's shares of x_j a_j; correction (rows, 1), its share of A a; result (rows,).
    Scale: none.
    Range and error: over Z_2^64. An E that is off by e, of which 2^v is the largest power of two that divides all
        entries, passes with a probability of 2^(v - 64).
    Cost for m rows: 0 rounds; 8 m dealer bytes.
    Source: one-sided tags as in BDOZ (Bendlin et al., EUROCRYPT 2011); keys for sums of tagged numbers are ours.
    """
    return tags.sum(1) - correction[:, 0]


def expected_tag(
    x_share: torch.Tensor, masked_input: torch.Tensor, keys: torch.Tensor, tags: torch.Tensor, correction: torch.Tensor
) -> torch.Tensor:
    """Compute at the model owner what `tag` is if the data owner's E is right.

    Args:
        x_share, masked_input: x_0 and E, (rows, n).
        keys: a, (n,).
        tags: its shares of x_j a_j, (rows, n).
        correction: its share of A a, (rows, 1).

    Returns:
        (rows,) over Z_2^64.
    """
    return ((x_share + masked_input) * keys).sum(1) - tags.sum(1) + correction[:, 0]


def data_owner_share(masked: Sequence[Weight], tensors: list[torch.Tensor], widths: Sequence[int]) -> list[Fused]:
    """Compute A F_i + c_i: the data owner's shares of the results, which it knows before its input."""
    a, *c = tensors
    return [times(a, f, bits) + c_i for f, c_i, bits in zip(masked, c, widths, strict=True)]


def model_owner_share(
    known: torch.Tensor,
    weights: Sequence[Weight],
    tensors: Sequence[Operand],
    widths: Sequence[int],
) -> list[Fused]:
    """Compute the model owner's shares of x W_i from x_0 + E, where E = x_1 - A came from the data owner.

    Ideal function: x W_i over Z_2^k for the width k of the weight's ring, without truncation. A diagonal weight
        multiplies the columns.
    Shapes: x (rows, in), W (in, out) or (in,), each result (rows, out).
    Scale: f and g -> f + g.
    Range and error: exact modulo 2^k.
    Cost with `out` columns of all results together, all in the same ring: 1 round; k / 8 rows in bytes to the model
        owner; k / 8 rows out dealer bytes.
    Source: W - B is sent once, as in the preprocessing of Delphi (Mishra et al., USENIX Security 2020), with a dealer.
    """
    products = zip(weights, tensors, widths, strict=True)
    return [times(known, weight, bits) + c for weight, c, bits in products]


def times(x: torch.Tensor, weight: Weight, bits: int) -> Fused:
    """Do as `times_weight`; the product with a diagonal is carried out together with what follows."""
    if isinstance(weight, torch.Tensor) and weight.dim() == 1:
        return Fused(x) * weight.long()
    return Fused(times_weight(x, weight, bits))
