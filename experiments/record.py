"""Records to be committed and compared with: a whole replay's results.json, named by its experiment and scale.

It holds numbers, settings and digests: no sentence of a data set, and no path of the machine it was made on.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.compare import load_recorded
from mpcformer.errors import UserInputError
from mpcformer.files import write_json

# /a, ~/a, ./a and ../a at the start of a text or of a word in it; C:\a.
PLACE = re.compile(r"(?:^|[\s\"'=(,:])(?:~|\.{0,2})/\w|^[A-Za-z]:\\")


def target(folder: Path, experiment: str, scale: str, settings: dict[str, Any]) -> Path:
    """The file that a record goes to.

    Args:
        folder: of records; made when the record is.
        experiment, scale: what is replayed.
        settings: of the scale.

    Raises:
        UserInputError: the folder is a file, something else has that name, or a setting is a path of this machine.
    """
    if folder.exists() and not folder.is_dir():
        raise UserInputError(f"--record: {folder} is a file", "give a folder")
    path = folder / f"{experiment}-{scale}.json"
    if path.exists():
        load_recorded(path, experiment, scale, option="--record")
    _check(settings)
    return path


def write(path: Path, values: dict[str, Any]) -> None:
    """Write results.json's value there, in place of an older record.

    Raises:
        UserInputError: it names a path of this machine.
    """
    _check(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, values)


def _check(values: Any) -> None:
    places = [text for text in _texts(values) if PLACE.search(text) or ("/" in text and Path(text).exists())]
    if places:
        raise UserInputError(
            f"--record: {places[0]!r} is a path of this machine, which says nothing elsewhere",
            "name a model of the hub in the experiment's TOML, or leave --record out",
        )


def _texts(value: Any) -> Iterator[str]:
    """All strings in a JSON value, names of keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from (key, *_texts(part))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)
