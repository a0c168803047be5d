"""Linear maps and matrix products of shares against plain arithmetic on the same integers."""

import pytest
import torch

from mpcformer.protocols import linear, matmul
from mpcformer.protocols.party import Party
from mpcformer.ring.packing import reduce, unpack_onto
from tests.pair import dealer_bytes, integers, run_protocol, share


@pytest.mark.parametrize("bits", [40, 48, 64])
def test_matrix_product(bits: int) -> None:
    x, y = integers(2, 3, 5, 7, bits=40), integers(2, 3, 6, 7, bits=40)
    x_shares, y_shares = share(x, bits), share(y, bits)

    def owner(party: Party) -> torch.Tensor:
        masks = party.take(matmul.request(tuple(x.shape), tuple(y.shape), bits))
        mine = x_shares[party.rank], y_shares[party.rank]
        d, e = party.open([matmul.half(share, mask, bits) for share, mask in zip(mine, masks, strict=False)])
        return matmul.product(party, d, e, masks, bits).computed()

    results, counters, requests = run_protocol(owner)
    assert torch.equal(reduce(results[0] + results[1], bits), reduce(x @ y.transpose(-1, -2), bits))
    assert counters[0].bytes_sent == (x.numel() + y.numel()) * bits // 8
    assert dealer_bytes(requests) == 2 * 3 * 5 * 6 * bits // 8


@pytest.mark.parametrize(("bits", "narrow"), [(32, 32), (56, 56), (44, 36), (40, 32)])
def test_owner_known_weights(bits: int, narrow: int) -> None:
    """A matrix and a diagonal multiply the same input; the data owner's shares do not depend on the input.

    The matrix and its result may lie in a narrower ring than the input.
    """
    widths = [narrow, bits]
    x = integers(4, 6, bits=30)
    weights = {"w": integers(6, 5, bits=18), "g": integers(6, bits=18)}
    weights["w"] = weights["w"].to(torch.int32)
    if bits == 32:
        weights["g"] = weights["g"].to(torch.int32)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    shares = share(x, bits)

    def owner(party: Party) -> list[torch.Tensor]:
        key = party.store.weight_mask_key()  # type: ignore[attr-defined]
        tensors = party.take(linear.request(["w", "g"], 4, shapes, widths))
        if party.rank == 0:
            known = unpack_onto(party.receive([((4, 6), bits)]), shares[0], bits)
            z = linear.model_owner_share(known, list(weights.values()), tensors, widths)
            return [share.computed() for share in z]
        named = zip(weights.items(), widths, strict=True)
        hidden = [linear.masked_weight(weight, key, name, width) for (name, weight), width in named]
        party.send([(shares[1] - tensors[0], bits)])
        return [share.computed() for share in linear.data_owner_share(hidden, tensors, widths)]

    results, counters, requests = run_protocol(owner)
    product, scaled = (reduce(a + b, width) for a, b, width in zip(*results, widths, strict=True))
    assert torch.equal(product, reduce(x @ weights["w"].long(), narrow))
    assert torch.equal(scaled, reduce(x * weights["g"].long(), bits))
    assert counters[1].bytes_sent == 24 * bits // 8
    assert counters[1].bytes_received == 0
    assert dealer_bytes(requests) == (20 * narrow + 24 * bits) // 8
