"""Inputs of programs from files of each format, of the declared shape alone."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from mpcformer.errors import UserInputError
from mpcformer.programs import owner, read_input

VALUES = np.array([[1.5, -2.0, 0.25], [4.0, 5.0, 6.0]])
SHAPE = owner("data", (2, 3))


def saved(folder: Path, kind: str) -> Path:
    """Save VALUES in a format."""
    path = folder / f"x.{kind}"
    if kind == "npy":
        np.save(path, VALUES)
    elif kind == "npz":
        np.savez(path, x=VALUES, other=VALUES[0])
    elif kind == "safetensors":
        save_file({"x": torch.from_numpy(VALUES).float()}, path)
    elif kind == "csv":
        path.write_text("a,b,c\n" + "\n".join(",".join(map(str, row)) for row in VALUES))
    else:
        pq.write_table(pa.table({name: VALUES[:, i] for i, name in enumerate("abc")}), path)
    return path


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "csv", "parquet"])
def test_formats(tmp_path: Path, kind: str) -> None:
    found = read_input("x", SHAPE, saved(tmp_path, kind))
    assert found.dtype == torch.float64
    assert torch.equal(found, torch.from_numpy(VALUES))
    with pytest.raises(UserInputError, match=r"shape \(2, 3\), declared is \(3, 2\)"):
        read_input("x", owner("data", (3, 2)), saved(tmp_path, kind))


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([2**40 + 1, 3]))
    assert read_input("x", owner("data", (2,)), tmp_path / "x.npy").tolist() == [2**40 + 1, 3]


def test_what_is_no_input_is_refused_and_nothing_is_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(VALUES))
    (tmp_path / "broken.npy").write_bytes(b"nothing")
    np.save(tmp_path / "nan.npy", np.array([[1.0, np.nan, 31337.0]] * 2))
    np.save(tmp_path / "text.npy", np.array([["a", "b", "c"]] * 2))
    np.savez(tmp_path / "two.npz", a=VALUES, b=VALUES)
    for name, message in [
        ("objects.npy", "cannot be read as npy"),
        ("x.pkl", "is no format of inputs"),
        ("broken.npy", "cannot be read as npy"),
        ("nan.npy", "holds NaN or infinity"),
        ("text.npy", "not numbers"),
        ("two.npz", "has no tensor 'x'"),
        ("missing.npy", "there is no file"),
    ]:
        with pytest.raises(UserInputError, match=message) as caught:
            read_input("x", SHAPE, tmp_path / name)
        assert "31337" not in str(caught.value)
