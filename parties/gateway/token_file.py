"""What a caller of the gateway must show: programs the token of a file that only its owner may read.

The page shows a secret that is fresh at each start. It gets it in exchange for a code that is good for one use, because
browsers write the addresses that they open to the disk, with their fragments.
"""

import hmac
import os
import secrets
import stat
from pathlib import Path

from mpcformer.errors import UserInputError, os_remedy

N_BYTES = 32
FEWEST, MOST = 32, 1024


class Token:
    """A secret that is compared in constant time and never shown, and the page's secret of this run.

    Args:
        text: printable ASCII without spaces.

    Attributes:
        page_secret: what the page shows in the token's place; no other run takes it.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self.page_secret = secrets.token_urlsafe(N_BYTES)
        self._code: str | None = secrets.token_urlsafe(N_BYTES)

    def fits(self, header: str) -> bool:
        """Return whether the value of an `Authorization` header shows the token or the page's secret."""
        return _shows(header, self._text) or _shows(header, self.page_secret)

    def opens(self, header: str) -> bool:
        """Return whether a header shows the token or the code; the page gets its secret for either.

        A code is used up by this.
        """
        if self._code is not None and _shows(header, self._code):
            self._code = None
            return True
        return _shows(header, self._text)

    def proof(self, challenge: str) -> str:
        """Return the HMAC-SHA256 of a challenge in hex digits, which shows that this side has the token.

        Callers can ask for it before they send the token: while no gateway runs, others can listen at its port.
        """
        return _proof(self._text, challenge)

    def page_proofs(self, challenge: str) -> list[str]:
        """Return the same under the page's secret, and under the code while it is not used."""
        return [_proof(secret, challenge) for secret in (self.page_secret, self._code) if secret is not None]

    def address(self, base: str) -> str:
        """Return an address that opens the page once. Its fragment, which browsers send to no server, is the code."""
        return base if self._code is None else f"{base}#code={self._code}"

    def __repr__(self) -> str:
        return "Token(...)"


def _shows(header: str, secret: str) -> bool:
    kind, _, given = header.partition(" ")
    same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), secret.encode())
    return same and kind.lower() == "bearer"


def _proof(secret: str, challenge: str) -> str:
    return hmac.digest(secret.encode(), challenge.encode(), "sha256").hex()


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
