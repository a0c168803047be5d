"""The public scales of attention in one encoder layer, from calibrated ranges and from what the form of softmax states.

Rows that are divided have tables of a reciprocal; rows that a learnt constant divides have a guard; the exact softmax
is computed by repeated squaring, with a table after each square.
"""

import math
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import lru_cache

from mpcformer.approximations import (
    ConstantRows,
    DividedRows,
    ExponentialRows,
    SoftmaxForm,
    score_bound,
    softmax_form,
    squarings,
)
from mpcformer.approximations.forms import LIFT, RepeatedSquaring, SlopedScores, SquaredScores
from mpcformer.approximations.softmax_exact import SCORE_MARGIN
from mpcformer.correlations.window import BORROW, DECIMALS
from mpcformer.engines.calibrated import CalibratedRanges, calibrated, even_shift, widened
from mpcformer.engines.lift.scales import fixed_point as fp
from mpcformer.engines.lift.scales.fixed_point import WIDE, Rings
from mpcformer.engines.lift.scales.norms import Norm
from mpcformer.engines.lift.scales.tables import table
from mpcformer.errors import RangeError
from mpcformer.modeling.ranges import SCORE_REACH
from mpcformer.protocols import piecewise
from mpcformer.protocols.piecewise import Piece
from mpcformer.protocols.table import TableFunction
from mpcformer.protocols.window import ExponentialFunction

RECIPROCAL_WIDTH = 0.33
# A row that is squared again need not be divided exactly; its mean is within MEAN_SLACK of one.
COARSE_WIDTH, MEAN_SLACK = 0.7, 1.4
MAX_ROW_LOG_BINS = 8
# Divided rows have tables. The guard of other rows marks a mean times key_factor from 2 on: 8 / 7 of that by n.
DIVIDED_ROW_SLACK, CONST_ROW_SLACK = 1.25, 16 / 7
# A row this small, relative to the largest, still has 5 of the CONTEXT_SCALE bits of its product with the values.
MIN_ROW = 2.0**-12
# What `fixed_point.key_factor` makes of a row's mean, at the least and at the most.
LEAST_MEAN, MOST_MEAN = 0.875, 1.125
# Scores that are shifted further keep too few of their 14 fraction bits.
MAX_SCORE_SHIFT = 6
MAX_ROW_EXPONENT, MAX_CONST_EXPONENT = 5, 4
# The part of a ring's range that a window may take: its bins end a little before it.
MAX_WINDOW = 0.96875


@dataclass(frozen=True)
class LayerScales:
    """The public numbers of one encoder layer.

    Args:
        score_shift: scores are computed 2^-score_shift times their size; the weights of queries and keys carry it.
        row_exponent: row means are divided by 2^row_exponent to lie below 1.
        row_low: the lowest row mean after both.
        attention_norm, output_norm: the two LayerNorms.
        row_offset: what is added to a row's mean, scaled as the numerators are.
        squarings: exact softmax: the n of `squared_softmax`, else 0.
        score_limit: exact softmax: the bound of the clamp, an integer at SCORE_SCALE.
        divided: whether rows add up to one; the means of rows that do not are only guarded.
        degree: numerators shrink by 2^-degree when scores shrink by half.
        rings: those of the model.
    """

    score_shift: int
    row_exponent: int
    row_low: float
    attention_norm: Norm
    output_norm: Norm
    row_offset: float = 0.0
    squarings: int = 0
    score_limit: int = 0
    divided: bool = True
    degree: int = 2
    rings: Rings = WIDE

    @property
    def context_scale(self) -> int:
        """The scale of the numerators' product with the values."""
        return self.rings.context_scale if self.divided else fp.CONST_CONTEXT_SCALE

    @property
    def value_room(self) -> float:
        """How large that product may be."""
        return float(2.0 ** (self.rings.context_bits - 2 - self.context_scale))

    @property
    def row_slack(self) -> float:
        """The most that a row's scaled numerators add up to where no mark is set."""
        return DIVIDED_ROW_SLACK if self.divided else CONST_ROW_SLACK

    @property
    def unit(self) -> float:
        """The mean of the numerators that stands for 1 in rows that are not divided.

        The map behind attention makes up for it.
        """
        return float(2.0 ** (self.degree * self.score_shift + self.row_exponent))

    @property
    def row_limits(self) -> tuple[float, float]:
        """The interval in which a row's mean numerator, or a score of the exact softmax, is never marked."""
        if self.squarings:
            # A score that is a little below the clamp's upper end may count as having reached it.
            limit = self.score_limit - BORROW.early(self.rings.score_bits)
            largest = limit * 2.0 ** (self.score_shift - self.rings.score_scale)
            return -largest, largest
        if not self.divided:
            return 0.0, self.unit / MOST_MEAN
        added = self.row_offset * 2.0 ** (self.degree * self.score_shift)
        return self.row_low * self.unit / LEAST_MEAN - added, self.unit / MOST_MEAN - added


