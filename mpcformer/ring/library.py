"""The one compiled file of the C functions in this folder, if there is one.

The set-up compiles it if it finds a C compiler. Each module that uses functions of it compares small results with those
of its other way before it relies on them, and takes the other way where there is no file, and wherever the environment
variable MPCFORMER_KERNELS is `off`.
"""

import ctypes
import os
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

SWITCH = "MPCFORMER_KERNELS"
OFF = f"{SWITCH} is off"
NO_FILE = "the set-up found no C compiler"
OTHER_FILE = "the compiled file is of another machine or version"


def compiled_file() -> Path | None:
    """Return the compiled file, if there is one."""
    found = (Path(__file__).with_name(f"_kernels{suffix}") for suffix in EXTENSION_SUFFIXES)
    return next((path for path in found if path.is_file()), None)


@cache
def load_library() -> tuple[ctypes.CDLL | None, str]:
    """Return the file, loaded, or None and why there is none here."""
    if os.environ.get(SWITCH, "on") == "off":
        return None, OFF
    path = compiled_file()
    if path is None:
        return None, NO_FILE
    try:
        return ctypes.CDLL(str(path)), ""
    except OSError:
        return None, OTHER_FILE
