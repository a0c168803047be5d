"""Products by short numbers are right modulo every ring, on every level of the processor, and by the twin."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcformer.ring import gemm, kernels
from mpcformer.ring.library import load_library
from mpcformer.ring.packing import reduce
from mpcformer.ring.random import Stream, derive_key
from mpcformer.ring.short import BLOCK, ShortKernels, has_exact_blocks

LIBRARY, WHY_NOT = load_library()
LEVEL = 0 if LIBRARY is None else int(LIBRARY.mpcformer_short_level())
LEVELS = range(1, LEVEL + 1)


def factors(seed: int, shape: tuple[int, int, int], bits: int, is_transposed: bool) -> Iterator[torch.Tensor]:
    """Yield ring elements with the borders of limbs, and numbers of 16 bits that have exact blocks where they must."""
    m, k, n = shape
    stream = Stream(derive_key(bytes(16), seed))
    x, y = stream.int64((m, k)), stream.int64((k, n)).to(torch.int16)
    edges = torch.tensor([2**15, 2**15 - 1, -(2**15), 2**31 - 1, -(2**31), 2**47 + 2**15, 2**63 - 1, -(2**63)])
    if x.numel():
        x.view(-1)[: len(edges)] = edges[: x.numel()]
    if y.numel():
        y.view(-1)[:2] = torch.tensor([-(2**15), 2**15 - 1], dtype=torch.int16)[: y.numel()]
    if bits > 32:
        y = y >> 8
    yield x
    yield y.t().contiguous().t() if is_transposed else y


SHAPES = st.tuples(st.integers(0, 70), st.integers(0, 2 * BLOCK + 3), st.integers(0, 110))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**40), SHAPES, st.integers(4, 64), st.booleans())
@pytest.mark.parametrize("level", LEVELS)
def test_every_level_gives_torchs_numbers(
    level: int, seed: int, shape: tuple[int, int, int], bits: int, is_transposed: bool
) -> None:
    assert LIBRARY is not None
    x, y = factors(seed, shape, bits, is_transposed)
    assert bits <= 32 or not y.numel() or has_exact_blocks(y)
    out = torch.empty(shape[0], shape[2], dtype=torch.int64)
    ShortKernels(LIBRARY, level).matmul(x, y, bits, out)
    assert torch.equal(reduce(out, bits), reduce(x @ y.long(), bits))


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_ten_thousand_shapes(level: int) -> None:
    assert LIBRARY is not None
    compiled, draw = ShortKernels(LIBRARY, level), Stream(bytes(16))
    for seed in range(10_000):
        m, k, n, bits = (int(value) for value in draw.bits((4,), 20))
        shape, width = (1 + m % 30, 1 + k % 300, 1 + n % 60), 4 + bits % 61
        x, y = factors(seed, shape, width, bool(seed % 2))
        out = torch.empty(shape[0], shape[2], dtype=torch.int64)
        compiled.matmul(x, y, width, out)
        assert torch.equal(reduce(out, width), reduce(x @ y.long(), width)), seed


def test_the_largest_sums_of_a_block_are_exact() -> None:
    y = torch.zeros(2 * BLOCK, 3, dtype=torch.int16)
    y[:, 0], y[::2, 1] = 255, -511
    assert has_exact_blocks(y)
    x = torch.full((9, 2 * BLOCK), -(2**63) + 2**15)
    short = gemm.ShortMatrix.of(y.to(torch.int32))
    for bits in (36, 48, 64):
        expected = reduce(x @ y.long(), bits)
        assert torch.equal(reduce(gemm.matmul_short(x, short, bits), bits), expected)
        assert torch.equal(reduce(gemm.matmul_in_doubles(x, short, bits), bits), expected)
    y[:, 0] = 256
    assert not has_exact_blocks(y)
    wide = gemm.ShortMatrix.of(y.to(torch.int32))
    assert torch.equal(reduce(gemm.matmul_short(x, wide, 40), 40), reduce(x @ y.long(), 40))


@pytest.mark.skipif(LIBRARY is None, reason=WHY_NOT)
def test_threads_and_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = kernels.load()
    assert found is not None
    x, y = factors(3, (50, 90, 130), 32, False)
    expected = reduce(x[::2, 5:75] @ y[5:75].long(), 32)
    assert torch.equal(reduce(found.matmul_short(x[::2, 5:75], y[5:75], 32), 32), expected)
    assert torch.equal(reduce(found.matmul_short(x.t()[5:75, :50].t()[::2], y[5:75], 32), 32), expected)
    monkeypatch.setattr(kernels, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(reduce(found.matmul_short(x[::2, 5:75], y[5:75], 32), 32), expected)


@pytest.mark.skipif(LIBRARY is None, reason=WHY_NOT)
def test_what_has_no_product_is_refused() -> None:
    assert LIBRARY is not None
    compiled, x = ShortKernels(LIBRARY), torch.zeros(3, 4, dtype=torch.int64)
    y, out = torch.zeros(4, 5, dtype=torch.int16), torch.zeros(3, 5, dtype=torch.int64)
    for wrong in ((x, y.to(torch.int32), out), (x[:, :3], y, out), (x, y, out[:2])):
        with pytest.raises(ValueError, match="no product of"):
            compiled.matmul(wrong[0], wrong[1], 32, wrong[2])
    with pytest.raises(ValueError, match="into strides"):
        compiled.matmul(x, y, 32, torch.zeros(5, 3, dtype=torch.int64).t())
    with pytest.raises(ValueError, match="of level 0"):
        ShortKernels(LIBRARY, 0).matmul(x, y, 32, out)
