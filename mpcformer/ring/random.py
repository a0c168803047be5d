"""The one source of protocol randomness: AES-128 in counter mode, with keys from the operating system.

CrypTen draws its shares from MT19937, whose 32 effective seed bits anyone can search in a minute. Nothing here uses it.
Every stream has its own key, derived by labels, so no counter is ever shared between two purposes.
"""

import hmac
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from mpcformer.ring.aes import open_stream

KEY_BYTES = 16
# An AES block in words of 64 bits.
BLOCK_WORDS = 2


class DeterministicKeys:
    """INSECURE: a series of keys in which each follows from the first key and its position."""

    def __init__(self, key: bytes) -> None:
        self.key, self._n_drawn = key, 0

    def next(self) -> bytes:
        """Return the next key of the series."""
        self._n_drawn += 1
        return derive_key(self.key, self._n_drawn)


class InsecureKeySource:
    """The source of fresh keys if they do not come from the operating system.

    The series of a thread takes precedence over that of the process.
    """

    process: DeterministicKeys | None = None
    thread: ContextVar[DeterministicKeys | None] = ContextVar("series", default=None)

    @classmethod
    def current(cls) -> DeterministicKeys | None:
        """Return the series that is in force here, or None if keys are secure."""
        return cls.thread.get() or cls.process


def fresh_key() -> bytes:
    """Return 16 bytes from the operating system's generator."""
    fixed = InsecureKeySource.current()
    return os.urandom(KEY_BYTES) if fixed is None else fixed.next()


def fix_keys(seed: int, party_id: str) -> None:
    """INSECURE: make this process's fresh keys follow from a number, so that a session can be repeated.

    parties/settings/config.py allows this only between processes of the same machine.
    """
    InsecureKeySource.process = DeterministicKeys(_first_key(seed, party_id))


@contextmanager
def fixed_keys(seed: int | None, party_id: str) -> Iterator[None]:
    """INSECURE: make this thread's fresh keys follow from a number inside the block. A seed of None fixes nothing."""
    with _series(None if seed is None else _first_key(seed, party_id)):
        yield


@contextmanager
def scoped_keys(*labels: bytes | str | int) -> Iterator[None]:
    """Inside the block, make fixed keys follow from `labels` instead of from how many keys were drawn before.

    Work that runs side by side, such as the sessions of a service, can thus be repeated in any order. Keys that are not
    fixed stay fresh.
    """
    fixed = InsecureKeySource.current()
    with _series(None if fixed is None else derive_key(fixed.key, "of", *labels)):
        yield


@contextmanager
def _series(key: bytes | None) -> Iterator[None]:
    if key is None:
        yield
        return
    token = InsecureKeySource.thread.set(DeterministicKeys(key))
    try:
        yield
    finally:
        InsecureKeySource.thread.reset(token)


def _first_key(seed: int, party_id: str) -> bytes:
    return derive_key(seed.to_bytes(KEY_BYTES, "big"), "fixed", party_id)


def derive_key(key: bytes, *labels: bytes | str | int) -> bytes:
    """Derive a 16-byte key for the purpose that `labels` name, by HKDF-SHA256 (RFC 5869) over length-prefixed labels.

    Raises:
        ValueError: `key` is not 16 bytes.
    """
    _check_key(key)
    info = b""
    for label in labels:
        if isinstance(label, int):
            part = b"i" + label.to_bytes(8, "big")
        else:
            part = b"s" + (label.encode() if isinstance(label, str) else label)
        info += len(part).to_bytes(4, "big") + part
    # HKDF's two steps for a single block of output. The package cryptography takes ten times as long for the same.
    extracted = hmac.digest(b"mpcformer/v1", key, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")[:KEY_BYTES]


def key_of(words: torch.Tensor) -> bytes:
    """Return the key that consists of the two words of a block, int64 (2,)."""
    return words.contiguous().numpy().tobytes()


class Stream:
    """A stream of uniform ring elements: AES-128-CTR over zeros. The same key gives the same numbers."""

    __slots__ = ("_stream",)

    def __init__(self, key: bytes) -> None:
        _check_key(key)
        # Every key serves one stream only, so the counter may start at zero.
        self._stream = open_stream(key)

    def int64(self, shape: Sequence[int]) -> torch.Tensor:
        """Return the next uniform elements of Z_2^64, as int64 of `shape`."""
        return self._words(shape, torch.int64)

    def int32(self, shape: Sequence[int]) -> torch.Tensor:
        """Return the next uniform elements of Z_2^32, as int32 of `shape`."""
        return self._words(shape, torch.int32)

    def _words(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        out = torch.empty(tuple(shape), dtype=dtype)
        if out.numel():
            self._stream.fill(out)
        return out

    def bits(self, shape: Sequence[int], n_bits: int) -> torch.Tensor:
        """Return the next uniform integers in [0, 2^n_bits), as int64 of `shape`; n_bits in 1..63."""
        if not 1 <= n_bits <= 63:
            raise ValueError(f"n_bits ({n_bits}) must lie in 1..63")
        return self.int64(shape).bitwise_and_((1 << n_bits) - 1)

    def __repr__(self) -> str:
        return "Stream(<key hidden>)"


_local = threading.local()


@cache
def hash_key(which: int) -> bytes:
    """Return the key of a hash function of `block_hash`. It is public, and derived so that nobody chose it."""
    return derive_key(bytes(KEY_BYTES), "block hash", which)


def _hash_encryptor(which: int) -> CipherContext:
    """Return a thread's encryptor of single blocks; it has no state, so one serves all calls."""
    known: dict[int, CipherContext] = _local.__dict__.setdefault("encryptors", {})
    if which not in known:
        known[which] = Cipher(algorithms.AES(hash_key(which)), modes.ECB()).encryptor()
    return known[which]


def block_hash(blocks: torch.Tensor, which: int) -> torch.Tensor:
    """Hash blocks by AES with a fixed key: AES(x) xor x, after Matyas, Meyer and Oseas.

    Args:
        blocks: int64 (..., 2), a block each.
        which: the number of the hash function.

    Returns:
        int64 (..., 2).
    """
    blocks = blocks.contiguous()
    # The library wants room for one block more than it writes.
    out = torch.empty(blocks.numel() + BLOCK_WORDS, dtype=torch.int64)
    if blocks.numel():
        encryptor = _hash_encryptor(which)
        source, target = (memoryview(x.view(-1).numpy()).cast("B") for x in (blocks, out))  # type: ignore[arg-type]
        encryptor.update_into(source, target)
    return out[: blocks.numel()].view(blocks.shape).bitwise_xor_(blocks)


def _check_key(key: bytes) -> None:
    if len(key) != KEY_BYTES:
        raise ValueError(f"key has {len(key)} bytes, needs {KEY_BYTES}")
