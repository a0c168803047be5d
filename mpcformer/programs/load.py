"""A program from a file on this party's disk: its one program, and a digest of what it consists of.

No code crosses a wire: both owners have the file, and compare the digests before anything is shared.
"""

import hashlib
import importlib.util
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpcformer.engines.crypten.program import Program
from mpcformer.errors import MPCFormerError, UserInputError

MODULE = "mpcformer_program"
# What a program that lies in this project's own folder may import without a part in its digest.
OWN_PACKAGES = {"mpcformer", "parties", "distill", "experiments"}
# The modules and the path of a process are one for all its threads.
_loading = threading.Lock()
# The modules beside the program that was loaded last.
_beside: set[str] = set()


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
        told = "program: its file is not there"
        raise UserInputError(f"program: there is no file {file}", "give the path of a Python file", told=told)
    with _loading:
        found, helpers = _imported(file)
    programs = {key: value for key, value in vars(found).items() if isinstance(value, Program)}
    chosen = {key: value for key, value in programs.items() if name in ("", key)}
    if len(chosen) != 1:
        raise UserInputError(
            f"program: {file} has {', '.join(programs) or 'no program'}",
            "decorate one function with @mpcformer.program, or name one: FILE:NAME",
            told=f"program: {file.name} does not have one program",
        )
    return LoadedProgram(next(iter(chosen.values())), file, _digest(file, helpers))


def _imported(file: Path) -> tuple[Any, set[Path]]:
    """Import a file; return its module, and the files beside it that it imported.

    Those are imported anew: an earlier program may have had a module of the same name, or an older copy of this one.
    """
    spec = importlib.util.spec_from_file_location(MODULE, file)
    assert spec is not None
    assert spec.loader is not None
    module, folder = importlib.util.module_from_spec(spec), file.resolve().parent
    while _beside:
        sys.modules.pop(_beside.pop(), None)
    before = set(sys.modules)
    sys.modules[MODULE] = module
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    sources = set()
    try:
        spec.loader.exec_module(module)
    except MPCFormerError:
        raise
    except Exception as error:
        told = f"program: {file.name} cannot be imported: {type(error).__name__}"
        what = f"program: {file} cannot be imported: {type(error).__name__}: {error}"
        raise UserInputError(what, "correct the file", told=told) from None
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before - {MODULE}:
            source = Path(getattr(sys.modules[name], "__file__", None) or "/").resolve()
            own = name.partition(".")[0] in OWN_PACKAGES or "site-packages" in source.parts
            if folder in source.parents and not own:
                _beside.add(name)
                sources.add(source)
    return module, sources


def _digest(file: Path, helpers: set[Path]) -> str:
    folder = file.resolve().parent
    # The program's own file may have another name at the other owner.
    parts = [(b"", file), *sorted((source.relative_to(folder).as_posix().encode(), source) for source in helpers)]
    whole = hashlib.sha256()
    for label, source in parts:
        whole.update(hashlib.sha256(label).digest() + hashlib.sha256(source.read_bytes()).digest())
    return whole.hexdigest()
