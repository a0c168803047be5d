"""The shapes of all tensors follow from a student's configuration. They are compared with what its files say.

Only the header of the weights' file is read, so nothing is made that is as large as a configuration claims.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mpcformer.errors import UserInputError
from mpcformer.modeling.description import ModelDescription, described
from mpcformer.modeling.folder import RANGES, WEIGHTS, weight_files
from mpcformer.modeling.quantised import EXPONENTS, INTEGERS, is_quantised, rounded_maps
from mpcformer.modeling.ranges import load_ranges
from mpcformer.modeling.weights import shapes_of

FLOATS, BYTES = {"F64", "F32", "F16", "BF16"}, {"I8"}
REMEDY = "use the config.json and the weights of one student"
# A checkpoint may lack the head, which is drawn anew, and no more: the tables and the encoder are nearly all of it.
LEAST_SHARE = 0.5
# Families whose layers all have the same weights, which a file holds once.
ONE_FOR_ALL_LAYERS = {"albert"}


def header(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the type and the shape of each tensor in the files of weights, without reading the tensors.

    Raises:
        UserInputError: a file is missing or damaged.
    """
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
                found |= {name: (each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}
        except (SafetensorError, OSError) as error:
            raise UserInputError(f"{path} cannot be read: {error}", "restore the checkpoint") from None
    return found


def expected(config: ModelDescription, *, quantised: bool) -> dict[str, tuple[set[str], tuple[int, ...]]]:
    """Return the types and the shape that each tensor in a student's file must have."""
    found = {name: (FLOATS, shape) for name, shape in shapes_of(config).items()}
    if quantised:
        for rounded in rounded_maps(config):
            _, shape = found.pop(f"{rounded.source}.weight")
            found[f"{rounded.source}{INTEGERS}"] = (BYTES, shape)
            found[f"{rounded.source}{EXPONENTS}"] = (BYTES, shape[:1])
    return found


def check_student(folder: Path, config: Mapping[str, Any]) -> ModelDescription:
    """Check that a student's ranges and weights are those of its config.json, and describe it; no weight is read.

    Raises:
        UserInputError: the ranges are missing, or a file does not fit the configuration.
    """
    ranges, description = load_ranges(folder), described(config)
    check_ranges(folder, ranges.bounds, description)
    check_shapes(folder, description)
    return description


def check_shapes(folder: Path, config: ModelDescription) -> None:
    """Check that a student's file holds exactly the tensors of its configuration.

    Raises:
        UserInputError: a tensor is missing, left over, or of another shape or type.
    """
    there = header(folder)
    names = dict.fromkeys(there, torch.empty(0))
    wanted = expected(config, quantised=is_quantised(names))
    if missing := sorted(wanted.keys() - there.keys()):
        raise UserInputError(f"{folder}/{WEIGHTS} lacks {missing[0]}", REMEDY)
    wrong = [name for name, (types, shape) in wanted.items() if there[name][0] not in types or there[name][1] != shape]
    if wrong:
        raise UserInputError(
            f"{folder}: {len(wrong)} tensors are missing or not shaped as config.json says, first {wrong[0]}", REMEDY
        )
    if left := sorted(there.keys() - wanted.keys()):
        raise UserInputError(
            f"{folder}/{WEIGHTS} holds {left[0]}, which is no part of the model that config.json describes", REMEDY
        )


def check_amount(folder: Path, config: Mapping[str, Any], description: ModelDescription) -> None:
    """Check that a checkpoint's files hold about as many numbers as its config.json says, whatever their names.

    Raises:
        UserInputError: they hold far fewer.
    """
    if config.get("model_type") in ONE_FOR_ALL_LAYERS:
        description = replace(description, num_hidden_layers=1, constant_norms=())
    n_there = sum(math.prod(shape) for _, shape in header(folder).values())
    n_wanted = sum(math.prod(shape) for shape in shapes_of(description).values())
    if n_there < LEAST_SHARE * n_wanted:
        raise UserInputError(
            f"{folder}: config.json describes a model of {n_wanted} numbers, {WEIGHTS} holds {n_there}", REMEDY
        )


def check_ranges(folder: Path, bounds: Mapping[str, tuple[float, float]], config: ModelDescription) -> None:
    """Check that calibrated ranges are of as many layers as the configuration says: public files have no weights.

    Raises:
        UserInputError: they are of another number of layers.
    """
    numbers = {int(found[1]) for name in bounds if (found := re.match(r"layer\.(\d{1,9})\.", name))}
    if numbers != set(range(config.num_hidden_layers)):
        raise UserInputError(
            f"{folder}: config.json describes {config.num_hidden_layers} layers, {RANGES} is of {len(numbers)}",
            "use the config.json and the ranges.json of one student",
        )
