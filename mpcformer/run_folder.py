"""The folder of a run, from its start until it is whole.

A run that is to write the folder `X` works in `X.partial`. Its last file is the manifest, and in one step `X.partial`
then becomes `X`. A local private run that fails renames `X.partial` to `X.failed`. So the names on disk tell the state:

    ==========  ====================  ==================================  =======================================
    state       on disk               a new run                           a resumed run
    ==========  ====================  ==================================  =======================================
    new         nothing, or empty X   starts in X.partial                 is refused: there is nothing to resume
    unfinished  X.partial             is refused, or replaces X.partial   continues in X.partial
    failed      X.failed              starts, and leaves X.failed there  renames X.failed to X.partial, continues
    whole       X                     is refused                          is refused
    ==========  ====================  ==================================  =======================================

Replays and the demo keep finished parts in `X` between two calls, so they work in `X` itself. There the manifest alone
tells the state: it is removed when work starts and written last.
"""

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mpcformer.errors import UserInputError
from mpcformer.files import check_new_folder, read_json, remove, sha256_file, write_json

MANIFEST = "manifest.json"


class RunFolder:
    """The places of one run on disk, and the steps from one state to the next.

    Args:
        path: the folder `X` that the finished run is to have.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(f"{path.name}.partial")
        self.failed = path.with_name(f"{path.name}.failed")

    @property
    def is_whole(self) -> bool:
        """Whether `X` has a manifest."""
        return (self.path / MANIFEST).is_file()

    @property
    def unfinished(self) -> Path:
        """The folder that a resumed run continues from: `X.partial` or, without one, `X.failed`. It may not exist."""
        return self.partial if self.partial.exists() else self.failed

    def check_new(self) -> None:
        """Refuse a folder `X` that already contains something.

        Raises:
            UserInputError: `X` is a file or is not empty.
        """
        check_new_folder(self.path)

    def check_not_interrupted(self) -> None:
        """Refuse to start a new run where an interrupted one could be resumed.

        Raises:
            UserInputError: `X.partial` exists.
        """
        if self.partial.exists():
            raise UserInputError(
                f"--out: {self.partial} is left from an interrupted run",
                f"go on with --resume, or remove it: rm -r {self.partial}",
            )

    def start(self) -> None:
        """Create `X.partial`, or keep the one of an interrupted run."""
        self.partial.mkdir(parents=True, exist_ok=True)

    def start_in_place(self) -> None:
        """Create `X`, or keep it, and remove its manifest: from now on it is not whole."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / MANIFEST).unlink(missing_ok=True)

    def reopen(self) -> None:
        """Rename `X.failed` to `X.partial`, in order to continue the failed run."""
        self.failed.rename(self.partial)

    def discard(self) -> None:
        """Remove `X.partial`, if it exists."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def fail(self) -> None:
        """Rename `X.partial` to `X.failed`, in place of an older one."""
        remove(self.failed)
        self.partial.rename(self.failed)

    def publish(self, part: Path | None = None) -> None:
        """Rename `X.partial` to `X`.

        Args:
            part: a folder inside `X.partial` that becomes `X` instead; everything beside it is removed.
        """
        if self.path.is_dir():
            self.path.rmdir()
        (part or self.partial).rename(self.path)
        self.discard()

    @contextmanager
    def filled(self) -> Iterator[Path]:
        """Yield an empty `X.partial` to fill. It becomes `X` if the block succeeds and is removed otherwise."""
        self.discard()
        self.start()
        try:
            yield self.partial
            self.publish()
        finally:
            self.discard()

    def manifest(self) -> dict[str, Any]:
        """Return the manifest of `X`, or an empty dictionary if `X` is not whole."""
        return dict(read_json(self.path / MANIFEST)) if self.is_whole else {}

    def move_into(self, target: Path) -> None:
        """Move the files of `X` to the top of the folder `target`, in place of files of the same names there.

        `target` is not whole in between: its manifest is removed first and written last.
        """
        manifest = self.manifest()
        (self.path / MANIFEST).unlink()
        (target / MANIFEST).unlink(missing_ok=True)
        for source in self.path.iterdir():
            remove(target / source.name)
            source.rename(target / source.name)
        self.path.rmdir()
        write_json(target / MANIFEST, manifest)


def write_manifest(folder: Path, facts: dict[str, Any], *, unlisted: Collection[str] = ()) -> None:
    """Write the manifest of a folder that is complete: when it was finished, `facts`, and the SHA-256 of every file.

    Args:
        folder: the folder to describe.
        facts: what was asked for, as JSON values.
        unlisted: names of files that are left out because they change later.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in unlisted)
    listed = {str(path.relative_to(folder)): sha256_file(path) for path in files if path != folder / MANIFEST}
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / MANIFEST, {"finished": finished, **facts, "sha256": listed})
