"""Attention on shares, in each form of softmax: from the opened queries, keys and values to the attended rows.

Letters in the shapes beside the code: B sentences, L positions, Q query positions, A heads, D head size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mpcformer.approximations import softmax_form
from mpcformer.approximations.forms import SquaredScores
from mpcformer.engines.lift.range_check import RangeCheck
from mpcformer.engines.lift.scales import fixed_point as fp
from mpcformer.engines.lift.scales.fixed_point import Rings
from mpcformer.engines.lift.scales.rows import (
    LayerScales,
    row_bits,
    row_function,
    score_lift,
    score_numerators,
    softmax_exponential,
    softmax_functions,
)
from mpcformer.engines.stopwatch import Stopwatch
from mpcformer.protocols import lifted, matmul
from mpcformer.protocols.lifted import Mask, Opened
from mpcformer.protocols.party import Half, Party, Share, fused, shift
from mpcformer.protocols.table import TableFunction
from mpcformer.ring.fused import Fused
from mpcformer.ring.packing import Operand

# Opens the scores, together with the values' masked factor, and returns the opened scores.
OpenScores = Callable[[Half], torch.Tensor]


@dataclass(repr=False)
class Heads:
    """The result of the map for queries, keys and values: opened numbers, and the correlations to use them with.

    Args:
        query, key: opened, (B, A, Q, D) and (B, A, L, D).
        value: opened, (B, A, D, L).
        query_masks: the correlation of the queries' product with the keys.
        value_mask: the lifted mask of the values.
        context_masks: the correlation of the numerators' product with the values.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    query_masks: Sequence[Operand]
    value_mask: Sequence[Operand]
    context_masks: Sequence[Operand]


