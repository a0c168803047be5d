"""The rows of the doctor's table."""

from mpcformer.doctor import Finding
from mpcformer.errors import PartyError, UserInputError


def wrong(check: str, found: str, remedy: str) -> Finding:
    """Return a failure whose cause is on this machine."""
    return Finding(check, found, remedy, UserInputError.exit_code)


def peer_wrong(check: str, found: str, remedy: str) -> Finding:
    """Return a failure whose cause is at a peer or on the way to it."""
    return Finding(check, found, remedy, PartyError.exit_code)


def warning(check: str, found: str, remedy: str) -> Finding:
    """Return a warning: this may fail later."""
    return Finding(check, found, remedy)
