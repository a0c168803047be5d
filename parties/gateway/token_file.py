"""The token that a caller of the gateway must show. It is in a file that only its owner may read."""

import hmac
import os
import secrets
import stat
from pathlib import Path

from mpcformer.errors import UserInputError, os_remedy

N_BYTES = 32
FEWEST, MOST = 32, 1024


class Token:
    """A secret that is compared in constant time and never shown.

    Args:
        text: printable ASCII without spaces.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def fits(self, header: str) -> bool:
        """Return whether the value of an `Authorization` header shows this token."""
        kind, _, given = header.partition(" ")
        same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._text.encode())
        return same and kind.lower() == "bearer"

    def proof(self, challenge: str) -> str:
        """Return the HMAC-SHA256 of a challenge in hex digits, which shows that this side has the token.

        The page asks for it before it sends the token: while no gateway runs, others can listen at its port.
        """
        return hmac.digest(self._text.encode(), challenge.encode(), "sha256").hex()

    def address(self, base: str) -> str:
        """Return an address whose fragment holds the token. Browsers send no fragment to any server."""
        return f"{base}#token={self._text}"

    def __repr__(self) -> str:
        return "Token(...)"


def load_token(path: Path) -> Token:
    """Read the token of a file; make the file, with a fresh token, if there is none.

    Raises:
        UserInputError: others may read the file, another user owns it, it holds no token, or it cannot be made.
    """
    try:
        if not path.exists():
            _make(path)
        with path.open(encoding="ascii") as handle:
            status = os.fstat(handle.fileno())
            text = handle.read(MOST + 1).strip()
    except UnicodeDecodeError:
        text = ""
    except OSError as error:
        raise UserInputError(f"--token-file: {path}: {error.strerror}", os_remedy(error)) from None
    else:
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise UserInputError(f"--token-file: {path} is no file of this user", "name a file of your own")
        if status.st_mode & 0o077:
            raise UserInputError(
                f"--token-file: {path} can be read or written by other users (mode {status.st_mode & 0o777:03o})",
                f"chmod 600 {path}, and remove it if others may have read it: a fresh one is made then",
            )
    if not FEWEST <= len(text) <= MOST or not text.isprintable() or " " in text:
        raise UserInputError(
            f"--token-file: {path} holds no token: {FEWEST} to {MOST} printable characters of ASCII on one line",
            "remove the file: a fresh one is made then",
        )
    return Token(text)


def _make(path: Path) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(f"{secrets.token_urlsafe(N_BYTES)}\n")
