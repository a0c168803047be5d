"""BERT on shares whose weights one owner knows: one batch's pass, both owners in one text.

Every linear map is followed by an opening. The data owner's share of the map's result does not depend on the input, so
its half of that opening is computed and sent before (ahead.py). The online part of a map (online_maps.py) is one
message with the masked input, one product at the model owner, and one message back. Between two openings all is local.

Letters in the shapes beside the code: B sentences, L positions, Q positions that a layer keeps (1 in the last layer,
after which only [CLS] is needed), A heads, D head size, H hidden, I intermediate, C classes.
"""

from collections.abc import Sequence
from typing import Any

import torch

from mpcformer.engines.base import Outcome
from mpcformer.engines.lift.ahead import Ahead
from mpcformer.engines.lift.attention import Heads, PrivateAttention, by_sentence
from mpcformer.engines.lift.maps import dense_use
from mpcformer.engines.lift.online_maps import OnlineMaps
from mpcformer.engines.lift.overflow import DENSE_BIAS
from mpcformer.engines.lift.positions import Positions
from mpcformer.engines.lift.range_check import RangeCheck
from mpcformer.engines.lift.reveal import Classifier, reveal
from mpcformer.engines.lift.scales.model import LiftScales
from mpcformer.engines.lift.scales.norms import Norm
from mpcformer.engines.lift.weights import OwnedWeights, weight_shapes
from mpcformer.engines.stopwatch import Stopwatch
from mpcformer.modeling.families.distances import distance_buckets
from mpcformer.protocols.lifted import Mask, Opened
from mpcformer.protocols.party import Party, computed, fused, shift
from mpcformer.ring.filed import Masked
from mpcformer.ring.packing import Operand


