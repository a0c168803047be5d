"""Files and folders that are either complete or absent, and hashes of files."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mpcformer.errors import UserInputError, os_remedy

# What this project writes as JSON is far smaller.
MAX_JSON_BYTES = 16 << 20


def check_new_folder(path: Path, option: str = "--out") -> None:
    """Refuse an output path that exists, unless it is an empty folder.

    Raises:
        UserInputError: the message names the path and the option that set it.
    """
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        kind = "is not empty" if path.is_dir() else "is a file"
        raise UserInputError(f"{option}: {path} {kind}", f"choose another folder or remove it: rm -r {path}")


def check_temporary_folder() -> None:
    """Check that temporary files can be written somewhere; several libraries need that as soon as they are loaded.

    Raises:
        UserInputError: there is no folder for them; the error names the variable that sets one.
    """
    try:
        tempfile.gettempdir()
    except OSError:
        first = os.environ.get("TMPDIR", "/tmp")
        raise UserInputError(
            f"TMPDIR: temporary files can be written neither to {first} nor to any other usual folder",
            f"make room in {first}, or set TMPDIR to a folder that can be written to",
        ) from None


def remove(path: Path) -> None:
    """Remove a file or a folder with everything in it, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a complete file: under a temporary name, flushed to disk, then renamed, and the new name flushed too."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, completely or not at all. NaN is refused, because JSON has no NaN."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserInputError: the file is missing, too large or is not JSON.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UserInputError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB", "restore the file")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserInputError(f"{path} does not exist", "check the path") from None
    except OSError as error:
        raise UserInputError(
            f"{path}: {error.strerror}", os_remedy(error, "check the path, and who may read it")
        ) from None
    except RecursionError:
        raise UserInputError(f"{path} is nested too deeply", "restore the file") from None
    except ValueError as error:  # not JSON, no UTF-8, or a number of too many digits
        raise UserInputError(f"{path} is not JSON: {error}", "restore the file") from None


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hex digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
