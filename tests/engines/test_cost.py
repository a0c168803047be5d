"""Estimates equal the sum of what the protocols of a pass cost, and what the owners of a real run send."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mpcformer.channel import memory_pair
from mpcformer.engines.base import BatchShape, PublicModel, load_public_model
from mpcformer.engines.lift import fixed_point as fp
from mpcformer.engines.lift import reveal
from mpcformer.engines.lift.engine import TABLE_BITS, engine_constants
from mpcformer.engines.lift.norms import STREAM_BITS, Norm
from mpcformer.engines.lift.weights import weight_bits, weight_shapes
from mpcformer.engines.registry import estimate_batch
from mpcformer.protocols import guard, lifted, linear, matmul, piecewise, row_lookup, table, zero_test
from mpcformer.protocols.cost import ProtocolCost, Step, dealt, message, opening
from mpcformer.protocols.party import DATA_OWNER, MODEL_OWNER, half_bytes
from tests.pair import batch_of, run_private
from tests.tiny import save_student

NOTHING, PAUSE = ProtocolCost(), ProtocolCost((Step(),))


@dataclass
class Pass:
    """Adds up the protocols of one batch in the order in which they run.

    Attributes:
        guarded: what the range guard looks at in the end: (rows, bits).
    """

    public: PublicModel
    shape: BatchShape
    guarded: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.config: Any = self.public.config
        self.constants = engine_constants(self.public)
        self.weights = weight_shapes(self.config, self.public.embeddings)
        self.log_keys = max(1, math.ceil(math.log2(self.shape.seq_len)))

    def total(self) -> ProtocolCost:
        cost = self.setup() + self.embeddings()
        for index in range(self.config.num_hidden_layers):
            cost = cost + self.layer(index)
        n_batch, hidden = self.shape.batch_size, self.config.hidden_size
        pooled = self.maps(["pooler"], n_batch)
        clamped = piecewise.cost(self.constants.tanh_clamp, (n_batch, hidden), ahead=True)
        cost = cost + pooled + clamped + table.cost(self.constants.tanh, n_batch * hidden)
        return cost + guard.cost(self.guarded) + self.reveal()

    def setup(self) -> ProtocolCost:
        cost = NOTHING
        for name, shape in self.weights.items():
            cost = cost + linear.setup_cost([shape], weight_bits(name))
        if self.public.embeddings == "public_table":
            rows = self.config.vocab_size + self.config.type_vocab_size + self.config.max_position_embeddings
            cost = cost + ProtocolCost(setup_bytes=half_bytes(((rows, self.config.hidden_size), TABLE_BITS)))
        return cost

    def maps(self, names: list[str], rows: int) -> ProtocolCost:
        return linear.cost(rows, [self.weights[name] for name in names], weight_bits(names[0]))

    def embeddings(self) -> ProtocolCost:
        if self.public.embeddings == "public_table":
            return NOTHING
        rows = self.shape.batch_size * self.shape.seq_len
        stream, norm = (rows, self.config.hidden_size), self.constants.embedding_norm
        wanted = rows, self.config.type_vocab_size, self.weights["embeddings"]
        if not row_lookup.is_cheaper(*wanted):
            return self.maps(["embeddings"], rows) + self.norm(norm, stream)
        # The model owner's half comes with the answers; the data owner's half follows.
        half = stream, STREAM_BITS
        looked_up = (row_lookup.cost(*wanted) | (PAUSE + message(DATA_OWNER, half))) + message(MODEL_OWNER, half)
        return looked_up + dealt(lifted.request(norm.op, *half)) + self.normalised(norm, stream)

    def norm(self, norm: Norm, stream: tuple[int, int]) -> ProtocolCost:
        return lifted.cost(norm.op, stream, STREAM_BITS, ahead=True) + self.normalised(norm, stream)

    def normalised(self, norm: Norm, stream: tuple[int, int]) -> ProtocolCost:
        if norm.function is None:
            self.guarded.append((stream[0], norm.guard_bits))
            return NOTHING
        self.guarded.append((stream[0], norm.function.guard_bits))
        return table.cost(norm.function, stream[0]) + lifted.factor_cost(stream)

    def layer(self, index: int) -> ProtocolCost:
        name, layer = f"layer.{index}", self.constants.layers[index]
        n_batch, n_keys = self.shape.batch_size, self.shape.seq_len
        n_query = 1 if index == self.config.num_hidden_layers - 1 else n_keys
        heads, size = (n_batch, self.config.num_attention_heads), self.config.head_size
        query, key, value = (*heads, n_query, size), (*heads, n_keys, size), (*heads, size, n_keys)
        rows, hidden = n_batch * n_query, self.config.hidden_size

        cost = self.maps([f"{name}.attention", f"{name}.attention.residual"], n_batch * n_keys)
        opened = matmul.cost(query, key, fp.QUERY_BITS, ahead=True)
        cost = cost + (opened | lifted.cost("plain", value, fp.VALUE_BITS, ahead=True))
        # The values' half of this product is opened with the scores, which changes no round.
        context = matmul.cost((*heads, n_query, n_keys), value, fp.NUMERATOR_BITS)
        cost = cost + self.attention(layer, (*heads, n_query, n_keys), query, context)
        cost = cost + self.maps([f"{name}.attention.output"], rows) + self.norm(layer.attention_norm, (rows, hidden))
        cost = cost + self.maps([f"{name}.inner", f"{name}.residual"], rows) + self.activation(rows)
        return cost + self.maps([f"{name}.outer"], rows) + self.norm(layer.output_norm, (rows, hidden))

    def attention(
        self, layer: fp.Layer, scores: tuple[int, ...], attended: tuple[int, ...], context: ProtocolCost
    ) -> ProtocolCost:
        n_rows, softmax = math.prod(scores[:-1]), self.config.softmax
        lifted_context = lifted.cost("plain", attended, fp.CONTEXT_BITS)
        if softmax == "softmax":
            return self.powers(layer, scores, n_rows) + context + lifted_context
        square = lifted.cost("square", scores, fp.SCORE_BITS)
        cost = piecewise.cost(piecewise.relu(fp.SCORE_BITS), scores) if softmax == "2relu" else square
        if not layer.divided:
            self.guarded.append((n_rows, fp.row_bits(layer, self.log_keys)))
            return cost + context + lifted_context
        function = fp.row_function(layer, self.log_keys)
        self.guarded.append((n_rows, function.guard_bits))
        divided = lifted.cost("scale", attended, fp.CONTEXT_BITS) | lifted.factor_cost(attended)
        return cost + (context | table.cost(function, n_rows)) + divided

    def powers(self, layer: fp.Layer, scores: tuple[int, ...], n_rows: int) -> ProtocolCost:
        first, middle, last = fp.softmax_functions(layer, self.log_keys)
        square, scale = (lifted.cost(use, scores, fp.POWER_BITS) for use in ("square", "scale"))
        cost = piecewise.cost(fp.softmax_base(layer)[1], scores) + square + square
        functions = [first, *[middle] * (layer.squarings - 3), last]
        for n, function in enumerate(functions):
            again = square if n else NOTHING
            cost = cost + again + (scale | table.cost(function, n_rows)) + lifted.factor_cost(scores)
        return cost

    def activation(self, rows: int) -> ProtocolCost:
        shape, activation = (rows, self.config.intermediate_size), self.constants.activation
        if activation.function is None:
            return lifted.cost("square", shape, activation.bits, ahead=True)
        return piecewise.cost(activation.function, shape, ahead=True)

    def reveal(self) -> ProtocolCost:
        """The zero test and the classifier's map share messages, and the model owner sends its verdict last."""
        n_batch, word = self.shape.batch_size, reveal.ONE_WORD
        logits = (n_batch, self.config.num_labels), reveal.LOGIT_WIRE_BITS
        opened = opening(word) | self.maps(["classifier"], n_batch)
        return opened + message(MODEL_OWNER, word) + message(DATA_OWNER, word, logits) + dealt(zero_test.request())


