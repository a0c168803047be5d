"""The compiled corrections of lifted masks are those of the twin."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcformer.correlations import MaskKeys, deal, lifted, unpacked
from mpcformer.correlations.kinds import KINDS
from mpcformer.correlations.lifted import USES, LiftedSpec
from mpcformer.ring import kernels
from mpcformer.ring.packing import reduce
from mpcformer.ring.random import Stream, derive_key

FOUND, WHY_NOT = kernels.load()


@pytest.mark.skipif(FOUND is None, reason=WHY_NOT)
@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(USES),
    st.sampled_from([(5,), (3, 7), (2, 2, 9), (1, 1)]),
    st.sampled_from([(24, 64), (32, 64), (24, 40), (28, 36), (32, 48), (16, 20)]),
    st.integers(0, 2**40),
)
def test_the_compiled_corrections_are_the_twins(
    use: str, shape: tuple[int, ...], rings: tuple[int, int], seed: int
) -> None:
    spec = LiftedSpec(use, shape, *rings)
    request, keys = spec.request(), [derive_key(bytes(16), seed, rank) for rank in (0, 1)]
    kind = KINDS["lifted"]
    share_0, share_1 = (kind.draw(request, Stream(key), rank) for rank, key in enumerate(keys))
    twin = lifted.correct_by_torch(spec, share_0, share_1)
    dealt = unpacked(request, deal(request, keys[0], keys[1], MaskKeys(bytes(16), bytes(16))))
    for (_, bits), a, b in zip(kind.layout(request), twin, dealt, strict=True):
        assert torch.equal(reduce(a, bits), reduce(b, bits))
    made = kind.correct(request, share_0, share_1)
    assert all(torch.equal(a, b) for a, b in zip(made, twin, strict=True))


@pytest.mark.skipif(FOUND is None, reason=WHY_NOT)
def test_masks_of_other_shapes_are_refused() -> None:
    assert FOUND is not None
    x = torch.zeros(3, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="does not fit c"):
        FOUND.lifting.correct([x, x[:2]], {"carry": x, "m": x}, bits=24, squares="")
