"""Save the results.json of a replay as a record that can be committed and compared with later runs.

A record is named by its experiment and scale. It contains numbers, settings and digests, but no sentence of a data set
and no path of the machine that made it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.records.recorded import load_recorded
from mpcformer.errors import UserInputError
from mpcformer.files import write_json

# This matches /a, ~/a, ./a and ../a at the start of a text or of a word in it, and C:\a.
PLACE = re.compile(r"(?:^|[\s\"'=(,:])(?:~|\.{0,2})/\w|^[A-Za-z]:\\")


def target(folder: Path, experiment: str, scale: str, settings: dict[str, Any]) -> Path:
    """Return the file that a record will be written to.

    Args:
        folder: the folder of records; it is created when a record is written.
        experiment, scale: the experiment and the scale that are replayed.
        settings: the settings of the scale.

    Raises:
        UserInputError: the folder is a file, the record's name is taken by another file, or a setting is a path of this
            machine.
    """
    if folder.exists() and not folder.is_dir():
        raise UserInputError(f"--record: {folder} is a file", "give a folder")
    path = folder / f"{experiment}-{scale}.json"
    if path.exists():
        load_recorded(path, experiment, scale, option="--record")
    _check(settings)
    return path


def write(path: Path, values: dict[str, Any]) -> None:
    """Write the values of results.json as a record, which replaces an older one.

    Raises:
        UserInputError: a text in the values is a path of this machine.
    """
    _check(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, values)


def _check(values: Any) -> None:
    places = [text for text in _texts(values) if PLACE.search(text) or ("/" in text and Path(text).exists())]
    if places:
        raise UserInputError(
            f"--record: {places[0]!r} is a path of this machine, which means nothing on another",
            "name a model of the hub in the experiment's TOML, or leave --record out",
        )


def _texts(value: Any) -> Iterator[str]:
    """Yield all strings in a JSON value, including the names of keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from (key, *_texts(part))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)
