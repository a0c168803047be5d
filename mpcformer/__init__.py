"""Private Transformer inference: neither the text nor the model leaves its owner.

Ask a model as you ask a Hugging Face pipeline:

    import mpcformer

    with mpcformer.local() as classify:                          # all parties on this machine, with a small student
        classify("A quiet film that stays with you.")            # [{"label": "positive", "score": 0.97}]

    with mpcformer.connect("data-owner.toml") as classify:       # the parties of a deployment
        classify(["One text.", "Another."], batch_size=16)

`local` and `connect` return a `Classifier`. `models` lists the models of a deployment that may be asked. `program`
makes a function on CrypTen's tensors one that `mpcformer run` runs between the parties (mpcformer/programs). Every
error is an `MPCFormerError` that says what is wrong and what to do. The command line (`mpcformer --help`) makes
students, starts parties and measures.
"""

from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Any

from mpcformer.errors import MPCFormerError

try:
    __version__ = version("mpcformer")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0.0.0+source"

# These are in packages that are built on this one, so they are found as entry points, when they are first used.
_API = ("local", "connect", "models", "Classifier", "BudgetError")
# These load torch, so that they wait until they are asked for, too.
_PROGRAMS = ("owner", "program")
__all__ = [
    "BudgetError",
    "Classifier",
    "MPCFormerError",
    "__version__",
    "connect",
    "local",
    "models",
    "owner",
    "program",
]


def __getattr__(name: str) -> Any:
    if name in _API:
        for point in entry_points(group="mpcformer.api", name=name):
            return point.load()
    if name in _PROGRAMS:
        from mpcformer.programs import declaration

        return getattr(declaration, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
