"""Saving students, with their weights rounded or as they are."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from mpcformer.modeling.description import ModelDescription
from mpcformer.modeling.folder import WEIGHTS
from mpcformer.modeling.model import MPCFormerForSequenceClassification
from mpcformer.modeling.quantised import Moments, quantise, restored


def round_weights(
    student: MPCFormerForSequenceClassification, bits: int, moments: Mapping[str, Moments] | None = None
) -> dict[str, torch.Tensor]:
    """Round the linear maps of a student in place; return the tensors that `save_student` writes.

    Args:
        student: the student.
        bits: the bits of a weight.
        moments: as `quantise` takes them.

    Raises:
        UserInputError: weights of so many bits are not defined.
    """
    config = ModelDescription.of(student.config)
    kept = quantise(student.state_dict(), config, bits, moments)
    student.load_state_dict(restored(kept, config))
    return kept


def save_student(
    student: MPCFormerForSequenceClassification, folder: Path, rounded: dict[str, torch.Tensor] | None
) -> None:
    """Write a student's configuration and weights.

    Args:
        student: the student.
        folder: an existing folder.
        rounded: what `round_weights` returned, if the weights were rounded.
    """
    student.save_pretrained(folder)
    if rounded is not None:
        save_file(rounded, folder / WEIGHTS, metadata={"format": "pt"})
