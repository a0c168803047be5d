"""BERT on shares with owner-known weights: one batch's pass through the `mpcformer` suite, both owners in one text.

Every linear map is followed by an opening. The data owner's share of the map's result does not depend on the input, so
its half of that opening is computed and sent before (`offline`); the online part of a map is one message with the
masked input, one product at the model owner, and one message back. Between two openings all is local. Rows looked up in
a large table (private_words.py) are the exception: there the data owner's half goes online, and last.

Shapes at the line: B sentences, L positions, Q query positions (1 in the last layer: only [CLS] is needed after it),
A heads, D head size, H hidden, I intermediate, C classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mpcformer.correlations import Request, sketch
from mpcformer.errors import ProtocolError
from mpcformer.inference import fixed_point as fp
from mpcformer.inference.norms import NORMAL_SCALE, STREAM_BITS, Norm
from mpcformer.inference.owned_weights import OwnedWeights, weight_bits, weight_shapes
from mpcformer.inference.private_attention import Heads, PrivateAttention
from mpcformer.inference.private_reveal import reveal
from mpcformer.inference.private_words import PrivateWords
from mpcformer.inference.range_check import RangeCheck
from mpcformer.inference.stopwatch import Stopwatch
from mpcformer.protocols import lifted, linear, matmul, row_lookup
from mpcformer.protocols.lifted import Mask, Opened
from mpcformer.protocols.party import DATA_OWNER, MODEL_OWNER, Half, Party, add_halves, combine, shift
from mpcformer.protocols.piecewise import Evaluation
from mpcformer.protocols.table import Function
from mpcformer.ring.packing import packed_bytes, unpack

Tensors = list[list[torch.Tensor]]
Halves = Callable[[list[torch.Tensor], Tensors], list[Half]]


@dataclass
class Map:
    """A linear map (or several of one input) and the opening after it."""

    weights: list[str]
    rows: int
    following: list[Request]
    halves: Halves


@dataclass
class Known:
    """The data owner's half of an opening, sent ahead; and there, -A of the map, to be added to its input."""

    message: torch.Tensor
    shapes: list[tuple[tuple[int, ...], int]]
    minus_mask: torch.Tensor | None = None


