"""The structure of the code: imports point one way, package by package and room by room, and rooms stay small.

A room is a folder of a package, or a module at its root. Each may import the rooms that stand before it in `ROOMS`.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_MODULES = 16
MAY_IMPORT = {
    "mpcformer": {"mpcformer"},
    "distill": {"mpcformer", "distill"},
    "parties": {"mpcformer", "parties"},
    "experiments": {"mpcformer", "distill", "parties", "experiments"},
}
ROOMS = {
    "mpcformer": "errors console files machine lazy run_folder channel ring correlations protocols approximations"
    " modeling tasks engines programs options doctor cli __main__",
    "mpcformer/engines": "calibrated cost base registry dry_run stopwatch plaintext lift crypten",
    "distill": "recipe versions training start objectives model_card ready cover teacher grid student general commands",
    "parties": "stubs settings wire session program_process roles runs programs ask gateway diagnosis __main__"
    " commands",
    "experiments": "spec render measuring records kinds programs bench_command estimate products transport demo replay"
    " commands",
}


@functools.cache
def modules() -> dict[str, Path]:
    """Return every module of the four packages by its dotted name, without the generated ones."""
    found = {}
    for package in MAY_IMPORT:
        for path in (ROOT / package).rglob("*.py"):
            if "_pb2" not in path.name:
                parts = path.relative_to(ROOT).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports anywhere in it, except for annotations only."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def arrows() -> dict[str, set[str]]:
    """Return for each module the modules of the four packages that it imports."""
    known = modules()
    found: dict[str, set[str]] = {}
    for module, path in known.items():
        names = {name if name in known else name.rpartition(".")[0] for name in imported(path)}
        found[module] = {name for name in names if name in known and name != module}
    return found


def room(folder: str, module: str) -> str:
    """Return the room of `folder` that a module is in; empty if it is in none."""
    inside = module.replace(".", "/").removeprefix(f"{folder}/")
    return inside.split("/")[0] if module.replace(".", "/").startswith(f"{folder}/") else ""


def test_packages_import_one_way() -> None:
    wrong = [
        f"{module} -> {other}"
        for module, others in arrows().items()
        for other in others
        if other.split(".")[0] not in MAY_IMPORT[module.split(".")[0]]
    ]
    assert not wrong


@pytest.mark.parametrize("folder", ROOMS)
def test_rooms_import_only_what_stands_before_them(folder: str) -> None:
    order = ROOMS[folder].split()
    wrong = []
    for module, others in arrows().items():
        here = room(folder, module)
        assert not here or here in order, f"{module}: say where the room {here!r} stands, in ROOMS"
        for there in {room(folder, other) for other in others} - {"", here}:
            if here and order.index(there) > order.index(here):
                wrong.append(f"{module} -> {folder}/{there}")
    assert not wrong


def test_there_is_no_circle_of_imports() -> None:
    left = dict(arrows())
    while free := [module for module, others in left.items() if not others & left.keys()]:
        for module in free:
            del left[module]
    assert not left, "these modules import each other in a circle, or import one that does"


def test_one_module_imports_crypten() -> None:
    users = {m for m, path in modules().items() if any(name.split(".")[0] == "crypten" for name in imported(path))}
    assert users == {"mpcformer.engines.crypten.compat.library"}


def test_no_folder_has_many_modules() -> None:
    names = [path.parent for path in modules().values() if path.name != "__init__.py"]
    assert {str(folder): names.count(folder) for folder in names if names.count(folder) > MAX_MODULES} == {}
