"""The warning on every output of a run with insecure settings, which only tests and measurements may use."""

from mpcformer.console import err_console
from parties.settings.config import Insecure


def text(insecure: Insecure | None) -> str:
    """Return what is insecure about a run; empty if nothing is."""
    if insecure is None:
        return ""
    parts = []
    if insecure.plaintext:
        parts.append("no TLS: whoever can reach these ports can read and change everything")
    if insecure.fixed_seed is not None:
        parts.append(f"all keys follow from the number {insecure.fixed_seed}: whoever knows it can unmask everything")
    return f"INSECURE, for tests and measurements on one machine only: {'; '.join(parts)}" if parts else ""


def fixed_seed(insecure: Insecure | None) -> int | None:
    """Return the number from which all keys follow, or None if the keys are fresh."""
    return insecure.fixed_seed if insecure else None


def warn(insecure: Insecure | None) -> None:
    """Print the warning on the terminal, if there is one."""
    if text(insecure):
        err_console.print(text(insecure), style="bold red", soft_wrap=True)
