"""Inputs of programs from files: npy, npz, safetensors, csv and parquet."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpcformer.errors import MPCFormerError, UserInputError
from mpcformer.programs.declaration import Input

FORMATS = "npy, npz, safetensors, csv, parquet"


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
        return tensors.get_tensor(_chosen(name, path, list(tensors.keys()))).double().numpy()


def _chosen(name: str, path: Path, names: list[str]) -> str:
    if name in names or len(names) == 1:
        return name if name in names else names[0]
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
