"""Inputs of programs from files: npy, npz, safetensors, csv and parquet."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpcformer.engines.crypten.program import POINT, Input, Program, group_of
from mpcformer.errors import MPCFormerError, UserInputError

FORMATS = "npy, npz, safetensors, csv, parquet"
GROUP_FORMATS = ".npz", ".safetensors"


def read_inputs(program: Program, name: str, path: Path) -> dict[str, torch.Tensor]:
    """Read an input, or all tensors of a group of them from one npz or safetensors file; see `read_input`.

    Args:
        program: what declares them.
        name: of the input or the group.
        path: the file.

    Returns:
        The tensors by the names in `program.inputs`.

    Raises:
        UserInputError: see `read_input`; or a group's file is of another format.
    """
    wanted = {each: declared for each, declared in program.inputs.items() if group_of(each) == name}
    if name not in wanted and path.suffix.lower() not in GROUP_FORMATS:
        what = f"--input {name}: it is a group of {len(wanted)} tensors, which {path} cannot hold"
        raise UserInputError(what, f"save them by their names: {' or '.join(GROUP_FORMATS)}")
    return {each: read_input(each, declared, path) for each, declared in wanted.items()}


def read_input(name: str, declared: Input, path: Path) -> torch.Tensor:
    """Read an input, of exactly the shape that is declared. Nothing is unpickled, and no value reaches an error.

    An npz or safetensors file has a tensor with the input's name, or one tensor. A csv file has numbers alone, after
    one line of names if there is one. A parquet file's columns are columns of the input.

    Args:
        name: the input's name.
        declared: what the program declares.
        path: the file.

    Returns:
        float64, or int64 if the file has whole numbers.

    Raises:
        UserInputError: the file is missing, of another format, not of numbers, or of another shape.
    """
    if not path.is_file():
        raise UserInputError(f"--input {name}: there is no file {path}", "give the path of a file")
    readers = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserInputError(f"--input {name}: {path.suffix or path.name} is no format of inputs", f"use {FORMATS}")
    try:
        found = np.asarray(reader(name, path))
    except MPCFormerError:
        raise
    except Exception as error:
        what = f"--input {name}: {path} cannot be read as {path.suffix[1:]} ({type(error).__name__})"
        raise UserInputError(what, "check the file") from None
    if found.dtype.kind not in "biuf":
        raise UserInputError(f"--input {name}: {path} holds {found.dtype}, not numbers", "save numbers")
    if declared.whole and found.dtype.kind == "f":
        what = f"--input {name}: {path} holds {found.dtype}, declared are whole numbers"
        raise UserInputError(what, "save them as integers, or declare the input without `whole` at both owners")
    if found.shape != declared.shape:
        raise UserInputError(
            f"--input {name}: {path} has the shape {found.shape}, declared is {declared.shape}",
            "give a file of that shape, or correct the declaration at both owners",
        )
    if not bool(np.isfinite(found).all()):
        raise UserInputError(f"--input {name}: {path} holds NaN or infinity", "replace what is missing first")
    return torch.from_numpy(found.astype(np.float64 if found.dtype.kind == "f" else np.int64))


def _npy(name: str, path: Path) -> Any:
    return np.load(path, allow_pickle=False)


def _npz(name: str, path: Path) -> Any:
    with np.load(path, allow_pickle=False) as tensors:
        return tensors[_chosen(name, path, list(tensors))]


def _safetensors(name: str, path: Path) -> Any:
    from safetensors import safe_open

    with safe_open(path, "pt") as tensors:
        tensor = tensors.get_tensor(_chosen(name, path, list(tensors.keys())))
        return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def _chosen(name: str, path: Path, names: list[str]) -> str:
    """Return an input's own name, or that of the file's one tensor; of a group's tensor its name in the group."""
    _, point, inner = name.partition(POINT)
    if point:
        name = inner
    elif len(names) == 1:
        return names[0]
    if name in names:
        return name
    raise UserInputError(f"--input {name}: {path} has no tensor {name!r}", f"it has {', '.join(sorted(names)[:8])}")


def _csv(name: str, path: Path) -> Any:
    with path.open() as file:
        first = file.readline().split(",")
    skipped = 0 if all(map(_is_number, first)) else 1
    return np.loadtxt(path, delimiter=",", skiprows=skipped, ndmin=2)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parquet(name: str, path: Path) -> Any:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return np.stack([column.to_numpy() for column in table.columns], axis=1)


def save_result(path: Path, value: torch.Tensor) -> None:
    """Write a result as an npy file."""
    np.save(path, value.numpy(), allow_pickle=False)
