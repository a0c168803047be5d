"""The matrix product by limbs equals the product of the integers modulo 2^64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcformer.errors import UserInputError
from mpcformer.ring import gemm
from mpcformer.ring.packing import reduce
from mpcformer.ring.random import Stream, fresh_key

LARGEST = 2**63 - 1
EDGES = [-(2**63), LARGEST, -1, 0, 1, 2**21, -(2**21), 2**21 - 1, 2**43, -(2**43) - 1, 2**62]


@settings(max_examples=100)
@given(st.lists(st.one_of(st.sampled_from(EDGES), st.integers(-(2**63), LARGEST)), min_size=1, max_size=40))
def test_limbs_add_up(values: list[int]) -> None:
    x = torch.tensor(values)
    total = torch.zeros_like(x)
    for i, limb in enumerate(gemm.limbs(x)):
        assert float(limb.abs().max()) <= 2**21
        total += limb.to(torch.int64) << (gemm.LIMB_BITS * i)
    assert torch.equal(total, x)


@pytest.mark.parametrize("n", [1, 7, gemm.EXACT_TERMS, gemm.EXACT_TERMS + 1, 5000])
@pytest.mark.parametrize("bits", [63, 18])
def test_the_product_by_limbs(n: int, bits: int) -> None:
    stream = Stream(fresh_key())
    x, weight = stream.int64((5, n)), stream.bits((n, 3), bits) - (1 << (bits - 1))
    x[0] = -(2**63)
    x[1] = torch.tensor(EDGES).repeat(n)[:n]
    weight[:, 0] = -(1 << (bits - 1))  # this makes the largest sums possible
    assert torch.equal(gemm.limb_matmul(x, weight), x @ weight)


def test_short_weights_take_one_limb() -> None:
    assert len(gemm.limbs(torch.tensor([2**21 - 1, -(2**21)]))) == 1
    assert len(gemm.limbs(torch.tensor([2**21]))) == 2
    assert len(gemm.limbs(torch.tensor([2**62]))) == 3


def test_a_device_is_checked_before_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserInputError, match="--device: 'tpu' is unknown"):
        gemm.check_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserInputError, match="no CUDA device"):
        gemm.check_device("cuda")
    with pytest.raises(UserInputError, match="no CUDA device"):
        gemm.use("cuda")
    gemm.check_device("cpu")
    gemm.use("cpu")


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_the_accelerators_way_gives_the_processors_numbers(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, bits: int
) -> None:
    """The code takes the path for a GPU, but its tensors are on the processor."""
    stream = Stream(fresh_key())
    x, weight = stream.int64((4, 50)), stream.int64((50, 6)).to(dtype)
    expected = gemm.matmul(x, weight, bits)

    class Elsewhere:
        type = "elsewhere"

    move = torch.Tensor.to
    monkeypatch.setattr(gemm, "_device", Elsewhere())
    monkeypatch.setattr(torch.Tensor, "to", lambda t, d, *a: t if isinstance(d, Elsewhere) else move(t, d, *a))
    assert torch.equal(gemm.matmul(x, weight, bits), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_a_gpu() -> None:
    stream = Stream(fresh_key())
    x, weight = stream.int64((128, 768)), stream.int64((768, 2304))
    gemm.use("cuda")
    try:
        assert torch.equal(gemm.matmul(x, weight), x @ weight)
    finally:
        gemm.use("cpu")


@settings(max_examples=150, deadline=None)
@given(
    st.integers(4, 64),
    st.integers(1, 31),
    st.sampled_from([(1, 1, 1), (7, 20, 3), (8, 1, 300), (9, 33, 257), (40, 300, 5)]),
)
def test_products_of_short_matrices_are_exact(bits: int, width: int, shape: tuple[int, int, int]) -> None:
    rows, n, columns = shape
    stream = Stream(fresh_key())
    x, y = stream.int64((rows, n)), (stream.bits((n, columns), width) - (1 << (width - 1))).to(torch.int32)
    x[0], y[:, 0] = 2 ** (bits - 1) - 1 if bits < 64 else LARGEST, -(1 << (width - 1))
    short = gemm.ShortMatrix.of(y)
    assert short.numbers.dtype == (torch.int16 if width <= 16 else torch.int32)
    assert int(y.long().abs().sum(0).max()) < 2**short.log_sum
    assert torch.equal(reduce(gemm.matmul_short(x, short, bits), bits), reduce(x @ y.long(), bits))
