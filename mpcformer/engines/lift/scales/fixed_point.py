"""The scales and rings of the engine's private numbers: how many fraction bits each has, in a ring of how many bits.

The ring is a budget. An opening with a lifted mask brings a number back to the bits of the large ring; each local shift
by s bits spends s of them, and the next opening needs as many as its value has. The scales below make every chain
between two openings fit: see docs/architecture.md for the sums. A model's `Rings` are either WIDE, or `compact`.
"""

import math
from dataclasses import dataclass, replace

from mpcformer.correlations.lifted import FACTOR_EXTRA_BITS
from mpcformer.modeling.precision import COMPACT
from mpcformer.modeling.precision import WIDE as WIDE_NAME
from mpcformer.ring.packing import WORD, packing_width

# The fraction bits of 1 / row, where rings do not say otherwise.
ROW_SCALE = 12
# Rows that a constant divides may add up to more than rows that tables divide, so their context has a bit more room.
CONST_CONTEXT_SCALE = 16
# `key_factor` is up to an eighth away from 1 / n. Where a constant divides rows, the values make up for that, and they
# are lifted to 64 bits.
KEY_CORRECTION_SCALE = 16
KEY_FACTOR_BITS = 2
TANH_SCALE = 18
POOLED_SCALE = 14
# The scale of what the tables of tanh give.
TABLE_SCALE = POOLED_SCALE + FACTOR_EXTRA_BITS
EMBEDDING_BITS = 32
# Softmax: the exponential as it is opened; numbers of a row before a division and after; the reciprocals; and the ring
# of a row before its last squaring.
EXPONENTIAL_SCALE, POWER_SCALE, POWER_BITS = 19, 20, 32
DIVISOR_SCALE, LAST_POWER_BITS = 20, 24
# A number that a guard looks at has so many bits less than its ring; see `tables.table`.
GUARD_ROOM = 9
# Tables (1 percent), the rounding of LayerNorm's factors and truncations may make a bound that follows from rows of
# length sqrt(H) this much larger.
BOUND_SLACK = 1.05


@dataclass(frozen=True)
class Stream:
    """The residual stream before a LayerNorm, and the row behind it.

    Args:
        bits: the width of the ring in which the stream is opened.
        lift: the width of the ring to which it is lifted.
        scale: its fraction bits at the least; in rings of another width it always has so many.
        normal_scale: fraction bits of the normalised row as the product with the row's factor leaves it.
        is_compact: whether the scale is fixed, and the stream is computed in a unit instead.
    """

    bits: int
    lift: int
    scale: int
    normal_scale: int
    is_compact: bool = False


