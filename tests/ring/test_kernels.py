"""The compiled products give torch's numbers, for every shape, stride, number and number of threads."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcformer.protocols.lifted import lifted_by_torch
from mpcformer.ring import gemm, kernels, library, lifting
from mpcformer.ring.kernels import Kernels
from mpcformer.ring.packing import WIDTHS, Operand, PackedMatrix, pack, reduce
from mpcformer.ring.random import Stream, derive_key

EDGES = torch.tensor([-(2**63), 2**63 - 1, -1, 0, 1, 2**31, -(2**31), 2**31 - 1, 2**32, 2**32 - 1, -(2**32), 2**62])
FOUND, WHY_NOT = kernels.load()
needs_kernels = pytest.mark.skipif(FOUND is None, reason=WHY_NOT)


@pytest.fixture(params=range(1, (FOUND.level if FOUND is not None else 0) + 1), ids=lambda level: kernels.LEVELS[level])
def compiled(request: pytest.FixtureRequest) -> Kernels:
    """The compiled products at each level that this processor has."""
    path = library.compiled_file()
    assert path is not None
    return Kernels(ctypes.CDLL(str(path)), request.param)


def numbers(stream: Stream, shape: tuple[int, ...], n_edges: int) -> torch.Tensor:
    """Return uniform numbers, of which `n_edges` are at the borders of what a word or half a word holds."""
    x = stream.int64(shape).view(-1)
    if x.numel():
        places = stream.bits((n_edges,), 20) % x.numel()
        x[places] = EDGES[stream.bits((n_edges,), 20) % len(EDGES)]
    return x.view(shape)


def compare(compiled: Kernels, seed: int, batch: tuple[int, ...], m: int, k: int, n: int, transposed: bool) -> None:
    stream = Stream(derive_key(bytes(16), seed))
    x, y = numbers(stream, (*batch, m, k), 5), numbers(stream, (*batch, k, n), 5)
    if transposed:
        y = y.transpose(-1, -2).contiguous().transpose(-1, -2)
    short = y.to(torch.int32)
    narrow = torch.matmul(x.to(torch.int32), short).long()
    cases = (
        (y, 64, torch.matmul(x, y)),
        (short, 64, torch.matmul(x, short.long())),
        (short, 32, narrow),
        (y, 32, narrow),
    )
    assert all(torch.equal(compiled.matmul(x, right, bits), expected) for right, bits, expected in cases)
    for right in (y, short):
        found = compiled.matmul(x, right, kernels.IFMA_BITS)
        assert torch.equal(reduce(found, kernels.IFMA_BITS), reduce(x @ right.long(), kernels.IFMA_BITS))


SHAPES = st.tuples(
    st.integers(0, 2**40),
    st.sampled_from([(), (1,), (3,), (2, 2), (0,)]),
    st.integers(0, 40),
    st.integers(0, 70),
    st.integers(0, 110),
    st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(shape=SHAPES)
@pytest.mark.parametrize("level", range(1, (FOUND.level if FOUND is not None else 0) + 1))
def test_any_shape_gives_torchs_numbers(level: int, shape: tuple[int, tuple[int, ...], int, int, int, bool]) -> None:
    path = library.compiled_file()
    assert path is not None
    compare(Kernels(ctypes.CDLL(str(path)), level), *shape)


@pytest.mark.slow
def test_ten_thousand_shapes(compiled: Kernels) -> None:
    draw = Stream(bytes(16))
    for seed in range(10_000):
        m, k, n, b = (int(value) for value in draw.bits((4,), 20))
        compare(compiled, seed, (), 1 + m % 30, 1 + k % 50, 1 + n % 60, bool(b % 2))


@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 1, 1), (3, 192, 8), (6, 193, 16), (241, 10, 5), (240, 384, 48), (250, 500, 100)]
)
def test_the_borders_of_tiles_and_blocks(compiled: Kernels, m: int, k: int, n: int) -> None:
    for extra in (0, 1):
        compare(compiled, 1, (2,), m + extra, k + extra, n + extra, bool(extra))


def test_strides_and_threads(compiled: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(bytes(16))
    x, y = stream.int64((2, 50, 90)), stream.int64((2, 130, 120))
    parts = (x[:, 3:40:2, 5:75], y[:, 10:80, 7:113]), (x.transpose(1, 2), y[:, :50]), (x[0], y[:, :90])
    expected = [torch.matmul(a, b) for a, b in parts]
    assert all(torch.equal(compiled.matmul(a, b, 64), c) for (a, b), c in zip(parts, expected, strict=True))
    monkeypatch.setattr(kernels, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert all(torch.equal(compiled.matmul(a, b, 64), c) for (a, b), c in zip(parts, expected, strict=True))


@pytest.fixture
def fresh() -> Iterator[None]:
    """Let `load` look again, within the test and after it."""
    _forget()
    yield
    _forget()


def _forget() -> None:
    library.load_library.cache_clear()
    kernels.load.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_without_the_compiled_file_torch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(bytes(16))
    x, y = stream.int64((40, 50)), stream.int64((50, 60))
    expected = x @ y
    monkeypatch.setenv(library.SWITCH, "off")
    assert kernels.load() == (None, library.OFF)
    for capability in ("AVX2", "AVX512"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        assert torch.equal(gemm.matmul(x, y), expected)
        assert torch.equal(gemm.matmul(x, y.to(torch.int32)), x @ y.to(torch.int32).long())
        assert torch.equal(gemm.matmul(x, y, 32), expected.to(torch.int32).long())
    monkeypatch.delenv(library.SWITCH)
    _forget()
    monkeypatch.setattr(library, "compiled_file", lambda: None)
    assert kernels.load() == (None, library.NO_FILE)
    assert torch.equal(gemm.matmul(x, y), expected)


@needs_kernels
@pytest.mark.usefixtures("fresh")
def test_wrong_numbers_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Kernels.matmul
    monkeypatch.setattr(Kernels, "matmul", lambda self, x, y, bits: real(self, x, y, bits) + 1)
    found, why = kernels.load()
    assert (found, why) == (None, kernels.WRONG)


@needs_kernels
def test_a_process_can_switch_them_off() -> None:
    code = "from mpcformer.ring.kernels import load; print(load()[0] is None)"
    for value, printed in (("off", "True"), ("on", "False")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {library.SWITCH: value},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout.strip() == printed


LIFTS = st.tuples(st.integers(12, 40), st.sampled_from([24, 36, 48, 52, 56, 64])).filter(lambda pair: pair[0] < pair[1])


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 2**40),
    st.sampled_from(["value", "square", "length", "times"]),
    st.tuples(st.integers(0, 5), st.sampled_from([1, 2, 7, 19, 255, 256, 257, 600])),
    LIFTS,
    st.integers(0, 1),
    st.integers(-8, 40),
    st.booleans(),
)
@needs_kernels
def test_lifted_openings_give_the_twins_numbers(
    seed: int, use: str, shape: tuple[int, int], rings: tuple[int, int], rank: int, down: int, has_top: bool
) -> None:
    assert FOUND is not None
    stream, (bits, lift) = Stream(derive_key(bytes(16), seed)), rings
    names = {"value": (), "square": ("rm", "squares"), "length": ("rm",), "times": ("rb", "mb", "rn")}[use]
    arrays = {name: numbers(stream, shape, 3) for name in ("r", "carry", "m", *names)}
    arrays["c"] = numbers(stream, shape, 3) & ((1 << bits) - 1)
    of_rows = {"length": ("squares",), "times": ("factor", "eta", "wrapped")}.get(use, ())
    arrays |= {name: numbers(stream, (shape[0], 1), 2) for name in of_rows}
    if use == "times":
        arrays["wrapped"] &= 1
        if not has_top:
            del arrays["rn"]
    options = {"bits": bits, "lift": lift, "rank": rank, "down": 0 if use == "length" else down}
    options["offset"] = seed % 1000 if use == "square" else 0
    # Corrections may be packed; those of which the seed has a bit are.
    whole: dict[str, Operand] = dict(arrays)
    for index, name in enumerate(lifting.CORRECTED):
        if name in arrays and seed >> index & 1:
            width = WIDTHS[(seed >> 7) % len(WIDTHS[:-1])]
            whole[name] = PackedMatrix(pack(arrays[name], width), tuple(arrays[name].shape), width)
    found = FOUND.lifting.opened(use, arrays=whole, **options)
    assert torch.equal(found, lifted_by_torch(use, arrays=whole, **options))


@needs_kernels
def test_packed_corrections_of_another_size_are_refused() -> None:
    assert FOUND is not None
    arrays: dict[str, Operand] = {name: torch.zeros(4, 300, dtype=torch.int64) for name in ("c", "r", "m")}
    arrays["carry"] = PackedMatrix(torch.zeros(4 * 300 * 4 - 1, dtype=torch.uint8), (4, 300), 32)
    with pytest.raises(ValueError, match="carry of 4799 bytes"):
        FOUND.lifting.opened("value", arrays=arrays, bits=32, lift=64, rank=0, offset=0, down=0)


@needs_kernels
def test_lifted_openings_of_other_shapes_and_types_are_refused() -> None:
    assert FOUND is not None
    x = torch.zeros(3, 4, dtype=torch.int64)
    options = {"bits": 24, "lift": 64, "rank": 0, "offset": 0, "down": 0}
    whole = {"c": x, "r": x, "carry": x, "m": x}
    assert FOUND.lifting.opened("value", arrays=whole, **options).shape == (3, 4)
    for wrong in ({"m": x[:2]}, {"r": x.to(torch.int32)}, {"factor": x}):
        with pytest.raises(ValueError, match="does not fit c"):
            FOUND.lifting.opened("value", arrays=whole | wrong, **options)
