"""What every saved model remembers of how it was made."""

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Versions of what decides a training run's numbers."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("mpcformer", "torch", "transformers", "numpy")
    }