class PrivateBert:
    """One batch.

    Args:
        party: this owner.
        config, constants: public.
        batch_size, seq_len: B and L.
        mask: public int64 (B, L).
        owned: the model owner's weights, else None.
        masked: F of every weight at the data owner, else None.
        embeddings: private_table, or public_table: then the data owner normalises the first rows itself.
        salt: of the places of words in this session, see mpcformer/correlations/row_lookup.py.
        table_mask: the private table's, at the model owner.
    """

    def __init__(
        self,
        party: Party,
        config: Any,
        constants: fp.Constants,
        mask: torch.Tensor,
        owned: OwnedWeights | None,
        masked: dict[str, torch.Tensor] | None,
        embeddings: str = "private_table",
        salt: int = 0,
        table_mask: torch.Tensor | None = None,
    ) -> None:
        self._party, self._config, self._constants, self._mask = party, config, constants, mask
        self._owned, self._masked = owned, masked
        self._n_batch, self._n_positions = mask.shape
        self._n_heads = config.num_attention_heads
        self._embeddings = embeddings
        self._shapes = weight_shapes(config, embeddings)
        self._log_keys = max(1, math.ceil(math.log2(self._n_positions)))
        self.watch = Stopwatch()
        self._known: dict[str, Known] = {}
        # What the residual of the block at work adds, aligned to RESIDUAL_SCALE + INPUT_SCALE: share and mean column.
        self._residual: tuple[torch.Tensor, torch.Tensor] | None = None
        self._check = RangeCheck(party)
        self._attention = PrivateAttention(party, config.softmax, mask, self._log_keys, self._check, self.watch)
        self._x = torch.empty(0, device=mask.device)
        self._words: PrivateWords | None = None
        if embeddings == "private_table":
            wanted = mask.numel(), config.type_vocab_size, self._shapes["embeddings"]
            if row_lookup.is_cheaper(*wanted):
                request = row_lookup.request("embeddings", *wanted, salt)
                self._words = PrivateWords(party, request, owned, table_mask, masked, mask.device.type == "meta")

    # ---- the plan: which maps there are, in order -----------------------------------------------------------------

    @property
    def n_segments(self) -> int:
        """Embeddings with the first layer, each further layer, the head with the last."""
        return int(self._config.num_hidden_layers)

    def maps(self, segment: int) -> list[str]:
        """The names of a segment's maps with an opening after them, of which the data owner knows its half ahead."""
        layer = f"layer.{segment}"
        names = [f"{layer}.attention", f"{layer}.attention.output", f"{layer}.inner", f"{layer}.outer"]
        head = ["pooler"] if segment == self.n_segments - 1 else []
        one_hot = segment == 0 and self._embeddings == "private_table" and self._words is None
        return [*(["embeddings"] if one_hot else []), *names, *head]

    def _map(self, name: str) -> Map:
        n_rows, hidden = self._n_batch * self._n_positions, self._config.hidden_size
        if name == "embeddings":
            before = self._constants.embedding_norm
            lift = lifted.request(before.op, (n_rows, hidden), STREAM_BITS)
            return Map([name], n_rows, [lift], lambda z, t: [self._lifted_half(z[0], before.scale, before, t[0])])
        if name == "pooler":
            function, product = self._constants.tanh_clamp, fp.INPUT_SCALE + fp.POOLER_WEIGHT_SCALE

            def pooled(z: list[torch.Tensor], t: Tensors) -> list[Half]:
                share = shift(z[0], product - fp.TANH_SCALE, self._party.rank)
                return [Evaluation(function, t[0], self._party.rank).half(share)]

            return Map([name], self._n_batch, [function.request((self._n_batch, hidden))], pooled)
        index = int(name.split(".")[1])
        constants, n_query = self._constants.layers[index], self._n_queries(index)
        rows = self._n_batch * n_query
        if name.endswith(".attention"):
            return Map(
                [name, f"{name}.residual"],
                n_rows,
                self._attention_requests(n_query),
                lambda z, t: self._attention_halves(z, t, n_query),
            )
        if name.endswith(".inner"):
            activation, shape = self._constants.activation, (rows, self._config.intermediate_size)
            if activation.function is None:
                following = lifted.request("square", shape, activation.bits)
            else:
                following = activation.function.request(shape)
            return Map([name, f"layer.{index}.residual"], rows, [following], self._inner_halves)
        output = name.endswith(".attention.output")
        norm = constants.attention_norm if output else constants.output_norm
        product = fp.ATTENDED_SCALE + fp.OUTPUT_WEIGHT_SCALE if output else fp.OUTER_SCALE
        lift = lifted.request(norm.op, (rows, hidden), STREAM_BITS)
        return Map([name], rows, [lift], lambda z, t: [self._stream_half(z[0], product, norm, t[0])])

    def _n_queries(self, index: int) -> int:
        return 1 if index == self.n_segments - 1 else self._n_positions

    # ---- halves of the openings after maps: the same text at both owners, offline at one, online at the other -------

    def _lifted_half(self, z: torch.Tensor, scale: int, norm: Norm, tensors: list[torch.Tensor]) -> Half:
        stream = shift(z, scale - norm.scale, self._party.rank)
        return Mask(tensors, STREAM_BITS, norm.op).half(stream, self._party.rank)

    def _stream_half(self, z: torch.Tensor, scale: int, norm: Norm, tensors: list[torch.Tensor]) -> Half:
        """The residual stream: map plus residual, centred, at the next LayerNorm's scale."""
        if self._residual is None:
            raise ProtocolError("a residual is used before it is known")
        (residual, mean), self._residual = self._residual, None
        rank = self._party.rank
        own = fp.INPUT_SCALE + fp.RESIDUAL_SCALE
        total = z + shift(residual, own - scale, rank)
        total = total - shift(mean, fp.INPUT_SCALE + fp.MEAN_SCALE - scale, rank)
        return self._lifted_half(total, scale, norm, tensors)

    def _attention_requests(self, n_query: int) -> list[Request]:
        heads, size = (self._n_batch, self._n_heads), self._config.head_size
        query, key = (*heads, n_query, size), (*heads, self._n_positions, size)
        value, scores = (*heads, size, self._n_positions), (*heads, n_query, self._n_positions)
        return [
            matmul.request(query, key, fp.QUERY_BITS),
            lifted.request("plain", value, fp.VALUE_BITS),
            matmul.request(scores, value, fp.NUMERATOR_BITS),
        ]

    def _attention_halves(self, z: list[torch.Tensor], tensors: Tensors, n_query: int) -> list[Half]:
        width, rank = self._config.attention_size, self._party.rank
        product = fp.INPUT_SCALE + fp.QUERY_WEIGHT_SCALE
        value_product = fp.INPUT_SCALE + fp.VALUE_WEIGHT_SCALE

        def heads(at: int) -> torch.Tensor:  # (B, A, L, D)
            part = z[0][:, at : at + width].reshape(self._n_batch, self._n_positions, self._n_heads, -1)
            return part.transpose(1, 2)

        self._keep_residual(z[1], z[0][:, -1:], n_query)
        (a, b, _), value_mask, _ = tensors
        query = shift(heads(0)[:, :, :n_query], product - fp.QUERY_SCALE, rank)
        key = shift(heads(width), product - fp.QUERY_SCALE, rank)
        value = shift(heads(2 * width).transpose(2, 3), value_product - fp.VALUE_SCALE, rank)
        return [
            matmul.half(query, a, fp.QUERY_BITS),
            matmul.half(key, b, fp.QUERY_BITS),
            Mask(value_mask, fp.VALUE_BITS, "plain").half(value, rank),
        ]

    def _keep_residual(self, residual: torch.Tensor, mean: torch.Tensor, n_query: int) -> None:
        def rows(x: torch.Tensor) -> torch.Tensor:
            return x.view(self._n_batch, -1, x.size(-1))[:, :n_query].reshape(-1, x.size(-1))

        self._residual = rows(residual), rows(mean)

    def _inner_halves(self, z: list[torch.Tensor], tensors: Tensors) -> list[Half]:
        rank, product = self._party.rank, fp.INPUT_SCALE + fp.INNER_WEIGHT_SCALE
        self._residual = z[1], z[0][:, -1:]
        activation = self._constants.activation
        inner = shift(z[0][:, :-1], product - activation.scale, rank)
        if activation.function is None:
            return [Mask(tensors[0], activation.bits, "square").half(inner, rank)]
        return [Evaluation(activation.function, tensors[0], rank).half(inner)]

    # ---- offline ----------------------------------------------------------------------------------------------------

    def offline(self, segment: int, starts: dict[str, int]) -> None:
        """The data owner's halves of the segment's openings, sent ahead. `starts`: operation index of each map."""
        if segment == 0 and self._words is not None:
            self._words.offline(starts["embeddings"])
        for name in self.maps(segment):
            item = self._map(name)
            if self._party.rank == DATA_OWNER:
                if self._masked is None:
                    raise ProtocolError("the masked weights have not arrived")
                bits = weight_bits(name)
                requests = [linear.request(item.weights, item.rows, self._shapes, bits), *item.following]
                dealt = [self._party.store.preview(starts[name] + i, r).shares for i, r in enumerate(requests)]
                z = linear.data_owner_share([self._masked[weight] for weight in item.weights], dealt[0])
                halves = item.halves(z, dealt[1:])
                shapes = [(tuple(x.shape), width) for x, width in halves]
                self._known[name] = Known(self._party.send(halves), shapes, dealt[0][0].neg_())
            else:
                shapes = self._shapes_of_halves(item)
                self._known[name] = Known(self._party.receive(shapes), shapes)

    def _shapes_of_halves(self, item: Map) -> list[tuple[tuple[int, ...], int]]:
        dealt = [sketch(request, MODEL_OWNER).shares for request in item.following]
        z = [torch.empty((item.rows, self._shapes[w][-1]), dtype=torch.int64, device="meta") for w in item.weights]
        before, self._residual = self._residual, self._residual
        if self._residual is None:
            hidden = self._config.hidden_size
            empty = torch.empty((item.rows, hidden), dtype=torch.int64, device="meta")
            self._residual = empty, empty[:, :1]
        elif self._residual[0].device.type != "meta":
            empty = torch.empty(self._residual[0].shape, dtype=torch.int64, device="meta")
            self._residual = empty, empty[:, :1]
        halves = item.halves(z, dealt)
        self._residual = before
        return [(tuple(x.shape), bits) for x, bits in halves]

    # ---- online -----------------------------------------------------------------------------------------------------

    def _apply(self, name: str, x: torch.Tensor) -> tuple[list[torch.Tensor], Tensors]:
        """A map of the shared x (rows, in), and the opening after it: what was opened, and its correlations.

        For the embeddings x is, at the data owner, the columns (rows, 2) that hold a one.
        """
        item, party, bits = self._map(name), self._party, weight_bits(name)
        request = linear.request(item.weights, item.rows, self._shapes, bits)
        if party.rank == DATA_OWNER:
            known = self._known.pop(name) if name in self._known else self._rehearsed(item)
            party.store.skip(request)
            masked_input = known.minus_mask
            if masked_input is None:
                raise ProtocolError("a map is used online before its offline part")
            if name == "embeddings":
                masked_input.scatter_add_(1, x, torch.ones_like(x))
            else:
                masked_input += x
            party.send([(masked_input, bits)])
            following = [party.take(request) for request in item.following]
            return combine(known.message, party.receive(known.shapes), known.shapes), following
        tensors, following = party.take(request), [party.take(request) for request in item.following]
        shape = (item.rows, self._shapes[name][0])
        masked = unpack(party.receive([(shape, bits)]), shape, bits)
        z = linear.model_owner_share(x, masked, self._weights(item.weights), tensors)
        if self._owned is not None:
            bias = self._owned.biases[name]
            z[0] += bias if name != "embeddings" else bias[: self._n_positions].repeat(self._n_batch, 1)
        halves = item.halves(z, following)
        message = party.send(halves)
        theirs = self._known.pop(name).message if name in self._known else torch.empty_like(message)
        return add_halves(halves, theirs), following

    def _look_up(self, words: PrivateWords, columns: torch.Tensor) -> tuple[list[torch.Tensor], Tensors]:
        """What `_apply` does for the embeddings, of a large table; the data owner's half goes last."""
        item, party = self._map("embeddings"), self._party
        words.take()
        shapes, following = self._shapes_of_halves(item), [party.take(request) for request in item.following]
        if party.rank == DATA_OWNER:
            z, theirs = words.ask(columns, shapes)
            halves = item.halves([z], following)
            party.send(halves)
            return add_halves(halves, theirs), following
        answers, z = words.answer()
        if self._owned is not None:
            z += self._owned.biases["embeddings"][: self._n_positions].repeat(self._n_batch, 1)
        halves = item.halves([z], following)
        party.send([answers, *halves])
        return add_halves(halves, party.receive(shapes)), following

    def _rehearsed(self, item: Map) -> Known:
        """For an estimate: what the offline part would have left."""
        if self._mask.device.type != "meta":
            raise ProtocolError("a map is used online before its offline part")
        shapes = self._shapes_of_halves(item)
        message = torch.empty(sum(packed_bytes(math.prod(s), b) for s, b in shapes), dtype=torch.uint8, device="meta")
        minus_mask = torch.empty((item.rows, self._shapes[item.weights[0]][0]), dtype=torch.int64, device="meta")
        return Known(message, shapes, minus_mask)

    def _weights(self, names: list[str]) -> list[torch.Tensor]:
        if self._owned is None:  # planning
            return [torch.empty(self._shapes[n], dtype=torch.int64, device="meta") for n in names]
        return [self._owned.weights[name] for name in names]

    def online(self, segment: int, first: torch.Tensor | None) -> torch.Tensor | None:
        """A segment of the pass; the last one's result is float32 (B, C) logits at the data owner.

        Args:
            segment: its number.
            first: at the data owner in the first segment: (B L, 2), the columns of the words' and the token types'
                ones; with public tables (B L, H), the normalised rows at INPUT_SCALE.

        Raises:
            RangeError: after the last segment, if anything left its range.
        """
        self.watch.start()
        if segment == 0 and self._embeddings == "public_table":
            rows = self._n_batch * self._n_positions
            self._x = first if first is not None else self._zeros(rows, self._config.hidden_size)
            self._check_first(first)
        elif segment == 0:
            if self._words is None:
                opened, tensors = self._apply("embeddings", first if first is not None else self._zeros(1, 1))
            else:
                opened, tensors = self._look_up(self._words, first if first is not None else self._zeros(1, 2))
            self.watch.lap("embedding")
            self._x = self._normalise(self._constants.embedding_norm, opened[0], tensors[0], self._mask.reshape(-1))
        self._layer(segment)
        if segment < self.n_segments - 1:
            return None
        opened, tensors = self._apply("pooler", self._x)
        self.watch.lap("linear")
        party = self._party
        clamped = Evaluation(self._constants.tanh_clamp, tensors[0], party.rank).evaluate(party, opened[0])
        lookup = self._check.lookup(self._constants.tanh, clamped.numel())
        arguments = party.open(lookup.halves(clamped.reshape(-1)))
        y = self._check.evaluate(lookup, arguments, torch.ones_like(arguments[0]))
        self.watch.lap("activation")
        mark = self._check.total()
        self.watch.lap("check")
        logits = reveal(party, y.view(self._n_batch, -1), mark, self._shapes["classifier"], self._owned, self._masked)
        self.watch.lap("linear")
        return logits

    def _check_first(self, rows: torch.Tensor | None) -> None:
        """The data owner's own rows after a constant LayerNorm: it sees by itself which are too long, and counts."""
        norm = self._constants.embedding_norm
        if norm.function is None and rows is not None:
            squares = (rows.double() * 2.0 ** (norm.scale - fp.INPUT_SCALE)).square().sum(-1)
            self._check.count((squares >= 2.0 ** (norm.guard_bits + 1)).long() * self._mask.reshape(-1))

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=self._mask.device)

    def _normalise(self, norm: Norm, c: torch.Tensor, tensors: list[torch.Tensor], real: torch.Tensor) -> torch.Tensor:
        """LayerNorm without gain and bias, of an opened and centred stream: (rows, H) at INPUT_SCALE."""
        party = self._party
        mask = Mask(tensors, STREAM_BITS, norm.op)
        opened = Opened(party, mask, c)
        squares = opened.sum_of_squares()  # (rows, 1), scale 2 norm.scale
        if norm.function is None:
            self._check.guard(norm.guard_bits, squares.reshape(-1), real)
            self.watch.lap("norm")
            return shift(opened.value(), norm.scale - fp.INPUT_SCALE, party.rank)
        factor = self._row_factor(norm.function, squares.reshape(-1), real)
        opened_factor = party.open([mask.factor_half(factor.view(-1, 1), party.rank)])[0]
        normal = shift(opened.times(opened_factor), NORMAL_SCALE - fp.INPUT_SCALE, party.rank)
        self.watch.lap("norm")
        return normal

    def _row_factor(self, function: Function, argument: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        lookup = self._check.lookup(function, argument.numel())
        self._check.guard(function.guard_bits, argument, real)
        return self._check.evaluate(lookup, self._party.open(lookup.halves(argument)), real)

    def _layer(self, index: int) -> None:
        name, constants, n_query = f"layer.{index}", self._constants.layers[index], self._n_queries(index)
        real = self._mask[:, :n_query].reshape(-1)
        (query, key, value), masks = self._apply(f"{name}.attention", self._x)
        self.watch.lap("linear")
        attended = self._attention.attend(Heads(query, key, value, *masks), constants)
        opened, tensors = self._apply(f"{name}.attention.output", attended)
        self.watch.lap("linear")
        x = self._normalise(constants.attention_norm, opened[0], tensors[0], real)
        opened, tensors = self._apply(f"{name}.inner", x)
        self.watch.lap("linear")
        activated = self._activate(opened[0], tensors[0])
        self.watch.lap("activation")
        opened, tensors = self._apply(f"{name}.outer", activated)
        self.watch.lap("linear")
        self._x = self._normalise(constants.output_norm, opened[0], tensors[0], real)

    def _activate(self, c: torch.Tensor, tensors: list[torch.Tensor]) -> torch.Tensor:
        """GeLU's form of the opened first map (rows, I), as the second map takes it."""
        party, activation = self._party, self._constants.activation
        if activation.function is None:
            inner = Opened(party, Mask(tensors, activation.bits, "square"), c)
            result = inner.square(offset=1 << activation.scale)
        else:
            result = Evaluation(activation.function, tensors, party.rank).evaluate(party, c)
        return shift(result, activation.result_shift, party.rank)
