"""What a folder holds: a checkpoint, a student or a teacher. Nothing here loads torch."""

import json
from pathlib import Path
from typing import Any

from mpcformer.errors import UserInputError

WEIGHTS = "model.safetensors"
# A student's calibrated ranges.
RANGES = "ranges.json"


def first_student() -> Path:
    """Return the folder of the student that comes with the package.

    It is a small one for the task movie-sentiment: one text, which is negative or positive. Its model card, README.md
    there, says how it was made and how good it is.
    """
    return Path(__file__).resolve().parents[1] / "students" / "movie-sentiment"


def read_config(folder: Path) -> dict[str, Any]:
    """Return the checkpoint's config.json.

    Raises:
        UserInputError: the folder holds no checkpoint, or that of another architecture than BERT.
    """
    if not folder.is_dir():
        raise UserInputError(f"{folder} is not a folder", "give the folder of a checkpoint")
    missing = [name for name in ("config.json", WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise UserInputError(
            f"{folder} is not a checkpoint: {' and '.join(missing)} missing",
            "give a folder written by save_pretrained (weights as safetensors)",
        )
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise UserInputError(f"{folder}/config.json is not JSON: {error}", "restore the checkpoint") from None
    if config.get("model_type") not in ("bert", "mpcformer"):
        raise UserInputError(
            f"{folder} holds a {config.get('model_type')!r} model; only 'bert' and 'mpcformer' are supported",
            "choose a BERT checkpoint",
        )
    return dict(config)


def require_student(folder: Path, config: dict[str, Any]) -> None:
    """Refuse a plain BERT where a distilled student is needed.

    Args:
        folder: where the model lies.
        config: its config.json.

    Raises:
        UserInputError: the model is no student.
    """
    if config.get("model_type") != "mpcformer":
        raise UserInputError(
            f"{folder} holds a plain BERT, not a distilled student",
            f"distil it first: mpcformer distill --teacher {folder} --task TASK --out DIR",
        )


def require_teacher(folder: Path, option: str = "--teacher") -> None:
    """Refuse a distilled student where a BERT with its own GeLU, softmax and LayerNorm is needed.

    Raises:
        UserInputError: not a checkpoint, or a student: without its own forms it computes something else.
    """
    config = read_config(folder)
    forms = (config.get("gelu", "gelu"), config.get("softmax", "softmax"), list(config.get("constant_norms", ())))
    if forms != ("gelu", "softmax", []):
        raise UserInputError(
            f"{option}: {folder} holds a distilled student, not a teacher",
            "give the folder of a fine-tuned BERT: mpcformer teacher --task TASK --out DIR makes one",
        )
