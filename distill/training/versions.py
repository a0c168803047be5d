"""The software versions that every saved model records."""

import platform
from importlib.metadata import version

from distill.training.processes import current


def versions() -> dict[str, str]:
    """Return the versions of the software that affects a training's numbers, and the number of processes if several."""
    found = {"python": platform.python_version()} | {
        name: version(name) for name in ("mpcformer", "torch", "transformers", "numpy")
    }
    size = current().size
    return found | ({"processes": str(size)} if size > 1 else {})
