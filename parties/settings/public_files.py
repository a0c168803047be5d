"""The public files of a student, which the model owner gives to the data owner once. They contain no weight."""

import shutil
from pathlib import Path

from mpcformer.files import sha256_file, write_json
from mpcformer.modeling.folder import RANGES, WEIGHTS

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


def export_public(student: Path, target: Path) -> Path:
    """Copy configuration, ranges and tokenizer of a student into a new folder, and write down its digest."""
    target.mkdir()
    for name in COPIED:
        if (student / name).is_file():
            shutil.copyfile(student / name, target / name)
    write_json(target / STUDENT_RECORD, {"sha256": sha256_file(student / WEIGHTS)})
    return target
