"""Linear maps and matrix products of shares against plain arithmetic on the same integers."""

import pytest
import torch

from mpcformer.protocols import linear, matmul
from mpcformer.protocols.party import Party
from mpcformer.ring.packing import reduce, unpack
from tests.pair import dealer_bytes, integers, run_protocol, share


@pytest.mark.parametrize("bits", [40, 48, 64])
def test_matrix_product(bits: int) -> None:
    x, y = integers(2, 3, 5, 7, bits=40), integers(2, 3, 6, 7, bits=40)
    x_shares, y_shares = share(x, bits), share(y, bits)

    def owner(party: Party) -> torch.Tensor:
        masks = party.take(matmul.request(tuple(x.shape), tuple(y.shape), bits))
        mine = x_shares[party.rank], y_shares[party.rank]
        d, e = party.open([matmul.half(share, mask, bits) for share, mask in zip(mine, masks, strict=False)])
        return matmul.product(party, d, e, masks)

    results, counters, requests = run_protocol(owner)
    assert torch.equal(reduce(results[0] + results[1], bits), reduce(x @ y.transpose(-1, -2), bits))
    assert counters[0].bytes_sent == (x.numel() + y.numel()) * bits // 8
    assert dealer_bytes(requests) == 2 * 3 * 5 * 6 * bits // 8


@pytest.mark.parametrize("bits", [32, 56])
def test_owner_known_weights(bits: int) -> None:
    """A matrix and a diagonal multiply the same input; the data owner's shares do not depend on the input."""
    x = integers(4, 6, bits=30)
    weights = {"w": integers(6, 5, bits=18), "g": integers(6, bits=18)}
    if bits == 32:
        weights = {name: weight.to(torch.int32) for name, weight in weights.items()}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    shares = share(x, bits)

    def owner(party: Party) -> list[torch.Tensor]:
        key = party.store.weight_mask_key()  # type: ignore[attr-defined]
        tensors = party.take(linear.request(["w", "g"], 4, shapes, bits))
        if party.rank == 0:
            masked = unpack(party.receive([((4, 6), bits)]), (4, 6), bits)
            return linear.model_owner_share(shares[0], masked, list(weights.values()), tensors, bits)
        hidden = [linear.masked_weight(weight, key, name, bits) for name, weight in weights.items()]
        party.send([(shares[1] - tensors[0], bits)])
        return linear.data_owner_share(hidden, tensors, bits)

    results, counters, requests = run_protocol(owner)
    product, scaled = (reduce(a + b, bits) for a, b in zip(*results, strict=True))
    assert torch.equal(product, reduce(x @ weights["w"].long(), bits))
    assert torch.equal(scaled, reduce(x * weights["g"].long(), bits))
    assert counters[1].bytes_sent == 24 * bits // 8
    assert counters[1].bytes_received == 0
    assert dealer_bytes(requests) == (20 + 24) * bits // 8