def layer_scales(
    name: str, norms: list[Norm], bounds: CalibratedRanges, softmax: str, rings: Rings = WIDE
) -> LayerScales:
    """Derive the scales of a layer.

    Args:
        name: the prefix of the layer's ranges, layer.N.
        norms: the LayerNorms after attention and after the activation.
        bounds: calibrated (low, high) by name.
        softmax: the form of softmax.
        rings: those of the model. Compact ones carry divided rows alone.

    Raises:
        RangeError: a range is missing, or wider than tables carry.
        UserInputError: the engine does not compute this form.
    """
    form = softmax_form(softmax)
    realisation, rows = form.on(LIFT), form.rows
    if isinstance(rows, ExponentialRows) and isinstance(realisation, RepeatedSquaring):
        return _exponential(name, norms, bounds)
    if not isinstance(realisation, SquaredScores | SlopedScores) or isinstance(rows, ExponentialRows):
        raise form.refused(LIFT)
    if realisation.degree != rows.degree:
        raise form.refused(LIFT)
    if isinstance(rows, ConstantRows):
        return _constant(name, norms, bounds, rows)
    return _divided(name, norms, bounds, rows, rings)


def score_numerators(form: SoftmaxForm, score_shift: int) -> SquaredScores | piecewise.PiecewiseFunction:
    """Return how a form's numerators are computed from scores at SCORE_SCALE that are 2^-score_shift their size.

    Raises:
        UserInputError: the engine has no such numerators.
    """
    realisation = form.on(LIFT)
    if isinstance(realisation, SquaredScores):
        return SquaredScores(realisation.shift * 2.0**-score_shift)
    if not isinstance(realisation, SlopedScores):
        raise form.refused(LIFT)
    pieces = [Piece((0,), (0, realisation.above))]
    if realisation.below:
        lowest = 1 - (1 << (WIDE.score_bits - 2))
        pieces.append(Piece((lowest, 0), (0, realisation.below)))
    return piecewise.PiecewiseFunction(WIDE.score_bits, tuple(pieces))


