"""Students that are narrower or shorter than their teachers, in both engines."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpcformer.engines.base import BatchShape, PublicModel, load_public_model
from mpcformer.engines.registry import ENGINES, estimate_batch
from mpcformer.modeling import MPCFormerConfig
from tests.pair import batch_of, run_private
from tests.tiny import save_student

NARROW = {"num_attention_heads": 2, "head_size": 8, "intermediate_size": 24}


@pytest.mark.parametrize(
    ("shape", "softmax", "constant"),
    [
        (NARROW, "2quad-const", []),
        (NARROW, "2quad", ["attention"]),
        (NARROW | {"num_hidden_layers": 1}, "2quad-const", ["all"]),
        ({"num_attention_heads": 3, "head_size": 5}, "softmax", []),
        ({"num_attention_heads": 5, "head_size": 8}, "2relu", []),
        ({"num_hidden_layers": 3, "intermediate_size": 20}, "2quad-const", ["output"]),
    ],
)
def test_students_of_other_shapes_give_the_plaintext_logits(
    tmp_path: Path, data_dir: Path, shape: dict[str, Any], softmax: str, constant: list[str]
) -> None:
    folder = save_student(tmp_path / "student", data_dir, softmax=softmax, constant_norms=constant, **shape)
    inputs, expected = batch_of(folder, data_dir)
    for engine in ENGINES:
        _, logits, _, counted = run_private(folder, inputs, engine=engine)
        assert float(np.abs(logits.numpy() - expected).max()) < (0.01 if softmax == "softmax" else 0.002)
        if engine == "lift":
            cost = estimate_batch(engine, load_public_model(folder), inputs.shape)
            stated = cost.rounds, cost.bytes_to_data_owner, cost.bytes_to_model_owner
            assert (counted.rounds, counted.bytes_received, counted.bytes_sent) == stated


def test_narrow_heads_cost_less(tmp_path: Path, data_dir: Path) -> None:
    shape = BatchShape(2, 16)
    wide, narrow = (
        load_public_model(save_student(tmp_path / f"size-{size}", data_dir, head_size=size)) for size in (8, 4)
    )
    for engine in ENGINES:
        a, b = (estimate_batch(engine, public, shape) for public in (wide, narrow))
        assert b.online_bytes < a.online_bytes
        assert b.dealer_bytes < a.dealer_bytes


def test_owners_must_agree_on_the_shape(tmp_path: Path, data_dir: Path) -> None:
    public = load_public_model(save_student(tmp_path / "student", data_dir, **NARROW))
    assert public.facts()["head_size"] == "8"
    other = PublicModel(MPCFormerConfig(**(public.config.to_dict() | {"head_size": 4})), public.ranges)
    assert public.facts() != other.facts()


def test_a_pass_imports_no_compiler(tmp_path: Path, data_dir: Path) -> None:
    # PyTorch's own functions for shapes import sympy, and those on its meta device the compiler: seconds of a first
    # answer.
    folder = save_student(tmp_path / "student", data_dir)
    code = f"""
import sys
from pathlib import Path
from tests.pair import batch_of, run_private
folder = Path({str(folder)!r})
inputs, _ = batch_of(folder, Path({str(data_dir)!r}))
heavy = {{"sympy", "torch._dynamo", "torch.fx.experimental.symbolic_shapes"}}
before = heavy & sys.modules.keys()
run_private(folder, inputs, engine="lift")
print(sorted(before), sorted(heavy & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "[] []\n", done.stderr
