"""Private Transformer inference: the MPCFormer student, and the protocols that run it on secret shares."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("mpcformer")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0.0.0+source"
