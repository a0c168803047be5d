"""The cost of a batch on the engine `lift`: the sum of what the protocols of a pass cost, in the order of the pass.

The order is that of `bert.py` and `attention.py`. `tests/engines/test_cost.py` compares the sum with what owners send
in real runs, and with the pass's own plan of correlations.

The abbreviations of shapes are those of `bert.py`.
"""

import math

from mpcformer.approximations import softmax_form
from mpcformer.approximations.forms import SquaredScores
from mpcformer.engines.base import BatchShape, PublicModel
from mpcformer.engines.lift.attention import log_keys
from mpcformer.engines.lift.maps import dense_use
from mpcformer.engines.lift.positions import positions
from mpcformer.engines.lift.range_check import guard_bits
from mpcformer.engines.lift.reveal import zero_test_half
from mpcformer.engines.lift.scales import fixed_point as fp
from mpcformer.engines.lift.scales.model import LiftScales
from mpcformer.engines.lift.scales.norms import Norm
from mpcformer.engines.lift.scales.rows import (
    LayerScales,
    row_bits,
    row_function,
    score_lift,
    score_numerators,
    softmax_exponential,
    softmax_functions,
)
from mpcformer.engines.lift.weights import TABLE_BITS, attention_parts, weight_shapes
from mpcformer.protocols import guard, lifted, linear, matmul, piecewise, row_lookup, sealed, table, zero_test
from mpcformer.protocols.cost import ProtocolCost, Step, dealt, message
from mpcformer.protocols.party import DATA_OWNER, MODEL_OWNER, half_bytes

NOTHING, PAUSE = ProtocolCost(), ProtocolCost((Step(),))


