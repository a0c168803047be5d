"""Keys of point functions expand to the payload at the secret place, and look like uniform bits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcformer.correlations import CorrelationStore, MaskKeys, Request, deal, session_key
from mpcformer.correlations.keys import point_function
from mpcformer.correlations.table import TableSpec
from mpcformer.errors import ProtocolError
from mpcformer.ring import kernels, points
from mpcformer.ring.aes import AES, NONE
from mpcformer.ring.random import Stream, block_hash, derive_key

FOUND, WHY_NOT = kernels.load()
needs_kernels = pytest.mark.skipif(
    FOUND is None or not FOUND.points.has_aes, reason=WHY_NOT or "no AES instructions here"
)


def keys(seed: int, places: torch.Tensor, payload: torch.Tensor, n: int) -> tuple[list[torch.Tensor], ...]:
    """Return both owners' roots, and the corrections."""
    stream = Stream(derive_key(bytes(16), seed))
    roots = [stream.int64((len(places), 2)) for _ in range(2)]
    return roots, list(point_function.corrections((roots[0], roots[1]), places, payload, n))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 8), st.integers(1, 6), st.data())
def test_the_expansions_add_up_to_the_payload(seed: int, n: int, width: int, data: st.DataObject) -> None:
    places = torch.tensor(data.draw(st.lists(st.integers(0, 2**n - 1), min_size=1, max_size=9)))
    payload = Stream(derive_key(bytes(16), seed + 1)).int64((len(places), width))
    roots, corrections = keys(seed, places, payload, n)
    total = sum(point_function.expand(rank, root, *corrections) for rank, root in enumerate(roots))
    expected = torch.zeros(width, len(places), 2**n, dtype=torch.int64)
    expected[:, torch.arange(len(places)), places] = payload.t()
    assert torch.equal(torch.as_tensor(total), expected)


@needs_kernels
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 11), st.integers(1, 6), st.integers(1, 35))
def test_the_compiled_expansions_are_the_same(seed: int, n: int, width: int, rows: int) -> None:
    assert FOUND is not None
    rows = min(rows, 3 if n > 8 else rows)
    stream = Stream(derive_key(bytes(16), seed))
    key = stream.int64((rows, 2)), stream.int64((rows, n, 2)), stream.int64((rows, width))
    for rank in (0, 1):
        twin = point_function.expand_by_torch(rank, *key)
        for level in range(AES, FOUND.points.level + 1):
            assert torch.equal(FOUND.points.expand(rank, *key, level=level), twin)


@needs_kernels
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**40), st.sampled_from([1, 2, 3, 9, 24, 63]), st.integers(1, 6), st.integers(1, 11))
def test_the_compiled_corrections_are_the_same(seed: int, n: int, width: int, rows: int) -> None:
    stream = Stream(derive_key(bytes(16), seed))
    roots = stream.int64((rows, 2)), stream.int64((rows, 2))
    rest = stream.bits((rows,), n), stream.int64((rows, width)), n
    compiled, twin = point_function.corrections(roots, *rest), point_function.corrections_by_torch(roots, *rest)
    assert all(torch.equal(a, b) for a, b in zip(compiled, twin, strict=True))


@needs_kernels
@pytest.mark.parametrize(("rows", "n"), [(1, 2), (points.ROWS_TOGETHER + 1, 4), (2, points.DEEP + 1)])
def test_a_processor_on_which_an_expansion_is_wrong_does_not_use_it(
    monkeypatch: pytest.MonkeyPatch, rows: int, n: int
) -> None:
    """Each way to expand is tried before it is relied on, and a single wrong number is noticed."""
    assert FOUND is not None
    expand, wrong = FOUND.points.expand, [NONE]

    def broken(rank: int, root: torch.Tensor, *corrections: torch.Tensor, level: int | None = None) -> torch.Tensor:
        out = expand(rank, root, *corrections, level=level)
        if rank == 0 and level in wrong and corrections[0].shape[:2] == (rows, n):
            out[0, -1, -1] += 1
        return out

    assert FOUND.points.are_right()
    monkeypatch.setattr(FOUND.points, "expand", broken)
    for level in range(AES, FOUND.points.level + 1):
        wrong[0] = level
        assert not FOUND.points.are_right()


