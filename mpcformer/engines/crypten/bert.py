"""BERT for sequence classification on CrypTen's shares: MPCFormer's computation, made correct.

Every linear map is a Beaver product of two shared matrices, both of which are opened (masked) each time, as in
MPCFormer's own benchmark. It differs from that benchmark in six points: all LayerNorms are real, the public mask
multiplies the scores, row sums are scaled by public powers of two before their reciprocal, the division follows the
product with V, truncation is exact, and pooler and classifier are included.

Letters in the shapes beside the code: B sentences, L positions, Q positions that a layer keeps, H hidden, A heads,
D head size, V + T words and token types.
"""

import math
from typing import Any

import torch

from mpcformer.approximations import gelu_form, softmax_form
from mpcformer.approximations.forms import CRYPTEN, ScoreUnit
from mpcformer.engines.crypten import ops as ops
from mpcformer.engines.crypten.constants import LayerScales, NewtonScales, NormScales
from mpcformer.engines.crypten.newton import NewtonPlan
from mpcformer.engines.stopwatch import Stopwatch
from mpcformer.modeling.families.distances import distance_buckets

Shared = ops.Shared
# Two shared values of the same rows, and the public mask (B, rows) of those rows.
Pair = tuple[Any, Any, torch.Tensor]


class CrypTenBert:
    """The shared parameters and one forward pass. Runs inside `active(party)`, in both parties alike.

    Args:
        parameters: shared tensors by the names of `mpcformer.engines.crypten.parameters`.
        config: architecture and forms.
        constants: public scales and Newton plans.
        watch: what measures the seconds of the pass.
    """

    def __init__(self, parameters: dict[str, Any], config: Any, constants: NewtonScales, watch: Stopwatch) -> None:
        self._p = parameters
        self._config = config
        self._constants = constants
        self._watch = watch
        # The mask (B, Q) of the rows that are computed now. What is kept below for the end has the mask of its rows.
        self._rows = torch.empty(0)
        # Pairs (x, y) with y = x^(-1/2) or 1/x, whose products prove at the end that no value left its range.
        self._rsqrt_pairs: list[Pair] = []
        self._reciprocal_pairs: list[Pair] = []
        # The limit of the variance and the centred rows of each constant norm, which are checked at the end too.
        self._constant_rows: list[tuple[float, Any, torch.Tensor]] = []
        self._n_heads = config.num_attention_heads

    def forward(self, one_hot: Any, mask: torch.Tensor) -> tuple[Any, Any]:
        """Return shared logits, and shared numbers (B,) that tell which sentences left their ranges.

        Logits are (B, C), or (B, L, C) if the head takes each token by itself.

        Args:
            one_hot: the unit vectors of word and token type side by side, (B L, V + T), shared at scale 1.
            mask: public int64 (B, L), 1 at real tokens.
        """
        n_batch, n_positions = mask.shape
        self._rows = mask
        words = ops.wrap(ops.beaver.matmul(one_hot, self._p["embeddings.words_and_types"]).share)  # (B L, H)
        x = ops.wrap(words.share.view(n_batch, n_positions, -1) + self._p["embeddings.positions"].share[:n_positions])
        self._watch.lap("embedding")
        x = self._layer_norm(x, "embeddings.norm", self._constants.embedding_norm)
        if self._config.projection:
            x = self._linear(x, "embeddings.projection")
        for index, constants in enumerate(self._constants.layers):
            x = self._layer(x, index, constants)
        logits = self._linear(self._pool(x, self._rows), "classifier")
        self._watch.lap("linear")
        return logits, self._residual(n_batch)

    def _pool(self, x: Any, mask: torch.Tensor) -> Any:
        """Return what the classifier takes of the last hidden state (B, L, H): (B, H), or (B, L, H) of each token."""
        if self._config.pooling == "each":
            return x
        if self._config.pooling == "mean":
            rows = ops.wrap((x.share * mask[:, :, None]).sum(1))
            counts = mask.sum(1, keepdim=True).double()
            fractions = counts if mask.device.type == "meta" else 1.0 / counts
            return ops.times_fractions(rows, fractions, small=math.floor(math.log2(mask.size(1))))
        if not self._config.has_dense:
            return ops.wrap(x.share[:, 0])
        before = self._linear(ops.wrap(x.share[:, 0]), "pooler")  # (B, H)
        self._watch.lap("linear")
        if self._config.head_activation == "tanh":
            pooled = ops.tanh(before, bound=self._constants.tanh_bound)
        else:
            pooled = gelu_form(self._config.head_activation).on(CRYPTEN)(ops, before)
        self._watch.lap("activation")
        return pooled

    def _linear(self, x: Any, name: str) -> Any:
        weight = self._p[f"{name}.weight"]  # (in, out)
        flat = ops.wrap(x.share.reshape(-1, x.share.size(-1)))
        product = ops.matmul(flat, weight).share + self._p[f"{name}.bias"].share
        return ops.wrap(product.view(*x.share.shape[:-1], -1))

    def _layer_norm(self, x: Any, name: str, constants: NormScales) -> Any:
        width = x.share.size(-1)
        mean = ops.times_public(ops.wrap(x.share.sum(-1, keepdim=True)), 1.0 / width)
        centred = ops.wrap(x.share - mean.share)
        if constants.plan is None:  # the gain carries the division
            self._constant_rows.append((constants.limit, centred, self._rows))
            normal = centred
        else:
            # The variance is scaled by 2^-shift, because the Newton iteration works near 1.
            scaled = ops.times_public(ops.square_sum(centred, dim=-1), 2.0**-constants.shift / width)
            inverse = ops.rsqrt(scaled, constants.plan)
            self._rsqrt_pairs.append((scaled, inverse, self._rows))
            normal = ops.multiply(centred, inverse, shift=constants.shift // 2)
        result = ops.wrap(ops.multiply(normal, self._p[f"{name}.weight"]).share + self._p[f"{name}.bias"].share)
        self._watch.lap("norm")
        return result

    def _layer(self, x: Any, index: int, constants: LayerScales) -> Any:
        name, (before, after) = f"layer.{index}", self._config.steps[index]
        keys, stride = self._rows, after // before
        self._rows = keys[:, ::stride]
        kept = ops.wrap(x.share[:, ::stride])
        attended = self._linear(self._attention(x, kept, keys, index, constants), f"{name}.attention.output")
        self._watch.lap("linear")
        x = self._layer_norm(ops.wrap(kept.share + attended.share), f"{name}.attention.norm", constants.attention_norm)
        inner = self._linear(x, f"{name}.intermediate")  # (B, L, I)
        self._watch.lap("linear")
        inner = self._activation(inner)
        self._watch.lap("activation")
        outer = self._linear(inner, f"{name}.output")
        self._watch.lap("linear")
        return self._layer_norm(ops.wrap(x.share + outer.share), f"{name}.norm", constants.output_norm)

    def _activation(self, u: Any) -> Any:
        return gelu_form(self._config.gelu).on(CRYPTEN)(ops, u)

    def _attention(self, x: Any, kept: Any, mask: torch.Tensor, index: int, constants: LayerScales) -> Any:
        """Return the attended rows (B, Q, A D) of the layer's input x (B, L, H), of which the rows `kept` ask."""
        name, (n_batch, n_positions) = f"layer.{index}", mask.shape

        def heads(rows: Any, part: str) -> torch.Tensor:
            projected: torch.Tensor = self._linear(rows, f"{name}.attention.{part}").share
            return projected.view(n_batch, rows.share.size(1), self._n_heads, -1).transpose(1, 2)  # (B, A, L, D)

        query, key, value = (
            ops.wrap(heads(kept, "query")),
            ops.wrap(heads(x, "key").transpose(2, 3)),
            ops.wrap(heads(x, "value")),
        )
        self._watch.lap("linear")
        scores = ops.matmul(query, key)  # (B, A, Q, L), scaled down by sqrt(D) 2^score_scale within the query's weights
        if self._config.score_buckets:
            table = self._p[f"{name}.attention.score_bias"].share  # (groups, A), scaled down too
            before, after = self._config.steps[index]
            buckets = distance_buckets(n_positions, table.size(0), before)[:: after // before].to(table.device)
            scores = ops.wrap(scores.share + table[buckets].permute(2, 0, 1))
        self._watch.lap("attention")
        keys = mask[:, None, None, :]  # (B, 1, 1, L)
        numerators = ops.times_integers(self._numerators(scores, keys, constants), keys)

        # Divide by 2^k near the number of keys: multiply by 2^(K - k) now, divide by 2^K when truncating.
        common = math.ceil(math.log2(n_positions))
        numerators = ops.times_integers(numerators, _key_factors(mask, common))
        self._watch.lap("softmax")
        context = ops.matmul(numerators, value, shift=common)  # (B, A, Q, D)
        self._watch.lap("attention")
        if constants.row is None:  # divided by 2^k so far; the map behind attention carries the learnt constant
            divided = ops.times_fractions(context, 1 / _key_share(mask))
        else:
            divided = self._divide(context, numerators, mask, common, constants, constants.row)
        self._watch.lap("softmax")
        return ops.wrap(divided.share.transpose(1, 2).flatten(2))

    def _divide(
        self,
        context: Any,
        numerators: Any,
        mask: torch.Tensor,
        common: int,
        constants: LayerScales,
        plan: NewtonPlan,
    ) -> Any:
        """Return the context (B, A, Q, D) times the reciprocal of the sums of its rows."""
        row = ops.times_power_of_two(ops.wrap(numerators.share.sum(-1, keepdim=True)), -common)  # (B, A, Q, 1)
        if constants.row_offset:
            row = ops.add_public(row, constants.row_offset * _key_share(mask))
        inverse = ops.reciprocal(row, plan)
        self._reciprocal_pairs.append((row, inverse, self._rows.repeat(1, self._n_heads)))
        return ops.multiply(context, inverse)

    def _numerators(self, scores: Any, keys: torch.Tensor, constants: LayerScales) -> Any:
        unit = ScoreUnit(2.0**-constants.score_scale, constants.score_bound, keys)
        return softmax_form(self._config.softmax).on(CRYPTEN)(ops, scores, unit)

    def _residual(self, n_batch: int) -> Any:
        """Return shared numbers (B,), each of which is near zero unless a row of its sentence left its range.

        Each adds up (x y^2 - 1)^4 and (x y - 1)^4 over all Newton iterations, one for each inverse root y that is
        negative, and one for each row of a constant norm whose sum of squares is negative or beyond its limit. The
        fourth power keeps the rounding of very many good rows far below one bad row. The signs are needed because an
        iteration that starts above its range may find the negative root, whose square is right.
        """
        total = self._rows.new_zeros(n_batch)
        # Padding rows may hold anything; their keys are masked, so they reach no real token.
        signs: list[tuple[Any, torch.Tensor]] = []
        pairs: list[Pair] = []
        if self._rsqrt_pairs:
            x, y, rows = _joined(self._rsqrt_pairs, n_batch)
            signs.append((y, rows))
            pairs.append((x, ops.square(y), rows))
        if self._reciprocal_pairs:
            pairs.append(_joined(self._reciprocal_pairs, n_batch))
        if pairs:
            xs, ys, flags = zip(*pairs, strict=True)
            left, right = (ops.wrap(torch.cat([part.share for part in side], dim=1)) for side in (xs, ys))
            residual = ops.times_integers(ops.add_public(ops.multiply(left, right), -1.0), torch.cat(flags, dim=1))
            total = total + ops.square_sum(ops.square(residual), dim=1).share.view(n_batch)
        if self._constant_rows:
            signs.extend(self._squares_and_room(n_batch))
        if signs:
            below = ops.less_than_zero(ops.wrap(torch.cat([sign.share for sign, _ in signs], dim=1)))
            counted = below * torch.cat([rows for _, rows in signs], dim=1)
            total = total + ops.of_bits(counted.sum(1)).share
        return ops.wrap(total)

    def _squares_and_room(self, n_batch: int) -> list[tuple[Any, torch.Tensor]]:
        """Return each row's sum of squares at the constant norms, and what it lacks to its limit, with the rows' masks.

        Neither may be negative. A sum from 2^30 on comes out modulo 2^32; where that is negative, the sum would seem to
        be below any limit.
        """
        limits, rows, masks = zip(*self._constant_rows, strict=True)
        width, real = rows[0].share.size(-1), torch.cat(masks, dim=1)
        flat = [row.share.reshape(n_batch, -1, width) for row in rows]
        squares = ops.square_sum(ops.wrap(torch.cat(flat, dim=1)), dim=-1).share.squeeze(-1)
        counts = torch.tensor([part.size(1) for part in flat])
        largest = torch.tensor(limits, dtype=torch.float64).repeat_interleave(counts) * width
        room = ops.add_public(ops.wrap(-squares), largest.to(squares.device))
        return [(ops.wrap(squares), real), (room, real)]


def _joined(pairs: list[Pair], n_batch: int) -> Pair:
    """Join the rows of all pairs, and their masks, by sentence: (B, rows) each."""
    xs, ys, rows = zip(*pairs, strict=True)
    x, y = (ops.wrap(torch.cat([t.share.reshape(n_batch, -1) for t in side], dim=1)) for side in (xs, ys))
    return x, y, torch.cat(rows, dim=1)


def _key_share(mask: torch.Tensor) -> torch.Tensor:
    """Return n / 2^k for n keys, where 2^k is the power of two from n up: (B, 1, 1, 1) float64, public."""
    if mask.device.type == "meta":
        return mask.new_empty((mask.size(0), 1, 1, 1), dtype=torch.float64)
    shares = [n / 2 ** math.ceil(math.log2(n)) for n in mask.sum(1).tolist()]
    return torch.tensor(shares, dtype=torch.float64)[:, None, None, None]


def _key_factors(mask: torch.Tensor, common: int) -> torch.Tensor:
    """Return 2^(K - k), where 2^k is the power of two from the number of keys up: (B, 1, 1, 1) int64, public."""
    if mask.device.type == "meta":
        return mask.new_empty((mask.size(0), 1, 1, 1))
    exponents = [common - math.ceil(math.log2(n)) for n in mask.sum(1).tolist()]
    return torch.tensor([1 << e for e in exponents])[:, None, None, None]
