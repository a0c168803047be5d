"""AES-128 in counter mode over zeros: by the compiled function of `aes.c`, or else by the package cryptography."""

import ctypes
import threading
from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from mpcformer.ring.library import load_library

BLOCK_BYTES = 16
# Which instructions a processor has, as aes.h numbers them: none, those for a block, or those for four at once.
NONE, AES, VAES = 0, 1, 2
# What the package encrypts at a time: it stays in the processor's cache.
ZEROS = bytes(1 << 18)


class KeyStream(Protocol):
    """The stream of one key. Its counter starts at zero."""

    def fill(self, out: torch.Tensor) -> None:
        """Fill a contiguous tensor with the next bytes."""


class PackageStream:
    """A stream by the package cryptography.

    Args:
        key: 16 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._context: CipherContext = Cipher(algorithms.AES(key), modes.CTR(bytes(BLOCK_BYTES))).encryptor()

    def fill(self, out: torch.Tensor) -> None:
        """Fill a contiguous tensor with the next bytes."""
        view = memoryview(out.view(-1).numpy()).cast("B")  # type: ignore[arg-type]
        for first in range(0, len(view), len(ZEROS)):
            part = view[first : first + len(ZEROS)]
            self._context.update_into(ZEROS[: len(part)] if len(part) < len(ZEROS) else ZEROS, part)


class CompiledStream:
    """A stream by the compiled function.

    Args:
        write: from `compiled`.
        key: 16 bytes.
    """

    def __init__(self, write: Callable[[bytes, int, torch.Tensor], None], key: bytes) -> None:
        self._write, self._key, self._at = write, key, 0
        self._lock = threading.Lock()

    def fill(self, out: torch.Tensor) -> None:
        """Fill a contiguous tensor with the next bytes; no two calls get the same ones, from whatever threads."""
        with self._lock:
            at, self._at = self._at, self._at + out.numel() * out.element_size()
        self._write(self._key, at, out)


def compiled(library: ctypes.CDLL, level: int | None = None) -> Callable[[bytes, int, torch.Tensor], None]:
    """Return a function (key, at, out) that fills a contiguous tensor with a stream from its byte `at` on.

    Args:
        library: the compiled file.
        level: AES or VAES; None: what the processor has. The function raises ValueError if it has none of them.

    Raises:
        AttributeError: the file has no such function.
    """
    stream = library.mpcformer_aes_stream
    stream.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64]
    used = int(library.mpcformer_aes_level()) if level is None else level

    def write(key: bytes, at: int, out: torch.Tensor) -> None:
        n_bytes = out.numel() * out.element_size()
        if not out.is_contiguous() or stream(used, key, at, out.data_ptr(), n_bytes):
            raise ValueError(f"aes.c has no stream of level {used} for strides {out.stride()}")

    return write


@cache
def _usable() -> Callable[[bytes, int, torch.Tensor], None] | None:
    """Return the compiled function, if there is one and a short stream of it is that of the package."""
    library, _ = load_library()
    key, short, rest = (
        bytes(range(BLOCK_BYTES)),
        torch.empty(5, dtype=torch.uint8),
        torch.empty(1600, dtype=torch.uint8),
    )
    expected = torch.empty(short.numel() + rest.numel(), dtype=torch.uint8)
    PackageStream(key).fill(expected)
    try:
        if library is None:
            return None
        write = compiled(library)
        stream = CompiledStream(write, key)
        stream.fill(short)
        stream.fill(rest)
    except (AttributeError, ValueError):
        return None
    return write if torch.equal(torch.cat([short, rest]), expected) else None


def open_stream(key: bytes) -> KeyStream:
    """Return the stream of a key of 16 bytes."""
    write = _usable()
    return PackageStream(key) if write is None else CompiledStream(write, key)
