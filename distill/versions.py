"""What every saved model remembers of how it was made."""

import platform
from importlib.metadata import version

from distill.training.processes import current


def versions() -> dict[str, str]:
    """Versions of what decides a training run's numbers, and how many processes trained, if several."""
    found = {"python": platform.python_version()} | {
        name: version(name) for name in ("mpcformer", "torch", "transformers", "numpy")
    }
    size = current().size
    return found | ({"processes": str(size)} if size > 1 else {})
