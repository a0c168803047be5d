"""Keys of equality: right for every value and mask, and uniform to each owner."""

import numpy as np
import pytest
import torch
from scipy import stats

from mpcformer.correlations.keys import point_function
from mpcformer.ring.random import Stream, fresh_key

EDGES = [0, 1, -1, 2, -2, 2**62, -(2**62), 2**63 - 1, -(2**63), 1 - 2**63]


def keys(r: torch.Tensor) -> tuple[list[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Return both owners' roots, and the corrections for these masks."""
    roots = [Stream(fresh_key()).int64((len(r), 2)) for _ in range(2)]
    return roots, point_function.corrections((roots[0], roots[1]), r, torch.ones_like(r)[:, None], 64)


@pytest.mark.parametrize("values", ["edges", "small", "any", "zeros"])
def test_the_shares_add_up_to_one_at_zero_alone(values: str) -> None:
    stream = Stream(fresh_key())
    x = {
        "edges": torch.tensor(EDGES * len(EDGES)),
        "small": stream.bits((500,), 4) - 8,
        "any": stream.int64((500,)),
        "zeros": torch.zeros(500, dtype=torch.int64),
    }[values]
    r = torch.tensor(EDGES).repeat_interleave(len(EDGES)) if values == "edges" else stream.int64((500,))
    roots, corrections = keys(r)
    shares = [point_function.evaluate(rank, roots[rank], *corrections, x + r)[0] for rank in range(2)]
    assert torch.equal(shares[0] + shares[1], (x == 0).long())


def test_every_place_and_number_of_a_small_domain() -> None:
    """On 5 bits, all pairs of a secret place and a number."""
    places, stream = torch.arange(32), Stream(fresh_key())
    roots = [stream.int64((32, 2)) for _ in range(2)]
    made = point_function.corrections((roots[0], roots[1]), places, torch.ones(32, 1, dtype=torch.int64), 5)
    for number in range(32):
        at = torch.full_like(places, number)
        total = sum(point_function.evaluate(rank, roots[rank], *made, at)[0] for rank in range(2))
        assert torch.equal(torch.as_tensor(total), (places == number).long())


def test_a_place_is_evaluated_as_the_whole_vector_is() -> None:
    stream = Stream(fresh_key())
    places, payload = stream.bits((20,), 5), stream.int64((20, 3))
    roots = [stream.int64((20, 2)) for _ in range(2)]
    corrections = point_function.corrections((roots[0], roots[1]), places, payload, 5)
    for rank in range(2):
        whole = point_function.expand_by_torch(rank, roots[rank], *corrections)
        for place in (0, 7, 31):
            at = torch.full((20,), place)
            assert torch.equal(point_function.evaluate(rank, roots[rank], *corrections, at), whole[:, :, place])


def test_what_an_owner_holds_looks_uniform_whatever_the_mask_is() -> None:
    for mask in (0, -1):
        _, corrections = keys(torch.full((400,), mask))
        for tensor in corrections:
            counts = np.bincount(((tensor.reshape(-1) >> 8) & 255).numpy(), minlength=256)
            assert stats.chisquare(counts).pvalue > 1e-6
