"""What a folder holds: a checkpoint, a student or a teacher. Nothing here loads torch."""

import hashlib
from pathlib import Path
from typing import Any

from mpcformer.errors import UserInputError
from mpcformer.files import read_json, sha256_file
from mpcformer.modeling.families import family_of
from mpcformer.modeling.limits import check_fields, read_object

WEIGHTS = "model.safetensors"
# What a folder with a PEFT adapter holds in place of a config.json.
ADAPTER = "adapter_config.json"
# Names the files of a checkpoint whose weights are spread over several.
INDEX = "model.safetensors.index.json"
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
        UserInputError: the folder holds no checkpoint, or that of an architecture that is not supported.
    """
    if not folder.is_dir():
        raise UserInputError(f"{folder} is not a folder", "give the folder of a checkpoint")
    has_weights = any((folder / name).is_file() for name in (WEIGHTS, INDEX))
    missing = [name for name in ("config.json",) if not (folder / name).is_file()] + [WEIGHTS] * (not has_weights)
    if missing and (folder / ADAPTER).is_file():
        raise UserInputError(
            f"{folder} holds a PEFT adapter ({ADAPTER}), which is no model by itself",
            "merge it into its model with peft: AutoPeftModelForSequenceClassification.from_pretrained(FOLDER)"
            ".merge_and_unload().save_pretrained(DIR), save the tokenizer there too, and give DIR",
        )
    if missing:
        raise UserInputError(
            f"{folder} is not a checkpoint: {' and '.join(missing)} missing",
            "give a folder written by save_pretrained (weights as safetensors)",
        )
    config = read_object(folder / "config.json")
    family_of(config, str(folder))
    check_fields(config)
    return config


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a checkpoint's weights.

    Raises:
        UserInputError: the list of the files is damaged, or names a file that is not there.
    """
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    listed = read_json(folder / INDEX)
    names = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise UserInputError(f"{folder}/{INDEX} names no files of weights", "restore the checkpoint")
    files = [folder / name for name in sorted(set(names.values()))]
    for path in files:
        # A name with a folder in it might point anywhere.
        if path.parent != folder or not path.is_file():
            raise UserInputError(f"{folder}/{INDEX} names {path.name!r}, which is not there", "restore the checkpoint")
    return files


def weights_digest(folder: Path) -> str:
    """Return the hex SHA-256 of a checkpoint's weights: that of its file, or of the list of those of its files.

    Raises:
        UserInputError: as `weight_files`.
    """
    digests = [sha256_file(path) for path in weight_files(folder)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def require_student(folder: Path, config: dict[str, Any]) -> None:
    """Refuse a plain encoder where a distilled student is needed.

    Args:
        folder: where the model lies.
        config: its config.json.

    Raises:
        UserInputError: the model is no student.
    """
    if config.get("model_type") != "mpcformer":
        raise UserInputError(
            f"{folder} holds a plain {config.get('model_type')} model, not a distilled student",
            f"distil it first: mpcformer distill --teacher {folder} --task TASK --out DIR",
        )


def require_teacher(folder: Path, option: str = "--teacher") -> None:
    """Refuse a distilled student where an encoder with its own activation, softmax and LayerNorm is needed.

    Raises:
        UserInputError: not a checkpoint, or a student: without its own forms it computes something else.
    """
    config = read_config(folder)
    if config["model_type"] != "mpcformer":
        return
    own = family_of(config, str(folder)).described(config)
    # A student's configuration says nothing of its teacher's activation; quad is no teacher's.
    differs = own.get("constant_norms") or own.get("strides")
    if own.get("gelu") == "quad" or own.get("softmax") != "softmax" or differs:
        raise UserInputError(
            f"{option}: {folder} holds a distilled student, not a teacher",
            "give the folder of a fine-tuned encoder: mpcformer teacher --task TASK --out DIR makes one",
        )