class BatchCost:
    """Adds up the protocols of one batch.

    Args:
        public: what both owners know of the model.
        scales: the public numbers derived from it.
        shape: the batch.
    """

    def __init__(self, public: PublicModel, scales: LiftScales, shape: BatchShape) -> None:
        self._config, self._embeddings = public.config, public.embeddings
        self._scales, self._rings, self._shape = scales, scales.rings, shape
        self._weights = weight_shapes(self._config, public.embeddings)
        # The groups that the range guard looks at in the end: (rows, bits).
        self._guarded: list[tuple[int, int]] = []

    def total(self) -> ProtocolCost:
        """Return the cost of the batch, and of the session's set-up.

        Raises:
            RangeError: the ring does not carry so many positions, see `row_bits`.
        """
        self._guarded = []
        cost = self._setup() + self._first_rows()
        for index in range(self._config.num_hidden_layers):
            cost = cost + self._layer(index)
        return cost + self._last_rows() + self._reveal()

    def _last_rows(self) -> ProtocolCost:
        """Return the cost from the last stream's sums of squares to what the classifier takes, with the guard.

        Each of the guard's openings goes along with one of the head's, if there is one.
        """
        norm, head = self._scales.layers[-1].output_norm, self._scales.head
        at = positions(self._config, self._config.num_hidden_layers - 1, self._shape.seq_len)
        rows = self._shape.batch_size * at.n_kept, self._config.hidden_size
        self._guard_rows(norm, rows[0])
        step = guard.step_cost(self._guarded)
        found = step if norm.function is None else step | table.cost(norm.function, rows[0])
        factor = step if norm.function is None else step | lifted.factor_cost(rows)
        marks = dealt(*guard.requests(self._guarded))
        if head.dense is None:
            return found + factor + step + marks
        product = lifted.cost(dense_use(norm), rows, head.dense.bits, ahead=True)
        if head.dense.table is not None:
            activation = table.cost(head.dense.table, math.prod(rows))
        else:
            assert head.dense.function is not None
            activation = head.dense.function.cost(rows)
        return found + self._maps(["pooler"], rows[0]) + factor + product + (step | activation) + marks

    def _setup(self) -> ProtocolCost:
        """Return the cost of the masked weights and, with public tables, of the tables themselves."""
        cost = NOTHING
        for name, shape in self._weights.items():
            cost = cost + linear.setup_cost([shape], self._scales.weight_bits(name))
        if self._embeddings == "public_table":
            rows = self._config.vocab_size + self._config.type_vocab_size + self._config.max_position_embeddings
            cost = cost + ProtocolCost(setup_bytes=half_bytes(((rows, self._config.embedding_size), TABLE_BITS)))
        return cost

    def _maps(self, names: list[str], rows: int) -> ProtocolCost:
        """Return the cost of the linear maps of one input with so many rows."""
        widths = [self._scales.weight_bits(name) for name in names]
        return linear.cost(rows, [self._weights[name] for name in names], widths)

    def _first_rows(self) -> ProtocolCost:
        """Return the cost of the normalised embeddings."""
        if self._embeddings == "public_table":
            return NOTHING
        rows = self._shape.batch_size * self._shape.seq_len
        stream, norm = (rows, self._config.embedding_size), self._scales.embedding_norm
        wanted = rows, self._config.type_vocab_size, self._weights["embeddings"]
        if not row_lookup.is_cheaper(*wanted):
            return self._maps(["embeddings"], rows) + self._norm(norm, stream)
        # The model owner's half of the opening comes with the answers, and the data owner's half follows.
        half = stream, norm.stream.bits
        looked_up = (row_lookup.cost(*wanted) | (PAUSE + message(DATA_OWNER, half))) + message(MODEL_OWNER, half)
        return looked_up + dealt(lifted.request(norm.op, *half, norm.stream.lift)) + self._normalised(norm, stream)

    def _norm(self, norm: Norm, stream: tuple[int, int]) -> ProtocolCost:
        """Return the cost of a LayerNorm with the opening of its stream after a linear map."""
        return lifted.cost(norm.op, stream, norm.stream.bits, norm.stream.lift, ahead=True) + self._normalised(
            norm, stream
        )

    def _normalised(self, norm: Norm, stream: tuple[int, int]) -> ProtocolCost:
        """Return the cost of a LayerNorm after the opening of its stream (rows, H)."""
        self._guard_rows(norm, stream[0])
        if norm.function is None:
            return NOTHING
        return table.cost(norm.function, stream[0]) + lifted.factor_cost(stream)

    def _guard_rows(self, norm: Norm, n_rows: int) -> None:
        """Count the rows of a LayerNorm among those that the guard looks at."""
        bits = norm.guard_bits if norm.function is None else guard_bits(norm.function.guard_bits, norm.stream.lift)
        self._guarded.append((n_rows, bits))

    def _layer(self, index: int) -> ProtocolCost:
        name, layer = f"layer.{index}", self._scales.layers[index]
        at, n_batch = positions(self._config, index, self._shape.seq_len), self._shape.batch_size
        n_keys, n_query = at.n, at.n_kept
        heads, size = (n_batch, self._config.num_attention_heads), self._config.head_size
        query, key, value = (*heads, n_query, size), (*heads, n_keys, size), (*heads, size, n_keys)
        rows, hidden = n_batch * n_query, self._config.hidden_size

        rings = self._rings
        cost = self._maps([f"{name}.{part}" for part in attention_parts(self._config, index)], n_batch * n_keys)
        opened = matmul.cost(query, key, rings.query_bits, ahead=True)
        cost = cost + (opened | lifted.cost("plain", value, rings.value_bits, rings.value_lift, ahead=True))
        # The values' half of this product is opened with the scores, which changes no round.
        context = matmul.cost((*heads, n_query, n_keys), value, rings.numerator_bits)
        cost = cost + self._attention(layer, (*heads, n_query, n_keys), query, context)
        cost = cost + self._maps([f"{name}.attention.output"], rows) + self._norm(layer.attention_norm, (rows, hidden))
        cost = (
            cost
            + self._maps([f"{name}.{part}" for part in ("inner", "residual", "mean")], rows)
            + self._activation(rows)
        )
        cost = cost + self._maps([f"{name}.outer"], rows)
        norm, stream = layer.output_norm, (rows, hidden)
        if index < self._config.num_hidden_layers - 1:
            return cost + self._norm(norm, stream)
        return cost + lifted.cost(norm.op, stream, norm.stream.bits, norm.stream.lift, ahead=True)

    def _attention(
        self, layer: LayerScales, scores: tuple[int, ...], attended: tuple[int, ...], context: ProtocolCost
    ) -> ProtocolCost:
        """Return the cost from the scores' opening to the attended rows.

        Args:
            layer: the scales of the layer.
            scores, attended: shapes (B, A, Q, L) and (B, A, Q, D).
            context: the cost of the numerators' product with the values.
        """
        rings, n_rows, log_n = layer.rings, math.prod(scores[:-1]), log_keys(scores[-1])
        if layer.squarings:
            return self._powers(layer, scores, n_rows) + self._divided(layer, n_rows, log_n, attended, context)
        kind = score_numerators(softmax_form(self._config.softmax), layer.score_shift)
        if isinstance(kind, SquaredScores):
            cost = lifted.cost("square", scores, rings.score_bits, score_lift(layer, log_n))
        else:
            cost = piecewise.cost(kind, scores)
        if not layer.divided:
            self._guarded.append((n_rows, row_bits(layer, log_n)))
            return cost + context + lifted.cost("plain", attended, rings.context_bits)
        return cost + self._divided(layer, n_rows, log_n, attended, context)

    def _divided(
        self, layer: LayerScales, n_rows: int, log_n: int, attended: tuple[int, ...], context: ProtocolCost
    ) -> ProtocolCost:
        """Return the cost of the numerators' product with the values, and of the division of its rows."""
        rings, function = layer.rings, row_function(layer, log_n)
        if function.guard is not None:
            self._guarded.append((n_rows, guard_bits(function.guard_bits, score_lift(layer, log_n))))
        divided = lifted.cost("scale", attended, rings.context_bits, rings.context_lift)
        return (context | table.cost(function, n_rows)) + (divided | lifted.factor_cost(attended))

    def _powers(self, layer: LayerScales, scores: tuple[int, ...], n_rows: int) -> ProtocolCost:
        """Return the cost of the exact softmax's exponential, and of the divisions and squares that follow it."""
        first, middle = softmax_functions(layer, log_keys(scores[-1]))
        scale = lifted.cost("scale", scores, fp.POWER_BITS)
        cost = softmax_exponential(layer).cost(scores)
        for step in range(layer.squarings):
            bits = fp.LAST_POWER_BITS if step == layer.squarings - 1 else fp.POWER_BITS
            divided = (scale | table.cost(middle if step else first, n_rows)) + lifted.factor_cost(scores)
            cost = cost + divided + lifted.cost("square", scores, bits)
        return cost

    def _activation(self, rows: int) -> ProtocolCost:
        """Return the cost of the form of GeLU with the opening of its argument."""
        shape, activation = (rows, self._config.intermediate_size), self._scales.activation
        if activation.function is None:
            return lifted.cost("square", shape, activation.bits, activation.lift, ahead=True)
        return activation.function.cost(shape, ahead=True)

    def _reveal(self) -> ProtocolCost:
        """Return the cost of the zero test and the classifier, which share messages."""
        n_batch = self._shape.batch_size
        rows = self._shape.seq_len if self._config.pooling == "each" else 1
        shape, head, sums = self._weights["classifier"], self._scales.head, zero_test_half(n_batch)
        maps = [shape, (shape[0], 1)] if head.is_tagged else [shape]
        asked = message(MODEL_OWNER, sums) | linear.cost(n_batch * rows, maps, [head.bits] * len(maps))
        told = sealed.shapes(n_batch, rows * self._config.num_labels, head.wire_bits)
        return asked + message(DATA_OWNER, sums, *told) + dealt(zero_test.request(n_batch))