@pytest.mark.parametrize(
    ("changes", "embeddings"),
    [
        *(({"gelu": gelu}, "private_table") for gelu in ("quad", "relu", "gelu")),
        *(({"softmax": softmax}, "private_table") for softmax in ("2quad-const", "2relu", "softmax")),
        ({"constant_norms": ["attention"]}, "private_table"),
        ({"softmax": "2quad-const", "constant_norms": ["all"]}, "public_table"),
        ({"head_size": 3, "num_attention_heads": 2, "num_hidden_layers": 3}, "public_table"),
        ({"vocab_size": 7000}, "private_table"),
    ],
)
def test_the_estimate_is_the_sum_of_the_protocols(
    tmp_path: Path, data_dir: Path, changes: dict[str, Any], embeddings: str
) -> None:
    public = load_public_model(save_student(tmp_path / "student", data_dir, **changes), embeddings)
    shape = BatchShape(3, 16)
    summed, estimate = Pass(public, shape).total(), estimate_batch("lift", public, shape)
    for name in vars(estimate):
        assert getattr(summed, name) == getattr(estimate, name), name


@pytest.mark.parametrize(
    ("engine", "embeddings"), [("lift", "private_table"), ("lift", "public_table"), ("crypten", "private_table")]
)
def test_owners_send_what_is_estimated(student: Path, data_dir: Path, engine: str, embeddings: str) -> None:
    """The bytes of set-up, offline part and online part are compared with what the channels of a real run counted."""
    public, n_batches, ends = load_public_model(student, embeddings), 2, memory_pair(20)
    inputs, _ = batch_of(student, data_dir)
    run_private(student, inputs, engine=engine, public=public, n_batches=n_batches, ends=ends)
    cost = estimate_batch(engine, public, inputs.shape)
    # The reference engine's owners both send a key at set-up.
    setup_bytes_to_model_owner = cost.setup_bytes if engine == "crypten" else 0
    offline_and_online = cost.offline_bytes_to_model_owner + cost.bytes_to_model_owner
    assert ends[0].counters.bytes_received == setup_bytes_to_model_owner + n_batches * offline_and_online
    assert ends[1].counters.bytes_received == cost.setup_bytes + n_batches * cost.bytes_to_data_owner
