"""Rows of the doctor's table."""

from mpcformer.doctor import Finding
from mpcformer.errors import PartyError, UserInputError


def wrong(check: str, found: str, remedy: str) -> Finding:
    """Something on this machine keeps the party from its work."""
    return Finding(check, found, remedy, UserInputError.exit_code)


def peer_wrong(check: str, found: str, remedy: str) -> Finding:
    """Something between this machine and a peer does."""
    return Finding(check, found, remedy, PartyError.exit_code)


def warning(check: str, found: str, remedy: str) -> Finding:
    """It will, or it may."""
    return Finding(check, found, remedy)
