"""Estimates equal what the owners of a real run send, and what the dealer deals for the pass's own plan."""

from pathlib import Path
from typing import Any

import pytest

from mpcformer.channel import memory_pair
from mpcformer.engines.base import BatchShape, load_public_model
from mpcformer.engines.cost import dealer_bytes
from mpcformer.engines.registry import create_engine, estimate_batch
from tests.pair import batch_of, run_private
from tests.tiny import save_student

CASES = [
    *(({"gelu": gelu}, "lift", "private_table") for gelu in ("quad", "relu", "gelu")),
    *(({"softmax": softmax}, "lift", "private_table") for softmax in ("2quad-const", "2relu", "softmax")),
    ({"constant_norms": ["attention"]}, "lift", "private_table"),
    ({"softmax": "2quad-const", "constant_norms": ["all"]}, "lift", "public_table"),
    ({"head_size": 3, "num_attention_heads": 2, "num_hidden_layers": 3}, "lift", "public_table"),
    ({"vocab_size": 7000}, "lift", "private_table"),
    ({"num_hidden_layers": 3, "strides": [1, 3, 1]}, "lift", "private_table"),
    ({}, "crypten", "private_table"),
]


@pytest.mark.parametrize(("changes", "engine", "embeddings"), CASES)
def test_owners_send_what_is_estimated(
    tmp_path: Path, data_dir: Path, changes: dict[str, Any], engine: str, embeddings: str
) -> None:
    """Set-up, offline part, online part and rounds are compared with what the channels of a real run counted."""
    folder = save_student(tmp_path / "student", data_dir, **changes)
    public, n_batches, ends = load_public_model(folder, embeddings), 2, memory_pair(20)
    inputs, _ = batch_of(folder, data_dir)
    *_, plan, online = run_private(folder, inputs, engine=engine, public=public, n_batches=n_batches, ends=ends)
    cost = estimate_batch(engine, public, inputs.shape)
    stated = cost.rounds, cost.bytes_to_data_owner, cost.bytes_to_model_owner
    assert (online.rounds, online.bytes_received, online.bytes_sent) == stated
    assert cost.dealer_bytes == dealer_bytes(request for segment in plan for request in segment)
    # The reference engine's owners both send a key at set-up.
    setup_bytes_to_model_owner = cost.setup_bytes if engine == "crypten" else 0
    offline_and_online = cost.offline_bytes_to_model_owner + cost.bytes_to_model_owner
    assert ends[0].counters.bytes_received == setup_bytes_to_model_owner + n_batches * offline_and_online
    assert ends[1].counters.bytes_received == cost.setup_bytes + n_batches * cost.bytes_to_data_owner


@pytest.mark.parametrize("changes", [{}, {"strides": [1, 3]}, {"precision": "compact", "weight_bits": 8}])
def test_a_layer_takes_14_rounds_and_the_head_with_its_guard_2(
    tmp_path: Path, data_dir: Path, changes: dict[str, Any]
) -> None:
    """The pooler's map, tanh, the guard and the last map ride on openings that are there anyway."""
    public = load_public_model(save_student(tmp_path / "student", data_dir, **changes), "public_table")
    layers = public.config.num_hidden_layers
    for shape in (BatchShape(1, 4), BatchShape(3, 32)):
        assert estimate_batch("lift", public, shape).rounds == 14 * layers + 2


@pytest.mark.parametrize("shape", [BatchShape(1, 2), BatchShape(1, 32), BatchShape(5, 7)])
def test_the_plan_deals_what_is_estimated(student: Path, shape: BatchShape) -> None:
    for embeddings in ("private_table", "public_table"):
        public = load_public_model(student, embeddings)
        engine = create_engine("lift", rank=1, public=public, channel=None, weights=None)
        planned = dealer_bytes(request for segment in engine.plan(shape) for request in segment)
        assert engine.cost(shape).dealer_bytes == planned
