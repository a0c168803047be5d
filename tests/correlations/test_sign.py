"""Keys of signs: right for every value and place, and uniform to each owner."""

import numpy as np
import pytest
import torch
from scipy import stats

from mpcformer.correlations.keys import sign
from mpcformer.ring.random import Stream, fresh_key

EDGES = [0, 1, -1, 2, -2, 2**62, -(2**62), 2**63 - 1, -(2**63), 1 - 2**63]


def keys(r: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]:
    """Return both owners' roots, and the corrections for these masks."""
    roots = tuple(Stream(fresh_key()).int64((len(r), 2)) for _ in range(2))
    top = (r >> 63) & 1
    return roots, sign.corrections(roots, r & sign.LOW_BITS, 1 - 2 * top, top)  # type: ignore[return-value, arg-type]


@pytest.mark.parametrize("values", ["edges", "small", "any"])
def test_the_shares_add_up_to_the_top_bit(values: str) -> None:
    stream = Stream(fresh_key())
    x = {"edges": torch.tensor(EDGES * len(EDGES)), "small": stream.bits((500,), 4) - 8, "any": stream.int64((500,))}[
        values
    ]
    r = torch.tensor(EDGES).repeat_interleave(len(EDGES)) if values == "edges" else stream.int64((500,))
    roots, corrections = keys(r)
    masked = x + r
    functions = [sign.evaluate(rank, roots[rank], *corrections, masked) for rank in range(2)]  # type: ignore[call-arg, arg-type]
    top = (masked >> 63) & 1
    assert torch.equal(top + (1 - 2 * top) * (functions[0] + functions[1]), (x < 0).long())


def test_every_place_and_number_of_a_small_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    """On 5 bits, all pairs of a secret place and a number, and all four functions that a top bit and its place give."""
    monkeypatch.setattr(sign, "N_BITS", 5)
    everywhere, below = (
        each.reshape(-1) for each in torch.meshgrid(torch.arange(2), torch.tensor([1, -1]), indexing="ij")
    )
    places = torch.arange(32).repeat_interleave(4)
    everywhere, below = everywhere.repeat(32), below.repeat(32)
    roots = tuple(Stream(fresh_key()).int64((len(places), 2)) for _ in range(2))
    made = sign.corrections(roots, places, below, everywhere)  # type: ignore[arg-type]
    for number in range(32):
        at = torch.full_like(places, number)
        total = sum(sign.evaluate(rank, roots[rank], *made, at) for rank in range(2))
        assert torch.equal(torch.as_tensor(total), everywhere + below * (number < places).long())


def test_what_an_owner_holds_looks_uniform_whatever_the_mask_is() -> None:
    """Each word of the corrections, given the owner's own root, has uniform bytes for two very different masks."""
    for mask in (0, -1):
        _, corrections = keys(torch.full((400,), mask))
        for tensor in corrections:
            words = tensor.reshape(-1)
            # The lowest bits of a block's first word are two of the children's bits and the rest is a hash.
            counts = np.bincount(((words >> 8) & 255).numpy(), minlength=256)
            assert stats.chisquare(counts).pvalue > 1e-6
        left, right = corrections[0][..., 0] & 1, (corrections[0][..., 0] >> 1) & 1
        assert abs(float(left.double().mean()) - 0.5) < 0.02
        assert abs(float(right.double().mean()) - 0.5) < 0.02


def test_an_owners_shares_are_uniform_by_themselves() -> None:
    r = torch.zeros(20_000, dtype=torch.int64)
    roots, corrections = keys(r)
    found = sign.evaluate(0, roots[0], *corrections, torch.zeros_like(r))  # type: ignore[call-arg, arg-type]
    assert stats.chisquare(np.bincount(((found >> 40) & 255).numpy(), minlength=256)).pvalue > 1e-6