@dataclass(frozen=True)
class Rings:
    """The scales and rings that depend on a model's precision.

    Args:
        precision: wide or compact.
        input_scale: fraction bits of a normalised row, as it enters a linear map.
        input_bits: the width of the ring in which it enters the map of queries and keys.
        query_weight_scale, value_weight_scale, output_weight_scale, inner_weight_scale, pooler_weight_scale: fraction
            bits of the weights; the first is for queries and keys.
        value_map_bits, inner_map_bits: the rings of the products that make values, and the activation's argument.
        residual_scale, mean_scale: fraction bits of a LayerNorm's gains, and of the weights of the residual's mean.
        attention_residual_bits, inner_residual_bits: the rings of the residual and of its mean.
        query_scale, query_bits: queries and keys.
        value_scale, value_bits, value_lift: values, and the ring to which they are lifted.
        score_scale, score_bits: scores.
        numerator_scale, numerator_bits: numerators.
        context_scale, context_bits, context_lift: their product with the values.
        attended_scale, output_bits: the rows behind attention, and the ring of the map of these.
        outer_bits, outer_scale: the ring of the second feed-forward map, and the scale of its product.
        first, attention, output: the stream of the embeddings, behind attention and behind the second map.
        square_scale, square_bits, square_lift, square_shift: in compact rings, the argument of Quad, and how far its
            square is shifted. For wide ones the form of GeLU states them.
        row_scale: fraction bits of the factor 1 / row of the numerators' product with the values.
    """

    precision: str
    input_scale: int
    input_bits: int
    query_weight_scale: int
    value_weight_scale: int
    output_weight_scale: int
    inner_weight_scale: int
    pooler_weight_scale: int
    value_map_bits: int
    inner_map_bits: int
    residual_scale: int
    mean_scale: int
    attention_residual_bits: int
    inner_residual_bits: int
    query_scale: int
    query_bits: int
    value_scale: int
    value_bits: int
    value_lift: int
    score_scale: int
    score_bits: int
    numerator_scale: int
    numerator_bits: int
    context_scale: int
    context_bits: int
    context_lift: int
    attended_scale: int
    output_bits: int
    outer_bits: int
    outer_scale: int
    first: Stream
    attention: Stream
    output: Stream
    square_scale: int = 0
    square_bits: int = 0
    square_lift: int = 0
    square_shift: int = 0
    row_scale: int = ROW_SCALE

    @property
    def is_compact(self) -> bool:
        """Whether the precision is compact."""
        return self.precision == COMPACT

    @property
    def output_scale(self) -> int:
        """The scale of the product of the map behind attention."""
        return self.attended_scale + self.output_weight_scale

    def weight_bits(self, name: str) -> int:
        """Return the width of the ring in which a weight is masked, and in which its product lies.

        The classifier's is the head's, see `LiftScales.weight_bits`.
        """
        if name == "embeddings":
            return EMBEDDING_BITS
        kinds = {
            # The pooler takes rows that are not divided yet, in the ring to which they are lifted.
            "pooler": self.output.lift,
            "attention.scores": self.input_bits,
            "attention.values": self.value_map_bits,
            "attention.residual": self.attention_residual_bits,
            "attention.mean": self.attention_residual_bits,
            "attention.output": self.output_bits,
            "inner": self.inner_map_bits,
            "residual": self.inner_residual_bits,
            "mean": self.inner_residual_bits,
            "outer": self.outer_bits,
        }
        return kinds[name.split(".", 2)[2] if name.startswith("layer.") else name]

    def score_lift(self, row_bits: int, log_keys: int) -> int:
        """Return the width of the ring to which scores are lifted with their squares.

        Args:
            row_bits: see `rows.row_bits`.
            log_keys: log2 of the longest row, rounded up.
        """
        if not self.is_compact:
            return WORD
        # The numerators' ring is what the shift leaves. A row of the largest scores is still told from a smaller one.
        largest_row = 2 * (self.score_bits - 2) + 1 + log_keys + KEY_FACTOR_BITS
        return packing_width(max(self.numerator_bits + row_bits - self.numerator_scale, largest_row + 2))


_STREAM = Stream(bits=32, lift=WORD, scale=13, normal_scale=26)
WIDE = Rings(
    precision=WIDE_NAME,
    input_scale=14,
    input_bits=52,
    query_weight_scale=15,
    value_weight_scale=19,
    output_weight_scale=16,
    inner_weight_scale=18,
    pooler_weight_scale=20,
    value_map_bits=52,
    inner_map_bits=52,
    residual_scale=16,
    mean_scale=19,
    attention_residual_bits=52,
    inner_residual_bits=52,
    query_scale=13,
    query_bits=40,
    value_scale=13,
    value_bits=32,
    value_lift=WORD,
    score_scale=14,
    score_bits=24,
    numerator_scale=23,
    numerator_bits=48,
    context_scale=17,
    context_bits=24,
    context_lift=WORD,
    attended_scale=17,
    output_bits=52,
    outer_bits=48,
    outer_scale=29,
    first=_STREAM,
    attention=_STREAM,
    output=_STREAM,
)
# Rows of squares of powers of e are far smaller where attention is spread evenly than where one key has all of it, and
# at most a half. So their product with the values has more fraction bits than elsewhere, and 1 / row, which is 2 or
# more, has fewer: the shift behind the product of both must leave the bits of the map that follows.
EXPONENTIAL = replace(WIDE, numerator_scale=27, context_scale=20, context_bits=28, row_scale=9)
# Scales of the compact rings, which the widths below follow from.
_ROW, _STREAM_SCALE, _GAIN = 12, 12, 12
_ATTENDED, _OUTPUT_WEIGHT = 11, 9
_ACTIVATED, _OUTER_WEIGHT = 8, 12
_NORMAL = 24
_INPUT_BITS, _QUERY_WEIGHT, _QUERY = 44, 12, 10
_SCORE, _SCORE_BITS = 10, 20
_VALUE_WEIGHT, _VALUE, _VALUE_BITS = 11, 11, 20
_CONTEXT, _CONTEXT_BITS, _NUMERATOR = 17, 24, 22
_INNER_WEIGHT, _SQUARE, _SQUARE_BITS = 10, 10, 20


