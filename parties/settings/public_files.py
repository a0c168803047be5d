"""The public files of a student, which the model owner gives to the data owner once. They contain no weight."""

import re
import shutil
from pathlib import Path

from mpcformer.errors import UserInputError
from mpcformer.files import sha256_file, write_json
from mpcformer.modeling.folder import RANGES, WEIGHTS
from mpcformer.modeling.limits import read_object

# States which weights the model owner claims to use: {"sha256": hex}.
STUDENT_RECORD = "student.json"
COPIED = (
    "config.json",
    RANGES,
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
)


def recorded_student(folder: Path) -> str:
    """Return the SHA-256 of the student to which public files belong, hex digits.

    Raises:
        UserInputError: the files do not say which.
    """
    digest = read_object(folder / STUDENT_RECORD).get("sha256")
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise UserInputError(
            f"{folder / STUDENT_RECORD} does not name a student",
            "ask the model owner for the folder that mpcformer export wrote",
        )
    return digest


def export_public(student: Path, target: Path) -> Path:
    """Copy configuration, ranges and tokenizer of a student into a new folder, and write down its digest.

    Raises:
        UserInputError: a file is a link to somewhere else, such as a planted one to a key.
    """
    for name in COPIED:
        if (student / name).is_symlink() and (student / name).resolve().parent != student.resolve():
            raise UserInputError(
                f"{student / name} is a link to a file outside {student}", "put the file itself there, and look at it"
            )
    target.mkdir()
    for name in COPIED:
        if (student / name).is_file():
            shutil.copyfile(student / name, target / name)
    write_json(target / STUDENT_RECORD, {"sha256": sha256_file(student / WEIGHTS)})
    return target
