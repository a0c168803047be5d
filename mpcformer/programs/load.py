"""A program from a file on this party's disk: its one program, and a digest of what it consists of.

No code crosses a wire: both owners have the file, and compare the digests before anything is shared.
"""

import hashlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpcformer.errors import MPCFormerError, UserInputError
from mpcformer.programs.declaration import Program

MODULE = "mpcformer_program"


@dataclass(frozen=True)
class LoadedProgram:
    """A program and where it came from.

    Args:
        program: the program.
        path: its file.
        digest: hex SHA-256 of the file, and of the modules beside it that it imports.
    """

    program: Program
    path: Path
    digest: str


def load_program(path: str | Path) -> LoadedProgram:
    """Import a file and return the program in it. If it has several, FILE:NAME says which.

    CrypTen is patched before the file is imported, so that `import crypten` in it gives the one of this project.

    Raises:
        UserInputError: there is no such file, it cannot be imported, or it does not have one program.
    """
    import mpcformer.engines.crypten.compat  # noqa: F401 (a program may import CrypTen itself)

    text, _, name = str(path).partition(":")
    file = Path(text)
    if not file.is_file():
        raise UserInputError(f"program: there is no file {file}", "give the path of a Python file")
    before = set(sys.modules)
    found = _imported(file)
    programs = {key: value for key, value in vars(found).items() if isinstance(value, Program)}
    chosen = {key: value for key, value in programs.items() if name in ("", key)}
    if len(chosen) != 1:
        raise UserInputError(
            f"program: {file} has {', '.join(programs) or 'no program'}",
            "decorate one function with @mpcformer.program, or name one: FILE:NAME",
        )
    return LoadedProgram(next(iter(chosen.values())), file, _digest(file, before))


def _imported(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(MODULE, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    sys.path.insert(0, str(file.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except MPCFormerError:
        raise
    except Exception as error:
        what = f"program: {file} cannot be imported: {type(error).__name__}: {error}"
        raise UserInputError(what, "correct the file") from None
    finally:
        sys.path.remove(str(file.resolve().parent))
    return module


def _digest(file: Path, before: set[str]) -> str:
    folder, parts = file.resolve().parent, {file.name: file.read_bytes()}
    for name in set(sys.modules) - before:
        source = getattr(sys.modules[name], "__file__", None)
        if source and Path(source).resolve().parent == folder:
            parts[Path(source).name] = Path(source).read_bytes()
    whole = hashlib.sha256()
    # The program's own file may have another name at the other owner.
    for name in sorted(parts, key=lambda name: (name != file.name, name)):
        label = b"" if name == file.name else name.encode()
        whole.update(hashlib.sha256(label).digest() + hashlib.sha256(parts[name]).digest())
    return whole.hexdigest()
