"""Reading a checkpoint's weights from its file, for parties: no model is built, and transformers is not imported."""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from mpcformer.errors import RangeError, UserInputError
from mpcformer.machine import give_freed_memory_back
from mpcformer.modeling.description import described
from mpcformer.modeling.families import family_of
from mpcformer.modeling.folder import read_config, require_student, weight_files
from mpcformer.modeling.quantised import is_quantised, restored
from mpcformer.modeling.shapes import check_student

MAX_WEIGHT = 2.0**14


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Load a student's weights and check that they are complete, without building the model.

    Returns:
        The tensors by name, as the student's `state_dict` gives them.

    Raises:
        UserInputError, RangeError: as for `load.load_student`.
    """
    config = read_config(folder)
    require_student(folder, config)
    check_student(folder, config)
    weights = read_weights(folder)
    # The copies that reading made would count for the process as long as it lives.
    give_freed_memory_back()
    return weights


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read a checkpoint's tensors, as float32 and under a BERT's names; those of other heads are left out.

    Raises:
        UserInputError: a file is missing or damaged.
        RangeError: a weight is NaN, infinite or huge.
    """
    config = read_config(folder)
    raw = {name: tensor for path in weight_files(folder) for name, tensor in _tensors(path).items()}
    if is_quantised(raw):
        try:
            raw = restored(raw, described(config, str(folder)))
        except UserInputError as error:
            raise UserInputError(f"{folder}: {error.what}", error.remedy) from None
    state = family_of(config, str(folder)).canonical(raw, config)
    for key, value in state.items():
        if not value.is_floating_point():
            continue
        largest = float(value.abs().max()) if value.numel() else 0.0
        if math.isnan(largest) or largest >= MAX_WEIGHT:
            raise RangeError(
                f"{folder}: tensor {key} holds NaN or a number outside -{MAX_WEIGHT:.0f}..{MAX_WEIGHT:.0f}",
                "fixed point cannot carry it: train the model again",
            )
    return {key: value.float() for key, value in state.items()}


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        # A mapped file would change, or end the process, where somebody writes to it while it is used.
        return dict(load(path.read_bytes()))
    except (SafetensorError, OSError) as error:
        raise UserInputError(f"{path} cannot be read: {error}", "restore the checkpoint") from None
