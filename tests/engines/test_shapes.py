"""Students that are narrower or shorter than their teachers, in both engines."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpcformer.engines.base import BatchShape, PublicModel, load_public_model
from mpcformer.engines.registry import ENGINES, estimate_batch
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
    other = PublicModel(replace(public.config, head_size=4), public.ranges)
    assert public.facts() != other.facts()


def test_a_model_owner_imports_neither_transformers_nor_a_compiler(tmp_path: Path, data_dir: Path) -> None:
    # They would take seconds of every first answer. PyTorch's own functions for shapes import sympy, and those on its
    # meta device the compiler.
    folder = save_student(tmp_path / "student", data_dir)
    code = f"""
import sys
from pathlib import Path
from mpcformer.engines.base import BatchShape, load_public_model
from mpcformer.engines.dry_run import PlanRecorder, SilentChannel
from mpcformer.engines.lift.ahead import Ahead
from mpcformer.engines.lift.engine import dry_run, engine_constants
from mpcformer.engines.registry import create_engine
from mpcformer.modeling.weights_file import load_weights
from mpcformer.protocols.party import Party
import parties.roles.model_owner

folder, shape = Path({str(folder)!r}), BatchShape(2, 16)
public = load_public_model(folder)
create_engine("lift", rank=0, public=public, channel=None, weights=load_weights(folder))
planned = dry_run(public, shape)
party = Party(0, SilentChannel(), PlanRecorder(0))
ahead = Ahead(party, public.config, engine_constants(public), (2, 16), None, None)
for segment in range(len(planned.segments)):
    ahead.offline(segment, planned.starts)
print(len(ahead.known) > 5, sorted({{"sympy", "torch._dynamo", "transformers"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "True []\n", done.stderr