def compact(attended: float, output: float, attended_squares: float = 1.0, output_squares: float = 1.0) -> Rings:
    """Return the compact rings of a model.

    Args:
        attended, output: the largest length, for any text, of a row of the stream behind attention and of one behind
            the second feed-forward map, in the unit of its stream; below 2^18.
        attended_squares, output_squares: the largest sum of squares of such a row that its tables carry.
    """

    def product_bits(scale: int, longest: float) -> int:
        return packing_width(max(32, scale + 2 + math.ceil(math.log2(longest))))

    def stream(product: int, product_scale: int, after: int, squares: float) -> Stream:
        bits = product - (product_scale - _STREAM_SCALE)
        # A row's sum of squares fits; so does the guard, which looks at it; and so does the normalised row, as the
        # maps behind it take it.
        guarded = math.frexp(squares * 4.0**_STREAM_SCALE)[1] + GUARD_ROOM
        lift = packing_width(max(2 * (bits - 2) + 2, guarded, after + _NORMAL - _ROW))
        return Stream(bits, lift, _STREAM_SCALE, _NORMAL, is_compact=True)

    output_scale, outer_scale = _ATTENDED + _OUTPUT_WEIGHT, _ACTIVATED + _OUTER_WEIGHT
    output_bits, outer_bits = product_bits(output_scale, attended), product_bits(outer_scale, output)
    inner_residual = packing_width(outer_bits + _ROW + _GAIN - outer_scale)
    attention_residual = packing_width(output_bits + _ROW + _GAIN - output_scale)
    input_bits = max(_INPUT_BITS, attention_residual)
    numerator_bits = packing_width(_CONTEXT_BITS + _NUMERATOR + _VALUE - _CONTEXT)
    square_shift = 2 * _SQUARE - _ACTIVATED
    return Rings(
        precision=COMPACT,
        input_scale=_ROW,
        input_bits=input_bits,
        query_weight_scale=_QUERY_WEIGHT,
        value_weight_scale=_VALUE_WEIGHT,
        output_weight_scale=_OUTPUT_WEIGHT,
        inner_weight_scale=_INNER_WEIGHT,
        pooler_weight_scale=16,
        value_map_bits=packing_width(_VALUE_BITS + _ROW + _VALUE_WEIGHT - _VALUE),
        inner_map_bits=packing_width(_SQUARE_BITS + _ROW + _INNER_WEIGHT - _SQUARE),
        residual_scale=_GAIN,
        mean_scale=_GAIN,
        attention_residual_bits=attention_residual,
        inner_residual_bits=inner_residual,
        query_scale=_QUERY,
        query_bits=packing_width(_SCORE_BITS + 2 * _QUERY - _SCORE),
        value_scale=_VALUE,
        value_bits=_VALUE_BITS,
        value_lift=numerator_bits,
        score_scale=_SCORE,
        score_bits=_SCORE_BITS,
        numerator_scale=_NUMERATOR,
        numerator_bits=numerator_bits,
        context_scale=_CONTEXT,
        context_bits=_CONTEXT_BITS,
        context_lift=packing_width(output_bits + _CONTEXT + ROW_SCALE - _ATTENDED),
        attended_scale=_ATTENDED,
        output_bits=output_bits,
        square_scale=_SQUARE,
        square_bits=_SQUARE_BITS,
        square_lift=packing_width(outer_bits + square_shift),
        square_shift=square_shift,
        outer_bits=outer_bits,
        outer_scale=outer_scale,
        first=_STREAM,
        attention=stream(output_bits, output_scale, inner_residual, attended_squares),
        output=stream(outer_bits, outer_scale, input_bits, output_squares),
    )


def key_factor(n_keys: int, log_keys: int) -> int:
    """Return about 2^(log_keys + KEY_FACTOR_BITS) / n_keys, which turns a row's sum into its mean to within 1/8."""
    return round((1 << (log_keys + KEY_FACTOR_BITS)) / n_keys)


def key_correction(n_keys: int, log_keys: int) -> int:
    """Return what key_factor is multiplied by, at KEY_CORRECTION_SCALE more bits, to be 1 / n_keys to within 2^-16."""
    scale = KEY_CORRECTION_SCALE + log_keys + KEY_FACTOR_BITS
    return round((1 << scale) / (n_keys * key_factor(n_keys, log_keys)))


def mean_scale(sum_scale: int, log_keys: int) -> int:
    """Return the scale of the mean that a sum at `sum_scale` becomes when it is multiplied by `key_factor`."""
    return sum_scale + log_keys + KEY_FACTOR_BITS


def last_power_scale(log_keys: int) -> int:
    """Return the scale of a row of mean one before its last squaring: the sum of its squares then fits the ring."""
    return 20 - log_keys


def square_scale(log_keys: int) -> int:
    """Return the scale of the squares of a row of mean one before their division: n^2 fits the ring at it."""
    return min(15, POWER_BITS - 3 - 2 * log_keys)
