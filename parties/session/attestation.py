"""Evidence of a dealer's environment, such as an attestation document: an owner's own command decides about it."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from mpcformer.errors import PartyError, UserInputError

MAX_BYTES = 1 << 16
TIMEOUT_S = 30.0


def read(path: Path | None) -> bytes:
    """Return a dealer's evidence, or nothing if its file names none.

    Raises:
        UserInputError: the file cannot be read, or is too large.
    """
    if path is None:
        return b""
    try:
        found = path.read_bytes()
    except OSError as error:
        raise UserInputError(f"evidence: {path}: {error.strerror}", "name a file that the dealer can read") from None
    if len(found) > MAX_BYTES:
        raise UserInputError(f"evidence: {path} has {len(found)} bytes", f"give at most {MAX_BYTES}")
    return found


def check(command: Sequence[str] | None, dealer: str, evidence: bytes) -> None:
    """Let an owner's command decide whether a dealer may be used.

    The command gets the dealer's id as its last argument and the evidence on its standard input. What it prints is
    dropped.

    Args:
        command: the program and its first arguments; None accepts every dealer.
        dealer: the party id of the dealer.
        evidence: as it arrived.

    Raises:
        PartyError: the command did not accept the evidence.
        UserInputError: the command cannot be run.
    """
    if command is None:
        return
    if len(evidence) > MAX_BYTES:
        raise PartyError(dealer, f"its evidence has {len(evidence)} bytes, more than {MAX_BYTES}")
    try:
        done = subprocess.run(
            [*command, dealer], input=evidence, capture_output=True, timeout=TIMEOUT_S, check=False, shell=False
        )
    except subprocess.TimeoutExpired:
        raise UserInputError(
            f"check_dealer: {command[0]} did not end within {TIMEOUT_S:.0f} s", "give a command that ends"
        ) from None
    except OSError as error:
        raise UserInputError(
            f"check_dealer: {command[0]}: {error.strerror}", "name a program that this party can run"
        ) from None
    if done.returncode != 0:
        raise PartyError(
            dealer,
            f"its evidence was not accepted: check_dealer ended with status {done.returncode}",
            "ask the dealer's operator for other evidence, or use another dealer",
        )