def _divided(name: str, norms: list[Norm], bounds: CalibratedRanges, rows: DividedRows, rings: Rings) -> LayerScales:
    low, high = widened(*calibrated(bounds, f"{name}.{rows.needs}"))
    low, high = low + rows.epsilon, high + rows.epsilon
    wide = math.log2(MOST_MEAN * high) - MAX_ROW_EXPONENT if 0 < high < math.inf else 0.0
    centred = max(even_shift(low, high) // rows.degree, math.ceil(wide / rows.degree))
    score_shift = max(0, centred, _score_room(name, bounds, rings))
    down = 2.0 ** -(rows.degree * score_shift)
    low, high = low * down * LEAST_MEAN, high * down * MOST_MEAN
    exponent = math.ceil(math.log2(high)) if low > 0 else 0
    least = MIN_ROW * 2.0 ** (exponent + WIDE.numerator_scale - rings.numerator_scale)
    if not 0 < low < high or low < least or score_shift > MAX_SCORE_SHIFT:
        raise RangeError(
            f"calibrated range {name}.row_mean spans {low:.3g}..{high:.3g} after scaling: too wide",
            "distil the student again, or use --engine crypten",
        )
    return LayerScales(
        score_shift=score_shift,
        row_exponent=exponent,
        row_low=low / 2.0**exponent,
        attention_norm=norms[0],
        output_norm=norms[1],
        row_offset=rows.epsilon * down,
        degree=rows.degree,
        rings=rings,
    )


def _constant(name: str, norms: list[Norm], bounds: CalibratedRanges, rows: ConstantRows) -> LayerScales:
    """Shift scores no further than their reach and the numerators' ring ask for: no table wants them near one."""
    low, high = calibrated(bounds, f"{name}.{rows.needs}")
    if high <= 0:
        raise RangeError(
            f"calibrated range {name}.row_mean = {low}..{high} is not positive", "distil the student again"
        )
    log_high = math.log2(max(1.0, MOST_MEAN * widened(low, high)[1]))
    score_shift = max(_score_room(name, bounds, WIDE), math.ceil((log_high - MAX_CONST_EXPONENT) / rows.degree))
    if score_shift > MAX_SCORE_SHIFT:
        raise RangeError(
            f"calibrated range {name}.row_mean reaches {high:.3g}: too far for fixed point",
            "distil the student again, or use --engine crypten",
        )
    exponent = math.ceil(log_high) - rows.degree * score_shift
    return LayerScales(score_shift, exponent, 0.0, norms[0], norms[1], divided=False, degree=rows.degree)


def _exponential(name: str, norms: list[Norm], bounds: CalibratedRanges) -> LayerScales:
    bound = score_bound(*calibrated(bounds, f"{name}.{ExponentialRows.needs}"))
    score_shift = _score_room(name, bounds, WIDE)
    limit = math.floor(bound * 2.0 ** (WIDE.score_scale - score_shift))
    if limit > MAX_WINDOW * 2.0 ** (WIDE.score_bits - 2):
        raise RangeError(
            f"calibrated range {name}.scores reaches {bound / SCORE_MARGIN:.3g}: too far",
            "distil the student again, or use --engine crypten",
        )
    n = squarings(bound)
    return LayerScales(score_shift, 0, 0.0, norms[0], norms[1], squarings=n, score_limit=limit, rings=fp.EXPONENTIAL)


def _score_room(name: str, bounds: CalibratedRanges, rings: Rings) -> int:
    """Return the shift at which scores fit for any text, if the ranges tell how far they reach."""
    _, reach = bounds.get(f"{name}.{SCORE_REACH}", (0.0, 1.0))
    shift = max(0, math.ceil(math.log2(reach)) - (rings.score_bits - 2 - rings.score_scale))
    if shift > MAX_SCORE_SHIFT:
        raise RangeError(
            f"{name}.{SCORE_REACH}: scores may reach {reach:.3g} for some text: too far for fixed point",
            "distil the student again, with a lower learning rate or another seed, or use --engine crypten",
        )
    return shift


def row_bits(layer: LayerScales, log_keys: int) -> int:
    """Return b such that a row mean of one, times key_factor(n), is 2^b; a guard marks rows from 2^(b + 1) on.

    Args:
        layer: the layer's scales.
        log_keys: log2 of the longest row, rounded up.

    Raises:
        RangeError: so many keys and so wide a range that the numerators' product with the values leaves its ring.
    """
    rings = layer.rings
    if layer.squarings:
        # A mean of squares is at most that of a row which has all its sum at one key.
        bits = fp.mean_scale(2 * fp.last_power_scale(log_keys), log_keys) + log_keys + 1
    else:
        bits = fp.mean_scale(2 * rings.score_scale, log_keys) + layer.row_exponent
    numerators = rings.score_lift(bits, log_keys) - (bits - rings.numerator_scale)
    if numerators - (rings.numerator_scale + rings.value_scale - layer.context_scale) < rings.context_bits:
        raise RangeError(
            f"{1 << log_keys} positions and row means up to 2^{layer.row_exponent} do not fit the ring together",
            "give shorter texts, distil the student again, or use --engine crypten",
        )
    return bits


def row_function(layer: LayerScales, log_keys: int) -> TableFunction:
    """Return the tables of 1 / row, for the sum of at most 2^log_keys numerators times key_factor(n).

    Raises:
        RangeError: as `row_bits`.
    """
    bits = row_bits(layer, log_keys)
    low, high = layer.row_low, 1.0
    if layer.squarings:
        # A clamped row cannot leave the range, so it needs no guard.
        low, high = (end * 0.5 ** (log_keys + 1) for end in _square_means(log_keys))
    return table(
        "reciprocal",
        low,
        high,
        2.0**-bits,
        layer.rings.row_scale,
        RECIPROCAL_WIDTH,
        max_log_bins=MAX_ROW_LOG_BINS,
        guarded=not layer.squarings,
        ring=layer.rings.score_lift(bits, log_keys),
    )


def score_lift(layer: LayerScales, log_keys: int) -> int:
    """Return the width of the ring to which scores are lifted, for rows of at most 2^log_keys."""
    return layer.rings.score_lift(row_bits(layer, log_keys), log_keys)


def softmax_functions(layer: LayerScales, log_keys: int) -> tuple[TableFunction, TableFunction]:
    """Return coarse tables of 1 / mean of a row: of powers of e, and of squares, which are both squared again.

    The argument is the sum of the numbers at 2 POWER_SCALE times key_factor(n). A clamped row cannot leave the range.
    """
    unit = 2.0 ** -fp.mean_scale(2 * fp.POWER_SCALE, log_keys)
    y = layer.score_limit * 2.0 ** (layer.score_shift - WIDE.score_scale - layer.squarings)
    # A coarse table is good from twice its low end on.
    powers = 0.4 * _power_of_e(-y), MOST_MEAN * _power_of_e(y)

    def reciprocal(low: float, high: float) -> TableFunction:
        return table(
            "reciprocal",
            low,
            high,
            unit,
            fp.DIVISOR_SCALE,
            COARSE_WIDTH,
            max_log_bins=MAX_ROW_LOG_BINS,
            guarded=False,
        )

    return reciprocal(*powers), reciprocal(*_square_means(log_keys))


def _power_of_e(y: float) -> float:
    """Return exp(y), to the last bit the same at both owners: the C library's differs between systems."""
    with localcontext(Context(prec=DECIMALS, rounding=ROUND_HALF_EVEN)):
        return float(Decimal(y).exp())


def _square_means(log_keys: int) -> tuple[float, float]:
    """Return the least and the largest mean of the squares of a row whose mean is within MEAN_SLACK of one."""
    return 1 / MEAN_SLACK**2, MEAN_SLACK**2 * 2.0**log_keys


def softmax_exponential(layer: LayerScales) -> ExponentialFunction:
    """Return exp(score / 2^squarings) of the clamped score."""
    return _exponential_of(layer.score_limit, WIDE.score_scale - layer.score_shift + layer.squarings)


@lru_cache(maxsize=256)
def _exponential_of(limit: int, exponent_scale: int) -> ExponentialFunction:
    """Return the same object for the same numbers, because each computes its tables once."""
    return ExponentialFunction(WIDE.score_bits, limit, exponent_scale, fp.EXPONENTIAL_SCALE)