@needs_kernels
def test_parts_of_other_types_never_reach_the_compiled_functions() -> None:
    assert FOUND is not None
    roots, places = (torch.zeros(4, 2, dtype=torch.int64),) * 2, torch.zeros(4, dtype=torch.int64)
    payload = torch.ones(4, 2, dtype=torch.int64)
    levels, leaves = FOUND.points.correct(roots, places, payload, 3)
    for wrong in (
        lambda: FOUND.points.correct(roots, places.int(), payload.int(), 3),
        lambda: FOUND.points.correct(roots, places, payload, 0),
        lambda: FOUND.points.correct(roots, places, payload, 65),
        lambda: FOUND.points.expand(0, roots[0], levels.int(), leaves),
        lambda: FOUND.points.expand(2, roots[0], levels, leaves),
    ):
        with pytest.raises(ValueError, match="no point function of"):
            wrong()


def test_other_roots_give_other_keys_and_the_same_ones_the_same() -> None:
    places, payload = torch.tensor([3, 3]), torch.tensor([[1, 5, 25]] * 2)
    first, again, other = (keys(seed, places, payload, 5)[1] for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any((a == b).any() for a, b in zip(first, other, strict=True))
    assert not (first[0][0] == first[0][1]).any(), "the same point has another key in each row"


@pytest.mark.parametrize("place", [0, 5, 15])
def test_a_key_looks_uniform_whatever_the_place_and_the_payload(place: int) -> None:
    rows, n = 4000, 4
    payload = torch.tensor([[1, 0, 0]]).expand(rows, -1)
    roots, (levels, leaves) = keys(place, torch.full((rows,), place), payload, n)
    for words in (levels[..., 0], levels[..., 1], leaves):
        for bit in range(64):
            share = float(((words >> bit) & 1).double().mean())
            assert abs(share - 0.5) < 6 * 0.5 / math.sqrt(words.numel()), bit
    # A single share of the vector is as uniform at the place as elsewhere.
    for rank, root in enumerate(roots):
        values = point_function.expand(rank, root, levels, leaves)
        for bit in (0, 1, 31, 62):
            share = ((values >> bit) & 1).double().mean(1)
            assert float((share - 0.5).abs().max()) < 6 * 0.5 / math.sqrt(rows)


def test_a_payload_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 6 numbers, not 7"):
        keys(1, torch.tensor([0]), torch.zeros((1, 7), dtype=torch.int64), 2)


def test_corrections_are_passed_on_once_and_before_they_are_prepared() -> None:
    request, seeds, session = (
        TableSpec("tanh", 4, -100, 0.01, -1.0, 1.0, 20).request(3),
        [bytes(16), b"1" * 16],
        bytes(16),
    )
    square = Request("square_pair", ((3,),))
    made = deal(request, *(session_key(seed, session, 0, request) for seed in seeds), MaskKeys(bytes(16), bytes(16)))
    owners = [CorrelationStore(rank=rank, seed=seeds[rank], session_id=session) for rank in (0, 1)]
    owners[0].put(0, request, made)
    owners[0].put(1, square, [torch.zeros(3, dtype=torch.int64)])
    owners[1].put(0, request, owners[0].passed_on(0))
    for refused in (
        lambda: owners[0].passed_on(1),
        lambda: owners[0].passed_on(7),
        lambda: owners[1].preview(0, request),
    ):
        with pytest.raises(ProtocolError):
            refused()
    for owner in owners:
        owner.prepare(0)
        with pytest.raises(ProtocolError, match="was prepared before"):
            owner.prepare(0)
    with pytest.raises(ProtocolError, match="no correction that rank 1 may see"):
        owners[0].passed_on(0)
    one = sum(owner.take(request).shares[1][0] for owner in owners)
    assert torch.equal(torch.as_tensor(one).sum(1), torch.ones(3, dtype=torch.int64))


def test_hashes_are_aes_of_each_block_and_differ() -> None:
    blocks = Stream(bytes(16)).int64((3, 5, 2))
    first, second = block_hash(blocks, 0), block_hash(blocks, 1)
    assert first.shape == blocks.shape
    assert torch.equal(first[1, 2], block_hash(blocks[1, 2], 0))
    assert not (first == second).any()
    assert block_hash(blocks[:0], 0).shape == (0, 5, 2)
