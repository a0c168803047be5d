"""The only source of randomness meets standard vectors, separates labels, and shares no state by accident."""

import threading

import pytest
import torch
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mpcformer.ring.random import KEY_BYTES, Stream, derive_key, fixed_keys, fresh_key, scoped_keys

NIST_KEY = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")  # SP 800-38A, appendix F


def test_stream_is_aes_ctr_from_zero() -> None:
    expected = Cipher(algorithms.AES(NIST_KEY), modes.CTR(bytes(16))).encryptor().update(bytes(80))
    assert Stream(NIST_KEY).int64((2, 5)).numpy().tobytes() == expected


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_pieces_of_a_stream_join_to_the_whole(sizes: list[int]) -> None:
    stream = Stream(NIST_KEY)
    pieces = torch.cat([stream.int64((n,)) for n in sizes])
    assert torch.equal(pieces, Stream(NIST_KEY).int64((sum(sizes),)))


def test_bits_lie_in_range_and_reach_both_ends() -> None:
    values = Stream(NIST_KEY).bits((2000,), 3)
    assert sorted(values.unique().tolist()) == list(range(8))
    with pytest.raises(ValueError, match=r"1\.\.63"):
        Stream(NIST_KEY).bits((1,), 64)


def test_labels_are_not_confused_by_their_joints() -> None:
    labels = [("ab", "c"), ("a", "bc"), ("abc",), (1, 2), (12,), (b"ab", "c", 0), ("ab", "c", b"\x00" * 8)]
    keys = {derive_key(NIST_KEY, *label) for label in labels}
    assert len(keys) == len(labels)
    assert all(len(key) == KEY_BYTES for key in keys)


def test_keys_are_derived_by_hkdf() -> None:
    info = b"\x00\x00\x00\x03sab" + b"\x00\x00\x00\x09i" + (7).to_bytes(8, "big")
    expected = HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=b"mpcformer/v1", info=info).derive(NIST_KEY)
    assert derive_key(NIST_KEY, "ab", 7) == expected


def test_fresh_keys_differ_and_bad_keys_are_refused() -> None:
    assert len({fresh_key() for _ in range(100)}) == 100
    with pytest.raises(ValueError, match="15 bytes"):
        Stream(bytes(15))


def fixed(seed: int | None, party_id: str) -> list[bytes]:
    with fixed_keys(seed, party_id):
        return [fresh_key() for _ in range(3)]


def test_fixed_keys_follow_from_seed_and_party_and_end_with_their_block() -> None:
    assert fixed(7, "dealer") == fixed(7, "dealer")
    assert len({*fixed(7, "dealer"), *fixed(7, "model-owner"), *fixed(8, "dealer")}) == 9
    assert not set(fixed(None, "dealer")) & set(fixed(None, "dealer"))
    others: list[bytes] = []
    with fixed_keys(7, "dealer"):
        thread = threading.Thread(target=lambda: others.extend([fresh_key(), fresh_key()]))
        thread.start()
        thread.join()
    assert not set(others) & set(fixed(7, "dealer")), "another thread's keys stay fresh"
    assert fresh_key() not in fixed(7, "dealer")


def test_scoped_keys_do_not_depend_on_what_was_drawn_before() -> None:
    def drawn(before: int) -> list[bytes]:
        with fixed_keys(7, "dealer"):
            for _ in range(before):
                fresh_key()
            with scoped_keys("session", b"1"):
                first = [fresh_key(), fresh_key()]
            with scoped_keys("session", b"2"):
                return [*first, fresh_key()]

    assert drawn(0) == drawn(5)
    assert len(set(drawn(0))) == 3
    with scoped_keys("session", b"1"):
        fresh = fresh_key()
    with scoped_keys("session", b"1"):
        assert fresh_key() != fresh, "where nothing is fixed keys are fresh"


def test_bytes_are_uniform() -> None:
    data = Stream(NIST_KEY).int64((100_000,)).numpy().view("u1")
    counts = torch.bincount(torch.from_numpy(data.copy()).int(), minlength=256).numpy()
    assert stats.chisquare(counts).pvalue > 1e-6


def test_a_stream_does_not_show_its_key() -> None:
    assert NIST_KEY.hex() not in repr(Stream(NIST_KEY))
