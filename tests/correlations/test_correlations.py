"""Shares of correlations multiply out, rank 1 needs no message, each is used once, nothing malformed is dealt."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcformer.correlations import (
    CorrelationStore,
    MaskKeys,
    Request,
    correction_specs,
    correlation_plan_digest,
    deal,
    expand,
    mask_keys,
    requests,
    session_key,
    unpacked,
)
from mpcformer.correlations.lifted import LiftedSpec
from mpcformer.errors import ProtocolError
from mpcformer.protocols import linear
from mpcformer.ring.packing import logical_shift
from mpcformer.ring.packing import unpacked as unpacked_operand
from mpcformer.ring.random import fresh_key

KEY_0, KEY_1 = bytes(range(16)), bytes(range(16, 32))
BITS = Request("bit_pair", ((64,),))


def both(request: Request) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    correction = deal(request, KEY_0, KEY_1, MaskKeys(fresh_key(), fresh_key()))
    assert [spec.shape for spec in correction_specs(request)] == [tuple(c.shape) for c in correction]
    return expand(request, KEY_0, 0, unpacked(request, correction)).shares, expand(request, KEY_1, 1, []).shares


def opened(request: Request) -> list[torch.Tensor]:
    return [left + right for left, right in zip(*both(request), strict=True)]


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3))
def test_matmul_triple(m: int, k: int, n: int, batch: int) -> None:
    a, b, c = opened(Request("additive_triple", ((batch, m, k), (k, n)), op="matmul"))
    assert torch.equal(c, a @ b)


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(1, 5))
def test_mul_triple_broadcasts(m: int, n: int) -> None:
    a, b, c = opened(Request("additive_triple", ((m, n), (n,)), op="mul"))
    assert torch.equal(c, a * b)


def test_square_pair() -> None:
    r, r2 = opened(Request("square_pair", ((4, 5),)))
    assert torch.equal(r2, r * r)


@pytest.mark.parametrize("bits", [1, 16, 19, 61])
def test_truncation_mask(bits: int) -> None:
    r, shifted, top = opened(Request("truncation", ((500,),), bits=bits))
    assert torch.equal(shifted, logical_shift(r, bits))
    assert torch.equal(top, (r < 0).long())
    assert 150 < int(top.sum()) < 350


def test_binary_triple_and_bit_pair() -> None:
    a, b, c = (x ^ y for x, y in zip(*both(Request("binary_triple", ((3, 4), (3, 4)))), strict=True))
    assert torch.equal(c, a & b)
    (bit_0, word_0), (bit_1, word_1) = both(Request("bit_pair", ((200,),)))
    assert torch.equal(bit_0 ^ bit_1, word_0 + word_1)
    assert set((word_0 + word_1).tolist()) == {0, 1}


def test_rank_one_gets_nothing_from_the_dealer_and_sessions_differ() -> None:
    request = Request("square_pair", ((8,),))
    sessions, requests = (b"a" * 16, b"b" * 16), (request, Request("square_pair", ((9,),)))
    keys = {session_key(KEY_0, session, op, r) for session in sessions for op in range(10) for r in requests}
    assert len(keys) == 40
    store = CorrelationStore(rank=1, seed=KEY_1, session_id=b"s" * 16)
    with pytest.raises(ProtocolError, match="rank 1 takes no correction for"):
        store.put(0, request, [])
    assert store.take(request).shares[0].shape == (8,)


def test_a_correlation_is_used_once() -> None:
    request = Request("square_pair", ((8,),))
    store = CorrelationStore(rank=0, seed=KEY_0, session_id=b"s" * 16)
    correction = [torch.zeros(8, dtype=torch.int64)]
    store.put(0, request, correction)
    with pytest.raises(ProtocolError, match="used once"):
        store.put(0, request, correction)
    store.take(request)
    with pytest.raises(ProtocolError, match="used once"):
        store.put(0, request, correction)
    with pytest.raises(ProtocolError, match=r"operation 1 .* is missing"):
        store.take(request)


def test_the_mask_of_a_maps_input_is_the_one_that_was_looked_at() -> None:
    request = linear.request(["w"], 3, {"w": (4, 5)}, [32])
    store = CorrelationStore(rank=1, seed=KEY_1, session_id=b"s" * 16)
    with pytest.raises(ProtocolError, match="was not looked at"):
        store.input_mask(request)
    assert store.next_operation == 0
    a, _ = store.preview(0, request).shares
    assert torch.equal(store.input_mask(request), a)
    with pytest.raises(ProtocolError, match="was not looked at"):
        store.input_mask(request)


def test_working_ahead_changes_nothing_but_when_the_work_is_done() -> None:
    shapes = {"w": (6, 5), "v": (5, 3)}
    plan = [
        linear.request(["w"], 4, shapes, [32]),
        LiftedSpec("square", (4, 5), 20, 40).request(),
        Request("square_pair", ((3,),)),
        linear.request(["v"], 4, shapes, [32]),
        LiftedSpec("norm", (4, 3), 20, 44).request(),
        linear.request(["w"], 4, shapes, [32]),
        LiftedSpec("plain", (4, 5), 20).request(),
    ]
    seeds, session_id = [fresh_key(), fresh_key()], fresh_key()

    def all_shares(rank: int, ahead: int) -> list[torch.Tensor]:
        whole = CorrelationStore(rank=rank, seed=seeds[rank], session_id=session_id)
        store = whole.reserve(len(plan), plan)
        for operation, request in enumerate(plan):
            keys = [session_key(seed, session_id, operation, request) for seed in seeds]
            if rank == 0:
                store.put(operation, request, deal(request, *keys, mask_keys(seeds[0], session_id, 0)))
            elif request.kind == "linear":
                store.preview(operation, request)
        found: list[torch.Tensor] = []
        for request in plan:
            for _ in range(ahead):
                store.work_ahead()
            if rank == 1 and request.kind == "linear":
                found.append(store.input_mask(request))
            else:
                found += [unpacked_operand(share) for share in store.take_packed(request)]
        return found

    for rank in (0, 1):
        once, now, twice = (all_shares(rank, ahead) for ahead in (1, 0, 2))
        assert len(now) > len(plan)
        assert all(map(torch.equal, once, now))
        assert all(map(torch.equal, twice, now))


def test_looking_ahead_is_done_once_and_binds() -> None:
    request, other = Request("square_pair", ((8,),)), Request("lifted", ((8,),), op="plain", bits=32)
    store = CorrelationStore(rank=1, seed=KEY_1, session_id=b"s" * 16)
    ahead = store.preview(0, request).shares
    with pytest.raises(ProtocolError, match="looked at ahead"):
        store.preview(0, request)
    with pytest.raises(ProtocolError, match="looked at ahead as"):
        store.take(other)
    assert all(torch.equal(a, b) for a, b in zip(ahead, store.take(request).shares, strict=True))
    with pytest.raises(ProtocolError, match="looked at ahead"):
        store.preview(0, request)
    store.preview(1, other)
    with pytest.raises(ProtocolError, match="looked at ahead as"):
        store.skip(request)
    store.skip(other)
    with pytest.raises(ProtocolError, match="was not looked at"):
        store.skip(other)


def test_the_masks_of_weights_serve_one_model() -> None:
    store = CorrelationStore(rank=0, seed=KEY_0, session_id=b"s" * 16)
    store.weight_mask_key()
    with pytest.raises(ProtocolError, match="used once"):
        store.weight_mask_key()


def test_the_same_index_for_another_request_is_other_randomness() -> None:
    """A model owner that asks for a bit pair where the data owner uses a mask learns nothing about the mask."""
    mask = Request("lifted", ((64,),), op="plain", bits=32)
    drawn = [CorrelationStore(rank=1, seed=KEY_1, session_id=b"s" * 16).take(r).shares[0] for r in (mask, BITS)]
    assert not torch.equal(drawn[0] & 1, drawn[1] & 1)


def test_a_correction_of_another_shape_or_for_another_request_is_refused() -> None:
    store = CorrelationStore(rank=0, seed=KEY_0, session_id=b"s" * 16)
    request = Request("square_pair", ((8,),))
    with pytest.raises(ProtocolError, match="operation 0: correction"):
        store.put(0, request, [torch.zeros(9, dtype=torch.int64)])
    store.put(0, request, [torch.zeros(8, dtype=torch.int64)])
    with pytest.raises(ProtocolError, match="was dealt for"):
        store.take(Request("bit_pair", ((8,),)))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("os.system", ((1,),)), "unknown"),
        (Request("square_pair", ((1,), (1,))), "1 shapes"),
        (Request("additive_triple", ((2, 3), (4, 5)), op="matmul"), "not defined"),
        (Request("additive_triple", ((2, 3), (3, 5)), op="exec"), "'exec' is unknown"),
        (Request("square_pair", ((0,),)), "empty"),
        (Request("square_pair", ((1 << 20, 1 << 20),)), "exceeds"),
        (Request("truncation", ((1,),), bits=62), "1..61"),
        (Request("truncation", ((1,),), bits=0), "1..61"),
        (Request("binary_triple", ((2, 3), (3, 4)), op="matmul"), "takes no op"),
        (Request("linear", ((), (3,)), op="a", bits=32), "not defined"),
        (Request("lifted", ((), (1,)), op="norm", bits=32), "do not scale"),
        (Request("lifted", ((),), op="length", bits=32), "op length takes rows"),
        (Request("table", ((3,),), op="tanh", params=(5, 1e300, 1.0, -1.0, 1.0, 10, 0, 0, 0)), "are integers"),
        (Request("square_pair", ((1,) * 17,)), "17 dimensions, more than 16"),
    ],
)
def test_malformed_requests(request_: Request, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        deal(request_, KEY_0, KEY_1, MaskKeys(fresh_key(), fresh_key()))


def test_plan_digest_sees_every_field_and_the_order() -> None:
    a, b = Request("truncation", ((4,),), bits=16), Request("truncation", ((4,),), bits=17)
    plans = [[a, b], [b, a], [a], [Request("square_pair", ((4,),)), b]]
    assert len({correlation_plan_digest(plan) for plan in plans}) == len(plans)


def test_equal_requests_have_equal_digests() -> None:
    """A digest is kept for all requests that are equal, and numbers may have another type or sign of zero."""
    first = Request("table", ((4,),), op="rsqrt", bits=24, params=(5, 0.0))
    for params in ((5.0, 0.0), (5, -0.0), (5, 0)):
        other = Request("table", ((4,),), op="rsqrt", bits=24, params=params)
        assert other == first
        assert requests._digest.__wrapped__(other) == first.digest()


def test_shares_are_hidden_from_repr() -> None:
    dealt = expand(Request("square_pair", ((2,),)), fresh_key(), 1, [])
    assert str(int(dealt.shares[0][0])) not in repr(dealt)
