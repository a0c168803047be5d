"""The one source of protocol randomness: AES-128 in counter mode, keyed by the operating system.

CrypTen draws its shares from MT19937, whose 32 effective seed bits a party can search in a minute; nothing here does.
Every stream has its own key, derived by a label, so no counter is ever shared between two purposes.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 16


class _Series:
    """INSECURE keys: each follows from the first and from how many were drawn before."""

    def __init__(self, key: bytes) -> None:
        self.key, self._n_drawn = key, 0

    def next(self) -> bytes:
        self._n_drawn += 1
        return derive_key(self.key, self._n_drawn)


class _Fixed:
    """Where fresh keys come from, if not from the operating system: a thread's own series goes before the process's."""

    process: _Series | None = None
    thread: ContextVar[_Series | None] = ContextVar("series", default=None)


def fresh_key() -> bytes:
    """16 bytes from the operating system's generator."""
    fixed = _Fixed.thread.get() or _Fixed.process
    return os.urandom(KEY_BYTES) if fixed is None else fixed.next()


def fix_keys(seed: int, party: str) -> None:
    """INSECURE: from now on this process's fresh keys follow from a number, so that a session can be repeated.

    parties/settings/config.py allows it between processes of one machine alone.
    """
    _Fixed.process = _Series(_first(seed, party))


@contextmanager
def fixed_keys(seed: int | None, party: str) -> Iterator[None]:
    """INSECURE: the same for this thread, and only inside; None fixes nothing."""
    with _series(None if seed is None else _first(seed, party)):
        yield


@contextmanager
def keys_of(*labels: bytes | str | int) -> Iterator[None]:
    """Fixed keys drawn inside follow from `labels`, not from what else the process drew before; fresh ones stay fresh.

    What runs side by side, such as a service's sessions, is so repeatable whatever comes first.
    """
    fixed = _Fixed.thread.get() or _Fixed.process
    with _series(None if fixed is None else derive_key(fixed.key, "of", *labels)):
        yield


@contextmanager
def _series(key: bytes | None) -> Iterator[None]:
    if key is None:
        yield
        return
    token = _Fixed.thread.set(_Series(key))
    try:
        yield
    finally:
        _Fixed.thread.reset(token)


def _first(seed: int, party: str) -> bytes:
    return derive_key(seed.to_bytes(KEY_BYTES, "big"), "fixed", party)


def derive_key(key: bytes, *labels: bytes | str | int) -> bytes:
    """A 16-byte key for the purpose that `labels` name: HKDF-SHA256 (RFC 5869) over a length-prefixed encoding.

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
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=b"mpcformer/v1", info=info).derive(key)


class Stream:
    """A stream of uniform ring elements: AES-128-CTR over zeros. The same key gives the same numbers."""

    __slots__ = ("_encryptor",)

    def __init__(self, key: bytes) -> None:
        _check_key(key)
        # Every key is used for one stream only, so the counter may start at zero.
        self._encryptor: CipherContext = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def int64(self, shape: Sequence[int]) -> torch.Tensor:
        """The next uniform elements of Z_2^64, as int64 of `shape`."""
        out = torch.zeros(tuple(shape), dtype=torch.int64)
        if out.numel():
            # Encrypting the zeros in place of themselves yields the key stream without a copy.
            view = memoryview(out.view(-1).numpy()).cast("B")  # type: ignore[arg-type]
            self._encryptor.update_into(view, view)
        return out

    def bits(self, shape: Sequence[int], n_bits: int) -> torch.Tensor:
        """The next uniform integers in [0, 2^n_bits), as int64 of `shape`; n_bits in 1..63."""
        if not 1 <= n_bits <= 63:
            raise ValueError(f"n_bits ({n_bits}) must lie in 1..63")
        return self.int64(shape) & ((1 << n_bits) - 1)

    def __repr__(self) -> str:
        return "Stream(<key hidden>)"


def _check_key(key: bytes) -> None:
    if len(key) != KEY_BYTES:
        raise ValueError(f"key has {len(key)} bytes, needs {KEY_BYTES}")