class PrivateBert:
    """The private pass of one batch.

    Args:
        party: this owner.
        config, constants: the public configuration and scales.
        mask: public int64 (B, L), 1 at real tokens.
        owned: the weights at the model owner, else None.
        masked: the masked weights at the data owner, else None.
        ahead: what is done without the text.
        embeddings: private_table or public_table; with public tables the data owner normalises the first rows itself.
        asked: bool (B,), which sentences are asked about; None for all.
        tag_keys: at the model owner, the keys (H,) of the tags of what enters the last map; else None.
    """

    def __init__(
        self,
        party: Party,
        config: Any,
        constants: LiftScales,
        mask: torch.Tensor,
        owned: OwnedWeights | None,
        masked: dict[str, Masked] | None,
        ahead: Ahead,
        embeddings: str = "private_table",
        asked: torch.Tensor | None = None,
        tag_keys: torch.Tensor | None = None,
    ) -> None:
        self._party, self._config, self._constants, self._mask = party, config, constants, mask
        self._owned, self._masked = owned, masked
        self._n_batch, self._n_positions = mask.shape
        # The mask of the positions that the last layer keeps if the head takes more than the first.
        self._last_mask = mask[:, :: config.steps[-1][1]]
        self._n_heads = config.num_attention_heads
        self._embeddings, self._asked = embeddings, asked
        # The keys at the model owner, and this owner's shares of the tags of what enters the last map, (B, H).
        self._tag_keys = tag_keys
        self._tags: torch.Tensor | None = None
        self._shapes = weight_shapes(config, embeddings)
        self.watch = Stopwatch(party.channel.counters)
        self._check = RangeCheck(party, mask)
        self._x = torch.empty(0, device=mask.device)
        self._words, self.maps = ahead.words, ahead.maps
        self._online = OnlineMaps(party, constants, self._shapes, ahead, owned, (self._n_batch, self._n_positions))

    def online(self, segment: int, first: torch.Tensor | None) -> Outcome | None:
        """Run a segment of the pass.

        Args:
            segment: its number.
            first: in the first segment at the data owner, the columns (B L, 2) at which the one-hot rows of words and
                token types have their ones; with public tables, the normalised rows (B L, H) at input_scale.

        Returns:
            What this owner learns of the batch, after the last segment; else None.
        """
        self.watch.start()
        if segment == 0 and self._embeddings == "public_table":
            rows = self._n_batch * self._n_positions
            self._x = first if first is not None else self._zeros(rows, self._config.embedding_size)
            self._check_first(first)
        elif segment == 0:
            if self._words is None:
                opened, tensors = self._online.apply("embeddings", first if first is not None else self._zeros(1, 1))
            else:
                opened, tensors = self._online.look_up(self._words, first if first is not None else self._zeros(1, 2))
            self.watch.lap("embedding")
            self._x = self._normalise(self._constants.embedding_norm, opened[0], tensors[0], self._mask.reshape(-1))
        self._layer(segment)
        if segment < self.maps.n_segments - 1:
            return None
        pooled = self._pool()
        marks = self._check.totals()
        self.watch.lap("check")
        head, shape = self._constants.head, self._shapes["classifier"]
        classifier = Classifier(head, shape, self._last_mask, self._owned, self._masked, self._tag_keys)
        outcome = reveal(self._party, classifier, pooled, marks, self._asked, self._tags)
        self.watch.lap("linear")
        return outcome

    def _pool(self) -> torch.Tensor:
        """Return what the classifier takes of the last layer's rows, at row_scale: (B, H), or (B L, H) of each row."""
        head, mask = self._constants.head, self._last_mask
        if head.dense is not None or self._config.pooling != "mean":
            return self._x
        rows = (self._x.view(*mask.shape, -1) * mask[:, :, None]).sum(1)
        mean: torch.Tensor = rows * by_sentence(mask, head.row_factor)
        return mean

    def _dense(self, norm: Norm, c: torch.Tensor, tensors: Sequence[Operand], real: torch.Tensor) -> torch.Tensor:
        """Return the head's activation of the dense layer's map of the last stream: (B, H) at row_scale.

        The map takes the rows while the factor by which each is to be multiplied is found, and the factor multiplies
        what it makes.
        """
        party, dense = self._party, self._constants.head.dense
        assert dense is not None
        stream = Opened(party, Mask(tensors, norm.stream.bits, norm.op, norm.stream.lift), c)
        factor = self._row_factor(norm, stream, real, is_last=True)
        asked = self._online.ask("pooler", stream.value())
        mask = Mask(asked.following[0], dense.bits, dense_use(norm))
        factors = self._check.open([] if factor is None else [mask.factor_half(factor, party.rank)])
        self.watch.lap("norm")
        product = Opened(party, mask, self._online.answer(asked)[0])
        self.watch.lap("linear")
        down = dense.scale + norm.factor_scale - dense.argument_scale
        argument = product.times(factors[0], down) if factors else product.value(down)
        activated = self._head_activation(computed(self._online.with_bias(fused(argument), DENSE_BIAS)))
        self.watch.lap("activation")
        return activated

    def _head_activation(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activation of a head with a dense layer: (B, H) at row_scale."""
        party, dense = self._party, self._constants.head.dense
        assert dense is not None
        if dense.table is None:
            assert dense.function is not None
            function = dense.function
            evaluation = function.evaluation(party.take(function.request(tuple(x.shape))), party.rank)
            return evaluation.evaluate(party, self._check.open([evaluation.half(x)])[0])
        lookup = self._check.lookup(dense.table, x.numel())
        arguments = self._check.open(lookup.halves(x.reshape(-1)))
        y = self._check.evaluate(lookup, arguments, torch.ones_like(arguments[0]))
        self._tags = None if lookup.tags is None else lookup.tags.view(x.shape)
        return y.view(x.shape)

    def _check_first(self, rows: torch.Tensor | None) -> None:
        """Count the data owner's own rows that are too long for a constant LayerNorm; it sees them in the clear."""
        norm = self._constants.embedding_norm
        if norm.function is None and rows is not None:
            squares = (rows.double() * 2.0 ** (norm.scale - self._constants.rings.input_scale)).square().sum(-1)
            self._check.count((squares >= 2.0 ** (norm.guard_bits + 1)).long() * self._mask.reshape(-1))

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=self._mask.device)

    def _normalise(
        self, norm: Norm, c: torch.Tensor, tensors: Sequence[Operand], real: torch.Tensor, *, is_last: bool = False
    ) -> torch.Tensor:
        """Return the LayerNorm, without gain and bias, of an opened and centred stream: (rows, H) at input_scale."""
        party, scale = self._party, self._constants.rings.input_scale
        mask = Mask(tensors, norm.stream.bits, norm.op, norm.stream.lift)
        stream = Opened(party, mask, c)
        factor = self._row_factor(norm, stream, real, is_last)
        if factor is None:
            normal = stream.value(norm.scale - scale)
        else:
            opened_factor = self._check.open([mask.factor_half(factor, party.rank)])[0]
            normal = stream.times(opened_factor, norm.stream.normal_scale - scale)
        self.watch.lap("norm")
        return normal

    def _row_factor(self, norm: Norm, stream: Opened, real: torch.Tensor, is_last: bool) -> torch.Tensor | None:
        """Return the inverse deviation of a stream's rows, (rows, 1), or None where a LayerNorm is constant.

        The rows of the last one are the last ones that the guard looks at, so it begins.
        """
        squares = stream.sum_of_squares().reshape(-1)  # scale 2 norm.scale
        if norm.function is None:
            self._check.guard(norm.guard_bits, squares, real)
            if is_last:
                self._check.begin()
                self._check.open([])
            return None
        lookup = self._check.lookup(norm.function, squares.numel())
        self._check.guard(norm.function.guard_bits, squares, real, norm.stream.lift)
        if is_last:
            self._check.begin()
        return self._check.evaluate(lookup, self._check.open(lookup.halves(squares)), real).view(-1, 1)

    def _layer(self, index: int) -> None:
        name, constants, at = f"layer.{index}", self._constants.layers[index], self.maps.positions(index)
        keys = self._mask[:, :: at.step]
        real = keys[:, :: at.stride].reshape(-1)
        attention = PrivateAttention(self._party, self._config.softmax, keys, at.stride, self._check, self.watch)
        (query, key, value), masks = self._online.apply(f"{name}.attention", self._x)
        self.watch.lap("linear")
        bias = self._score_bias(f"{name}.attention.score_bias", at)
        attended = attention.attend(Heads(query, key, value, *masks), constants, bias)
        opened, tensors = self._online.apply(f"{name}.attention.output", attended)
        self.watch.lap("linear")
        x = self._normalise(constants.attention_norm, opened[0], tensors[0], real)
        opened, tensors = self._online.apply(f"{name}.inner", x)
        self.watch.lap("linear")
        activated = self._activate(opened[0], tensors[0])
        self.watch.lap("activation")
        opened, tensors = self._online.apply(f"{name}.outer", activated)
        self.watch.lap("linear")
        is_last = index == self.maps.n_segments - 1
        if is_last and self._constants.head.dense is not None:
            self._x = self._dense(constants.output_norm, opened[0], tensors[0], real)
        else:
            self._x = self._normalise(constants.output_norm, opened[0], tensors[0], real, is_last=is_last)

    def _score_bias(self, name: str, at: Positions) -> torch.Tensor | None:
        """Return what the model owner adds to its share of the scores, (A, Q, L); None for nothing."""
        table = None if self._owned is None else self._owned.biases.get(name)
        if table is None:
            return None
        buckets = distance_buckets(at.n, table.size(0), at.step)[:: at.stride]
        return table[buckets.to(table.device)].permute(2, 0, 1)

    def _activate(self, c: torch.Tensor, tensors: Sequence[Operand]) -> torch.Tensor:
        """Return the form of GeLU of the opened first map (rows, I), as the second map takes it."""
        party, activation = self._party, self._constants.activation
        if activation.function is None:
            inner = Opened(party, Mask(tensors, activation.bits, "square", activation.lift), c)
            return inner.square(activation.offset, activation.result_shift)
        result = activation.function.evaluation(tensors, party.rank).evaluate(party, c)
        return shift(result, activation.result_shift, party.rank)
