"""Inputs of programs from files of each format, of the declared shape alone."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from mpcformer.errors import UserInputError
from mpcformer.programs import owner, program, read_input, read_inputs
from parties.program_process.part import described, prepare
from parties.program_process.task import Task

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


def test_whole_numbers_alone_are_declared_so(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([1.0, 2.0]))
    np.save(tmp_path / "whole.npy", np.array([1, 2], dtype=np.int8))
    whole = owner("data", (2,), whole=True)
    assert read_input("x", whole, tmp_path / "whole.npy").dtype == torch.int64
    with pytest.raises(UserInputError, match="holds float64, declared are whole numbers"):
        read_input("x", whole, tmp_path / "x.npy")


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_one_file_has_all_tensors_of_a_group(tmp_path: Path, kind: str) -> None:
    group = owner("model", {"a": (2, 3), "b.c": (3,)})
    found = program(inputs={"w": group, "x": SHAPE}, reveal={"y": "data"})(lambda w, x: {"y": x})

    def write(tensors: dict[str, np.ndarray]) -> Path:
        path = tmp_path / f"w.{kind}"
        if kind == "npz":
            np.savez(path, **tensors)
        else:
            save_file({name: torch.from_numpy(value) for name, value in tensors.items()}, path)
        return path

    read = read_inputs(found, "w", write({"a": VALUES, "b.c": np.arange(3), "other": VALUES[0].copy()}))
    assert torch.equal(read["w.a"], torch.from_numpy(VALUES))
    assert read["w.b.c"].tolist() == [0, 1, 2]
    assert read.keys() == {"w.a", "w.b.c"}
    with pytest.raises(UserInputError, match=r"has no tensor 'b.c'"):
        read_inputs(found, "w", write({"a": VALUES}))
    with pytest.raises(UserInputError, match=r"a group of 2 tensors, which .* cannot hold"):
        read_inputs(found, "w", saved(tmp_path, "npy"))
    assert read_inputs(found, "x", saved(tmp_path, "npy")).keys() == {"x"}


def test_an_owners_process_reads_a_group_as_one_input(tmp_path: Path) -> None:
    file = Path(__file__).parent / "files" / "small.py"
    np.savez(tmp_path / "layer.npz", **{"weight": np.ones((3, 2)), "bias.of.it": np.zeros(2)})
    task = Task(rank=0, name="p", program=f"{file}:grouped", inputs={"layer": str(tmp_path / "layer.npz")})
    prepared = prepare(task)
    assert prepared.values.keys() == {"layer.weight", "layer.bias.of.it"}
    assert described(task, prepared)["owners"] == {"layer": "model", "counts": "data"}
    with pytest.raises(UserInputError, match="layer of p is missing"):
        prepare(replace(task, inputs={}))
    with pytest.raises(UserInputError, match=r"input layer.weight: p has no such input"):
        prepare(replace(task, inputs={"layer.weight": str(tmp_path / "layer.npz")}))


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
