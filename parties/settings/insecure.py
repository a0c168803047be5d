"""INSECURE never by accident: one text, on every output of a run that used what only tests and measurements may."""

from mpcformer.console import err_console
from parties.settings.config import Insecure


def text(insecure: Insecure | None) -> str:
    """What is insecure about a run; empty if nothing is."""
    if insecure is None:
        return ""
    parts = []
    if insecure.plaintext:
        parts.append("no TLS: whoever can reach these ports can read and change everything")
    if insecure.fixed_seed is not None:
        parts.append(f"all keys follow from the number {insecure.fixed_seed}: whoever knows it can unmask everything")
    return f"INSECURE, for tests and measurements on one machine only: {'; '.join(parts)}" if parts else ""


def fixed_seed(insecure: Insecure | None) -> int | None:
    """The number that all keys follow from; None: keys are fresh."""
    return insecure.fixed_seed if insecure else None


def warn(insecure: Insecure | None) -> None:
    """Say it on the terminal."""
    if text(insecure):
        err_console.print(text(insecure), style="bold red", soft_wrap=True)
