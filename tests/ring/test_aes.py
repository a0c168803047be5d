"""The compiled streams give the bytes of the package cryptography, wherever a piece begins and ends."""

import ctypes
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcformer.ring import aes
from mpcformer.ring.library import load_library

LIBRARY, WHY_NOT = load_library()
LEVEL = 0 if LIBRARY is None else int(LIBRARY.mpcformer_aes_level())
KEY = bytes(range(16))


def expected(n_bytes: int) -> torch.Tensor:
    out = torch.empty(n_bytes, dtype=torch.uint8)
    aes.PackageStream(KEY).fill(out)
    return out


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 3000))
@pytest.mark.parametrize("level", range(1, LEVEL + 1))
def test_any_piece_is_the_packages(level: int, at: int, n_bytes: int) -> None:
    assert LIBRARY is not None
    out = torch.empty(n_bytes, dtype=torch.uint8)
    aes.compiled(LIBRARY, level)(KEY, at, out)
    assert torch.equal(out, expected(at + n_bytes)[at:])


@pytest.mark.parametrize("stream", [aes.open_stream, aes.PackageStream])
def test_pieces_follow_each_other(stream: type[aes.PackageStream]) -> None:
    found, pieces = stream(KEY), [torch.empty(n, dtype=torch.int32) for n in (1, 0, 3, 100, 70_000, 2)]
    for piece in pieces:
        if piece.numel():
            found.fill(piece)
    assert torch.equal(torch.cat(pieces).view(torch.uint8), expected(4 * 70_106))


@pytest.mark.skipif(not LEVEL, reason="no compiled stream here")
def test_threads_never_get_the_same_bytes() -> None:
    assert LIBRARY is not None
    stream = aes.CompiledStream(aes.compiled(LIBRARY), KEY)
    pieces = [torch.empty(200_000, dtype=torch.int64) for _ in range(16)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(stream.fill, pieces))
    starts = sorted(piece[0].item() for piece in pieces)
    assert len(set(starts)) == len(pieces)
    whole = expected(8 * 200_000 * len(pieces)).view(torch.int64)
    assert starts == sorted(whole[::200_000].tolist())


@pytest.mark.skipif(LIBRARY is None, reason=WHY_NOT)
def test_what_cannot_be_filled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LIBRARY is not None
    with pytest.raises(ValueError, match="no stream of level 0"):
        aes.compiled(LIBRARY, 0)(KEY, 0, torch.empty(4))
    with pytest.raises(ValueError, match="strides"):
        aes.compiled(LIBRARY)(KEY, 0, torch.empty(4, 4).t()[1:])
    # A function that is not right, or of another file, is not used.
    for wrong in (lambda library: lambda key, at, out: out.zero_(), lambda library: ctypes.CDLL(None).no_such_function):
        monkeypatch.setattr(aes, "compiled", wrong)
        aes._usable.cache_clear()
        try:
            assert isinstance(aes.open_stream(KEY), aes.PackageStream)
        finally:
            aes._usable.cache_clear()
