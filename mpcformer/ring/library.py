"""The one compiled file of the C functions in this folder, if there is one.

The set-up compiles it if it finds a C compiler. Modules take their other way where there is no file, and wherever the
environment variable MPCFORMER_KERNELS is `off`. Products, streams, packing, fused passes and keys of tables are
compared with the other way in each process before it relies on them.
"""

import ctypes
import os
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

SWITCH = "MPCFORMER_KERNELS"
OFF = f"{SWITCH} is off"
NO_FILE = "the set-up found no C compiler, or one that failed"
OTHER_FILE = "the compiled file is of another machine or version"
# The version of the functions' arguments; to be raised in kernels.c too whenever a structure changes.
ARGUMENTS_VERSION = 4


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
        library = ctypes.CDLL(str(path))
        is_ours = library.mpcformer_arguments_version() == ARGUMENTS_VERSION
    except (OSError, AttributeError):
        return None, OTHER_FILE
    return (library, "") if is_ours else (None, OTHER_FILE)
