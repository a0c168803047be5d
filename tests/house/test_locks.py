"""The lists of pinned packages fit each other, and the oldest Python that the README promises."""

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
# Debian 12 has this one.
OLDEST = "3.11.2"


def pinned(name: str) -> dict[str, str]:
    """Return package -> version."""
    return dict(re.findall(r"^([\w.-]+)==([\w.!+-]+)", (ROOT / name).read_text(), re.MULTILINE))


def test_the_extras_have_the_versions_of_the_others() -> None:
    everything = pinned("requirements.txt")
    extras = sorted(path.name for path in ROOT.glob("requirements-*.txt"))
    assert extras == ["requirements-ray.txt", "requirements-schemas.txt"]
    for name in extras:
        for package, version in pinned(name).items():
            assert everything.setdefault(package, version) == version, f"{package} of {name}"
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"--require-hashes -r {name}" in makefile for name in extras)


def test_the_pinned_packages_take_the_oldest_python() -> None:
    looked_at = 0
    for package, version in pinned("requirements.txt").items():
        try:
            found = metadata(package)
        except PackageNotFoundError:
            continue
        if found["Version"] == version:
            looked_at += 1
            assert OLDEST in SpecifierSet(found["Requires-Python"] or ""), f"{package} {version}"
    assert looked_at > 50