class PrivateAttention:
    """The part of a layer that no weight touches.

    Args:
        party: this owner.
        softmax: the form of softmax.
        mask: public int64 (B, L), 1 at real tokens.
        stride: of how many positions one asks.
        check, watch: the range check and the stopwatch of the whole pass.
    """

    def __init__(
        self, party: Party, softmax: str, mask: torch.Tensor, stride: int, check: RangeCheck, watch: Stopwatch
    ) -> None:
        self._party, self._form, self._mask, self._stride = party, softmax_form(softmax), mask, stride
        self._check, self._watch = check, watch
        self._log_keys = log_keys(mask.size(1))
        self._key_factors = self._sentences(fp.key_factor) * mask[:, None, None, :]

    def attend(self, heads: Heads, constants: LayerScales, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return the attended rows (B Q, A D) at attended_scale, of a layer with these scales.

        Args:
            heads: queries, keys and values.
            constants: the layer's scales.
            bias: at the model owner, what it adds to its share of the scores, (A, Q, L); None adds nothing.
        """
        party, rank, rings = self._party, self._party.rank, constants.rings
        scores = matmul.product(party, heads.query, heads.key, heads.query_masks, rings.query_bits)  # (B, A, Q, L)
        scores = shift(scores, 2 * rings.query_scale - rings.score_scale, rank)
        if bias is not None:
            scores = scores + bias
        self._watch.lap("attention")
        value_mask = Mask(heads.value_mask, rings.value_bits, "plain", rings.value_lift)
        value: Share = Opened(party, value_mask, heads.value).value()  # (B, A, D, L)
        if not constants.divided:
            value = shift(fused(value) * self._sentences(fp.key_correction), fp.KEY_CORRECTION_SCALE, rank)
        value_half = matmul.half(value, heads.context_masks[1], rings.numerator_bits)
        opened_value: list[torch.Tensor] = []

        def open_scores(half: Half) -> torch.Tensor:
            opened, other = party.open([half, value_half])
            opened_value.append(other)
            return opened

        real = self._mask[:, None, :: self._stride].expand(-1, scores.shape[1], -1).reshape(-1)
        if constants.squarings:
            numerators = self._powers(scores, constants, open_scores, real) * self._key_factors
            rows = numerators.sum(-1)
        else:
            numerators, rows = self._numerators(scores, constants, open_scores)
        if not constants.divided:
            bits = row_bits(constants, self._log_keys)
            self._check.guard(bits, rows.reshape(-1), real)
            return self._multiplied_rows(numerators, bits, opened_value[0], heads, constants)
        return self._divided_rows(numerators, rows, opened_value[0], heads, constants, real)

    def _sentences(self, factor: Callable[[int, int], int]) -> torch.Tensor:
        """Return the public factor(number of keys, log_keys) of each sentence, (B, 1, 1, 1)."""
        return by_sentence(self._mask, lambda n: factor(n, self._log_keys))[:, :, None, None]

    # ---- rows of numerators: divided after the product with the values, or, by a learnt constant, not at all ---------

    def _numerators(
        self, scores: Fused, constants: LayerScales, open_scores: OpenScores
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return numerators (B, A, Q, L) at scale 2 score_scale times the keys' factors, and the sums of their rows."""
        party, rings = self._party, constants.rings
        kind = score_numerators(self._form, constants.score_shift)
        if isinstance(kind, SquaredScores):
            lift = score_lift(constants, self._log_keys)
            tensors = party.take_packed(lifted.request("square", tuple(scores.shape), rings.score_bits, lift))
            mask = Mask(tensors, rings.score_bits, "square", lift)
            opened = Opened(party, mask, open_scores(mask.half(scores, party.rank)))
            numerators = opened.square(round(kind.shift * 2.0**rings.score_scale)) * self._key_factors
        else:
            evaluation = kind.evaluation(party.take(kind.request(tuple(scores.shape))), party.rank)
            positive = evaluation.evaluate(party, open_scores(evaluation.half(scores))) << rings.score_scale
            numerators = positive * self._key_factors
        rows = numerators.sum(-1)
        if constants.row_offset:
            offset = round(constants.row_offset * 4.0**rings.score_scale)
            rows = rows + party.only(0, self._key_factors.sum(-1) * offset)
        return numerators, rows

    def _divided_rows(
        self,
        numerators: torch.Tensor,
        rows: torch.Tensor,
        opened_value: torch.Tensor,
        heads: Heads,
        constants: LayerScales,
        real: torch.Tensor,
    ) -> torch.Tensor:
        party, rank, rings = self._party, self._party.rank, constants.rings
        function = row_function(constants, self._log_keys)
        lookup = self._check.lookup(function, rows.numel())
        masked = self._masked_numerators(numerators, row_bits(constants, self._log_keys), heads, rings)
        opened, *arguments = party.open([masked, *lookup.halves(rows.reshape(-1))])
        self._watch.lap("softmax")
        context = self._context(opened, opened_value, heads, constants)
        factor = self._check.evaluate(lookup, arguments, real).view(*rows.shape, 1)
        if function.guard is not None:
            self._check.guard(function.guard_bits, rows.reshape(-1), real, score_lift(constants, self._log_keys))

        bits, lift = rings.context_bits, rings.context_lift
        mask = Mask(party.take_packed(lifted.request("scale", tuple(context.shape), bits, lift)), bits, "scale", lift)
        c_context, opened_factor = party.open([mask.half(context, rank), mask.factor_half(factor, rank)])
        down = rings.context_scale + rings.row_scale - rings.attended_scale
        return self._rows(Opened(party, mask, c_context).times(opened_factor, down))

    def _masked_numerators(self, numerators: torch.Tensor, scale: int, heads: Heads, rings: Rings) -> Half:
        # A shift may turn zero into one, so padding is masked once more.
        down = shift(Fused(numerators), scale - rings.numerator_scale, self._party.rank) * self._mask[:, None, None, :]
        return matmul.half(down, heads.context_masks[0], rings.numerator_bits)

    def _context(
        self, numerators: torch.Tensor, opened_value: torch.Tensor, heads: Heads, constants: LayerScales
    ) -> Fused:
        """Return the product with the values, (B, A, Q, D) at the layer's context_scale in Z_2^context_bits."""
        rings, masks = constants.rings, heads.context_masks
        context = matmul.product(self._party, numerators, opened_value, masks, rings.numerator_bits)
        context = shift(context, rings.numerator_scale + rings.value_scale - constants.context_scale, self._party.rank)
        self._watch.lap("attention")
        return context

    def _rows(self, attended: torch.Tensor) -> torch.Tensor:
        self._watch.lap("softmax")
        return attended.transpose(1, 2).flatten(0, 1).flatten(1)

    def _multiplied_rows(
        self, numerators: torch.Tensor, scale: int, opened_value: torch.Tensor, heads: Heads, constants: LayerScales
    ) -> torch.Tensor:
        """Multiply numerators at `scale`, which are not divided any more, by the values. 2 rounds."""
        party, rank, bits = self._party, self._party.rank, constants.rings.context_bits
        opened = party.open([self._masked_numerators(numerators, scale, heads, constants.rings)])[0]
        self._watch.lap("softmax")
        context = self._context(opened, opened_value, heads, constants)
        mask = Mask(party.take_packed(lifted.request("plain", tuple(context.shape), bits)), bits, "plain")
        lifted_context = Opened(party, mask, party.open([mask.half(context, rank)])[0])
        return self._rows(lifted_context.value(constants.context_scale - constants.rings.attended_scale))

    # ---- softmax: `approximations.squared_softmax`, whose last division follows the product with the values ----------

    def _powers(
        self, scores: Fused, constants: LayerScales, open_scores: OpenScores, real: torch.Tensor
    ) -> torch.Tensor:
        """Return the squares (B, A, Q, L) whose rows are to be divided, at twice `last_power_scale`."""
        first, middle = softmax_functions(constants, self._log_keys)
        rank, power = self._party.rank, fp.POWER_SCALE
        function = softmax_exponential(constants)
        evaluation = function.evaluation(self._party.take(function.request(tuple(scores.shape))), rank)
        keys = self._mask[:, None, None, :]
        x = evaluation.evaluate(self._party, open_scores(evaluation.half(scores))) * keys
        outside = self._party.only(0, torch.ones_like(x)) - evaluation.inside(self._party)
        self._check.count(outside * keys * real.view(*x.shape[:-1], 1))
        x = shift(x, function.result_scale - 2 * power, rank)
        last = fp.last_power_scale(self._log_keys)
        for step in range(constants.squarings):
            scale = fp.square_scale(self._log_keys) if step else power
            x = self._divide(x, scale, middle if step else first, real)
            is_last = step == constants.squarings - 1
            to, bits = (last, fp.LAST_POWER_BITS) if is_last else (power, fp.POWER_BITS)
            x = self._square(shift(x, scale + fp.DIVISOR_SCALE - to, rank), bits)
        return x

    def _square(self, x: torch.Tensor, bits: int) -> torch.Tensor:
        """Return shares of x^2 over Z_2^64, of x in Z_2^bits. 1 round."""
        party = self._party
        mask = Mask(party.take_packed(lifted.request("square", tuple(x.shape), bits)), bits, "square")
        return Opened(party, mask, party.open([mask.half(x, party.rank)])[0]).square()

    def _divide(self, x: torch.Tensor, scale: int, function: TableFunction, real: torch.Tensor) -> torch.Tensor:
        """Bring x from 2 POWER_SCALE to `scale`, and multiply it by the function of its rows' means. 2 or 3 rounds."""
        party, rank = self._party, self._party.rank
        rows = (x * self._key_factors).sum(-1)
        lookup = self._check.lookup(function, rows.numel())
        tensors = party.take_packed(lifted.request("scale", tuple(x.shape), fp.POWER_BITS))
        mask = Mask(tensors, fp.POWER_BITS, "scale")
        half = mask.half(shift(x, 2 * fp.POWER_SCALE - scale, rank), rank)
        c, *arguments = party.open([half, *lookup.halves(rows.reshape(-1))])
        factor = self._check.evaluate(lookup, arguments, real).view(*rows.shape, 1)
        opened_factor = party.open([mask.factor_half(factor, rank)])[0]
        return Opened(party, mask, c).times(opened_factor)


def log_keys(n_keys: int) -> int:
    """Return log2 of the longest row, rounded up."""
    return max(1, math.ceil(math.log2(n_keys)))


def by_sentence(mask: torch.Tensor, factor: Callable[[int], int]) -> torch.Tensor:
    """Return the public factor(number of real positions) of each sentence, (B, 1), for a mask (B, L)."""
    if mask.device.type == "meta":
        return mask[:, :1]
    return torch.tensor([factor(n) for n in mask.sum(1).tolist()])[:, None]
