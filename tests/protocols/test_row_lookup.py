"""Looked-up rows equal plain indexing, at the stated cost, and no message depends on the words."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcformer.channel import Counters
from mpcformer.correlations import MaskKeys, Request, deal
from mpcformer.correlations import row_lookup as correlation
from mpcformer.correlations.kinds import validate
from mpcformer.correlations.row_lookup import (
    BITS,
    GROUP_BUCKETS,
    MAX_ALIKE,
    MAX_ROWS,
    MAX_WORDS,
    N_GROUPS,
    LookupSpec,
    Places,
    group_buckets,
)
from mpcformer.errors import ProtocolError
from mpcformer.protocols import row_lookup
from mpcformer.protocols.linear import masked_weight
from mpcformer.protocols.party import Party
from mpcformer.ring import kernels
from mpcformer.ring.packing import packed_bytes, unpack
from mpcformer.ring.random import Stream, derive_key, fresh_key
from tests.pair import dealer_bytes, run_protocol

WIDTH, N_TYPES, SALT = 8, 2, 123_456_789


def number(*shape: int, below: int) -> torch.Tensor:
    return Stream(fresh_key()).bits(shape, 40) % below


def looked_up(
    table: torch.Tensor, words: torch.Tensor, types: torch.Tensor
) -> tuple[torch.Tensor, list[Counters], list[Request], dict[str, torch.Tensor]]:
    """Return the rows (n, H) modulo 2^32, what was counted and asked for, and the messages of both owners."""
    request = row_lookup.request("words", words.numel(), N_TYPES, tuple(table.shape), SALT)
    spec, messages = LookupSpec.of(request), {}

    def received(party: Party, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
        message = party.receive([(shape, BITS) for shape in shapes])
        parts = message.split([packed_bytes(math.prod(shape), BITS) for shape in shapes])
        return [unpack(part, shape, BITS) for part, shape in zip(parts, shapes, strict=True)]

    def owner(party: Party) -> torch.Tensor:
        key = party.store.weight_mask_key()  # type: ignore[attr-defined]
        masked = masked_weight(table, key, "words", BITS)
        tensors = party.take(request)
        if party.rank == 1:
            asked = row_lookup.Asked(request, tensors)
            party.send(asked.halves(words, types))
            messages["answers"], *_ = received(party, spec.answers)
            return asked.share(words, messages["answers"], masked)
        messages["questions"], messages["choices"] = received(party, spec.questions, spec.choices)
        answers, share = row_lookup.model_owner_answer(
            request, messages["questions"], messages["choices"], table - masked, table[spec.n_words :], tensors
        )
        party.send([(answers, BITS)])
        return share

    results, counters, requests = run_protocol(owner)
    return (results[0] + results[1]).to(torch.int32), counters, requests, messages


def a_table(n_words: int) -> torch.Tensor:
    return Stream(fresh_key()).int64((n_words + N_TYPES, WIDTH)).to(torch.int32)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 600), st.data())
def test_rows_are_exact(n_words: int, n_rows: int, data: Any) -> None:
    """Rows are exact for tables of any size and for any number of words, repeated or not, in one part or several."""
    different = data.draw(st.integers(1, n_words))
    table, words = a_table(n_words), number(n_rows, below=different)
    types = number(n_rows, below=N_TYPES)
    rows, *_ = looked_up(table, words, types)
    assert torch.equal(rows, table[words] + table[n_words + types])


def test_the_first_and_the_last_word_and_equal_ones() -> None:
    table = a_table(997)
    for words in ([0] * 300, [996] * 256, [0, 996, 0, 996, 5]):
        rows, *_ = looked_up(table, torch.tensor(words), torch.zeros(len(words), dtype=torch.int64))
        assert torch.equal(rows, table[words] + table[997])


@pytest.mark.parametrize("n_rows", [1, 256, 257])
def test_the_stated_cost(n_rows: int) -> None:
    table = a_table(2000)
    rows = torch.zeros(n_rows, dtype=torch.int64)
    _, counters, requests, _ = looked_up(table, rows, rows)
    n_parts = math.ceil(n_rows / MAX_ROWS)
    per_part = math.ceil(n_rows / n_parts)
    n_buckets = N_GROUPS * group_buckets(per_part, 2000)
    questions = n_buckets * math.ceil(2000 / group_buckets(per_part, 2000))
    assert counters[1].bytes_sent == 4 * n_parts * (questions + per_part * (n_buckets + N_TYPES))
    assert counters[0].bytes_sent == 4 * n_parts * n_buckets * WIDTH
    assert dealer_bytes(requests) == 4 * n_parts * WIDTH * (n_buckets + per_part)
    assert counters[1].rounds == 2


def test_a_lookup_is_chosen_where_it_sends_less() -> None:
    assert row_lookup.is_cheaper(25, 2, (30524, 384))
    assert row_lookup.is_cheaper(128, 2, (30524, 768))
    assert not row_lookup.is_cheaper(1, 2, (30524, 384)), "one vector is less than the answers of all buckets"
    assert not row_lookup.is_cheaper(512, 2, (20, 32)), "a small table"
    assert not row_lookup.is_cheaper(512, 2, (MAX_WORDS + 3, 32)), "a table too large for places"
    assert not row_lookup.is_cheaper(512, 0, (30522, 384)), "no token types"
    assert not row_lookup.is_cheaper(0, 2, (30524, 384))


@pytest.mark.parametrize("n_rows", [16, 128, MAX_ROWS])
@pytest.mark.parametrize("n_words", [1, 143, 144, 1000, 30522, 250_002, MAX_WORDS])
def test_places(n_words: int, n_rows: int) -> None:
    """Each word lies once in each group, buckets have nearly the same size, and no four words share three buckets."""
    in_group = group_buckets(n_rows, n_words)
    where = correlation.places(n_words, in_group, SALT)
    group = torch.arange(N_GROUPS)[:, None].expand(-1, n_words)
    assert torch.equal(where.bucket // in_group, group)
    spots = where.bucket * n_words + where.column
    assert len(set(spots.reshape(-1).tolist())) == N_GROUPS * n_words, "a spot for each row in each group"
    sizes = torch.bincount(where.bucket.reshape(-1), minlength=N_GROUPS * in_group)
    assert int(sizes.max()) == int(where.column.max()) + 1 == math.ceil(n_words / in_group)
    assert int(sizes.max() - sizes.min()) <= 1
    _, alike = torch.unique(where.bucket.t(), dim=0, return_counts=True)
    assert int(alike.max()) <= MAX_ALIKE


def log_bound(n_rows: int, in_group: int) -> float:
    """Return log2 of a bound of the probability that n different words find no places.

    By Hall's theorem some k of them then lie in k - 1 buckets: a, b and c of the three groups. Four words in three
    buckets cannot occur.
    """

    def log_choose(n: int, k: int) -> float:
        return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)

    total = 0.0
    for k in range(MAX_ALIKE + 2, n_rows + 1):
        terms = 0.0
        for a in range(1, k - 2):
            for b in range(1, k - 1 - a):
                c = k - 1 - a - b
                if max(a, b, c) > in_group:
                    continue
                ways = log_choose(n_rows, k) + sum(log_choose(in_group, part) for part in (a, b, c))
                terms += 2.0 ** (ways + k * sum(math.log2(part / in_group) for part in (a, b, c)))
        total += terms
        if k > 20 and terms < 1e-20:  # the terms fall by then
            break
    return math.log2(total)


@pytest.mark.parametrize("n_rows", GROUP_BUCKETS)
def test_words_hardly_ever_find_no_places(n_rows: int) -> None:
    assert log_bound(n_rows, GROUP_BUCKETS[n_rows]) < -40


def test_the_bytes_of_128_tokens() -> None:
    for n_words, width, most in ((30522, 768, 1.6e6), (65536, 768, 2.0e6), (250_002, 768, 5e6), (250_002, 1024, 5e6)):
        cost = row_lookup.cost(128, 1, (n_words + 1, width))
        sent = cost.bytes_to_data_owner + cost.bytes_to_model_owner
        assert sent < most


def test_words_find_places_of_their_own() -> None:
    where = correlation.places(30522, GROUP_BUCKETS[MAX_ROWS], SALT)
    for _ in range(200):
        words = number(MAX_ROWS, below=30522)
        bucket, column = row_lookup.place(words, where)
        assert bool(((where.bucket[:, words] == bucket) & (where.column[:, words] == column)).any(0).all())
        assert len(set(bucket.tolist())) == len(set(words.tolist()))


def test_every_session_has_places_of_its_own() -> None:
    salts = [correlation.salt_of(session_id) for session_id in (b"a" * 16, b"a" * 16, b"b" * 16)]
    assert salts[0] == salts[1] != salts[2]
    one, other = (correlation.places(5000, 147, salt).bucket for salt in salts[1:])
    alike = float((one == other).double().mean())
    assert abs(alike - 1 / 147) < 0.004
    requests = {row_lookup.request("w", 9, N_TYPES, (5002, WIDTH), salt).digest() for salt in salts}
    assert len(requests) == 2, "owners and dealer must mean the same places"


def test_words_without_places_are_refused_without_naming_them() -> None:
    found = correlation.places(1000, 147, SALT)
    bucket = found.bucket.clone()
    bucket[:, 700:704] = bucket[:, 700:701]
    where = Places(bucket, found.column, 147)
    row_lookup.place(torch.tensor([700, 701, 702, 702]), where)
    with pytest.raises(ProtocolError, match=r"(?s)find no places.*run it again") as refused:
        row_lookup.place(torch.tensor([700, 701, 702, 703]), where)
    assert "70" not in str(refused.value)


@pytest.mark.parametrize(("word", "type_"), [(-1, 0), (1000, 0), (0, -1), (0, N_TYPES)])
def test_what_is_no_word_is_refused(word: int, type_: int) -> None:
    request = row_lookup.request("words", 2, N_TYPES, (1000 + N_TYPES, WIDTH), SALT)
    asked = row_lookup.Asked(request, _masks(request))
    with pytest.raises(ProtocolError, match="is not in 0"):
        asked.halves(torch.tensor([3, word]), torch.tensor([0, type_]))


def test_masks_are_used_once() -> None:
    request = row_lookup.request("words", 2, N_TYPES, (1000 + N_TYPES, WIDTH), SALT)
    asked, words = row_lookup.Asked(request, _masks(request)), torch.tensor([0, 1])
    with pytest.raises(ProtocolError, match="not asked"):
        asked.share(words, torch.zeros(LookupSpec.of(request).answers), torch.zeros(1002, WIDTH))
    asked.halves(words, words)
    with pytest.raises(ProtocolError, match="used once"):
        asked.halves(words, words)


def test_messages_are_masked_on_all_bits() -> None:
    """With a table of zeros and one repeated word, every bit of every message is a fair coin, and new each time."""
    table, words = torch.zeros(1000 + N_TYPES, WIDTH, dtype=torch.int32), torch.full((40,), 3)
    runs = [looked_up(table, words, words - 3)[3] for _ in range(2)]
    for name in ("questions", "choices", "answers"):
        first, second = (messages[name].reshape(-1) for messages in runs)
        ones = (first[:, None] >> torch.arange(BITS)) & 1
        deviation = (ones.double().mean(0) - 0.5).abs().max() * 2 * math.sqrt(first.numel())
        assert float(deviation) < 5.5, name
        assert int((first == second).sum()) <= 1, name


def test_unused_buckets_are_asked_too() -> None:
    """The number of different words does not show, because a vector is sent for every bucket."""
    request = row_lookup.request("words", 6, N_TYPES, (1000 + N_TYPES, WIDTH), SALT)
    for words in ([5, 5, 5, 5, 5, 5], [1, 2, 3, 4, 5, 6]):
        masks = _masks(request)
        asked = row_lookup.Asked(request, [tensor.clone() for tensor in masks])
        (questions, _), (choices, _) = asked.halves(torch.tensor(words), torch.tensor([0, 1, 0, 1, 0, 1]))
        assert questions.shape == LookupSpec.of(request).questions
        plain = questions + masks[0]
        assert int(plain.sum()) == len(set(words))
        assert set(plain.reshape(-1).tolist()) == {0, 1}
        assert (choices + masks[1]).sum(-1).tolist() == [[2] * 6], "a bucket and a type a row"


def _masks(request: Request) -> list[torch.Tensor]:
    return correlation.RowLookup().draw(request, Stream(fresh_key()), 1)


def lookup_of(rows: Any, table: Any, op: str = "w", bits: int = 32, params: tuple[float, ...] = (5.0,)) -> Request:
    return Request("row_lookup", (rows, table), op=op, bits=bits, params=params)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (lookup_of((4, 2), (10, 8), bits=64), "64 bits"),
        (Request("row_lookup", ((4, 2),), op="w", bits=32, params=(5.0,)), "2 shapes"),
        (lookup_of((4, 2, 1), (10, 8)), "not defined"),
        (lookup_of((4, 2), (2, 8)), "1 to 524288 words, not 0"),
        (lookup_of((1, 1), (89_000_000, 1)), "1 to 524288 words"),
        (lookup_of((4, 2), (10, 8), op="v,w"), "not defined"),
        (lookup_of((4, 2), (10, 8), op=""), "not defined"),
        (lookup_of((4, 1025), (2000, 8)), "1025 types"),
        (lookup_of((4, 2), (10, 8), params=()), "one salt"),
        (lookup_of((4, 2), (10, 8), params=(1.0, 2.0)), "one salt"),
        (lookup_of((4, 2), (10, 8), params=(0.5,)), "one salt"),
        (lookup_of((4, 2), (10, 8), params=(2.0**48,)), "one salt"),
        (lookup_of((4, 2), (10, 8), params=(math.nan,)), "one salt"),
        (lookup_of((4, 2), (10, 8), params=(math.inf,)), "one salt"),
        (lookup_of((1 << 24, 2), (1 << 16, 1)), "exceed"),
        (lookup_of((1 << 19, 2), (1 << 16, 1)), "exceed"),
    ],
)
def test_what_cannot_be_dealt_is_refused(request_: Request, error: str) -> None:
    with pytest.raises(ProtocolError, match=error):
        validate(request_)
    with pytest.raises(ProtocolError, match=error):
        deal(request_, fresh_key(), fresh_key(), MaskKeys(fresh_key(), fresh_key()))


FOUND, WHY_NOT = kernels.load()
needs_kernels = pytest.mark.skipif(FOUND is None, reason=WHY_NOT)


@needs_kernels
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 3), st.integers(1, 3), st.integers(0, 40), st.integers(1, 33))
def test_the_compiled_sums_by_bucket_are_the_same(seed: int, parts: int, groups: int, rows: int, width: int) -> None:
    assert FOUND is not None
    stream, n_buckets = Stream(derive_key(bytes(16), seed)), 7
    factors, table = stream.int32((parts, groups, rows)), stream.int32((rows, width))
    buckets = stream.bits((groups, rows), 40) % n_buckets
    found = FOUND.tables.by_bucket(factors, buckets, table, n_buckets)
    expected = torch.zeros(parts, n_buckets, width, dtype=torch.int32)
    for part in range(parts):
        for group in range(groups):
            expected[part].index_add_(0, buckets[group], factors[part, group, :, None] * table)
    assert torch.equal(found, expected)
    assert torch.equal(found, correlation.by_bucket(factors, buckets, table, n_buckets))


@needs_kernels
def test_sums_by_bucket_refuse_what_does_not_fit() -> None:
    assert FOUND is not None
    factors, buckets, table = (torch.zeros(shape, dtype=torch.int32) for shape in ((1, 3, 5), (3, 5), (5, 4)))
    for wrong in ((factors.long(), buckets, table), (factors, buckets[:2], table), (factors, buckets, table[:4])):
        with pytest.raises(ValueError, match="no sums by bucket of"):
            FOUND.tables.by_bucket(*wrong, 3)
    for bucket in (-1, 3):
        with pytest.raises(ValueError, match="a bucket is none of 3"):
            FOUND.tables.by_bucket(factors, buckets + bucket, table, 3)
