"""Where each private number of the `mpcformer` engine lies in its ring: scales, rings, tables; public, from the ranges.

The ring is a budget of 64 bits. An opening with a lifted mask brings a number back to 64; each local shift by s bits
spends s of them, and the next opening needs as many as its value has. The scales below make every chain between two
openings fit: see docs/architecture.md for the sums.
"""

import hashlib
import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass

from mpcformer.approximations import TWO_RELU_EPSILON, exact
from mpcformer.correlations.lifted import FACTOR_EXTRA_BITS
from mpcformer.correlations.table import MAX_LOG_BINS
from mpcformer.engines.calibrated import CalibratedRanges, calibrated, even_shift, widened
from mpcformer.engines.lift.norms import Norm, model_norms
from mpcformer.engines.lift.tables import table
from mpcformer.errors import RangeError
from mpcformer.modeling.configuration import NORM_PARTS
from mpcformer.modeling.ranges import SCORE_REACH
from mpcformer.protocols import piecewise
from mpcformer.protocols.piecewise import Piece
from mpcformer.protocols.table import TableFunction

# Weights: as many fraction bits as the rings after them leave room for. QUERY: queries and keys.
QUERY_WEIGHT_SCALE, VALUE_WEIGHT_SCALE, OUTPUT_WEIGHT_SCALE, INNER_WEIGHT_SCALE = 15, 19, 16, 18
POOLER_WEIGHT_SCALE, LOGIT_WEIGHT_SCALE = 20, 17
RESIDUAL_SCALE = 16
MEAN_SCALE = 19
# A normalised row when it enters a linear map (in Z_2^56).
INPUT_SCALE, INPUT_BITS = 18, 56
# Queries and keys: Z_2^36. Values: lifted from 32 bits, multiplied in Z_2^48.
QUERY_SCALE, QUERY_BITS, VALUE_SCALE, VALUE_BITS = 13, 40, 13, 32
SCORE_SCALE, SCORE_BITS = 14, 24
NUMERATOR_SCALE, NUMERATOR_BITS = 23, 48
CONTEXT_SCALE, CONTEXT_BITS = 17, 24
ROW_SCALE, ATTENDED_SCALE = 12, 20
# 2quad-const: what the guard lets pass adds up to more than what tables do, so its context has a bit more room.
CONST_CONTEXT_SCALE = 16
# Its 1 / n, which key_factor is an eighth away from, is put right in the values, which are lifted to 64 bits.
KEY_CORRECTION_SCALE = 16
MAX_CONST_EXPONENT = 4
# The activation enters the second map in Z_2^48, at a scale that makes OUTER_SCALE with the map's weights.
ACTIVATED_BITS, OUTER_SCALE = 48, 29
# The pooler's sum is clamped, then looked up: tanh is 1 to 1.2e-5 beyond.
TANH_SCALE, TANH_BITS, TANH_REACH, TANH_TABLE_REACH = 16, 32, 6.0, 6.1
POOLED_SCALE, LOGIT_BITS = 14, 64
LOGIT_TOTAL_SCALE = POOLED_SCALE + FACTOR_EXTRA_BITS + LOGIT_WEIGHT_SCALE
EMBEDDING_BITS = 32
# Softmax: the base and its square, and a row of mean one; the reciprocals that follow its squarings.
BASE_SCALE, FOURTH_SCALE, POWER_SCALE, POWER_BITS = 26, 20, 20, 32
DIVISOR_SCALE, LAST_DIVISOR_SCALE = 20, 18

RECIPROCAL_WIDTH, TANH_WIDTH = 0.33, 0.12
# A row that is squared again need not be divided exactly; its mean is within MEAN_SLACK of one.
COARSE_WIDTH, MEAN_SLACK = 0.7, 1.4
MAX_ROW_LOG_BINS = 6
KEY_FACTOR_BITS = 2
# What tables (1 percent), FACTOR_ERROR and truncations may add to a bound that follows from rows of length sqrt(H).
BOUND_SLACK = 1.05
# 2Quad's and 2ReLU's rows have tables. 2quad-const's guard marks from 2 on, by key_factor: 8 / 7 of that by n.
DIVIDED_ROW_SLACK, CONST_ROW_SLACK = 1.25, 16 / 7
# Beyond, scores keep too few of their 14 fraction bits.
MAX_SCORE_SHIFT = 6


@dataclass(frozen=True)
class Activation:
    """GeLU's form: the input's scale, the result's before `result_shift`, and the second map's weights' scale.

    function: None for quad, which is a square with all else folded into the map: its weights are W / 8.
    """

    scale: int
    bits: int
    result_shift: int
    weight_scale: int
    function: piecewise.PiecewiseFunction | None


QUAD = Activation(scale=13, bits=32, result_shift=16, weight_scale=19, function=None)
RELU = Activation(scale=13, bits=32, result_shift=0, weight_scale=16, function=piecewise.relu(32))
_EDGES = [exact.GELU_THRESHOLDS[n : n + 2] for n in range(len(exact.GELU_THRESHOLDS))]
GELU = Activation(
    scale=exact.GELU_INPUT_SCALE,
    bits=24,
    result_shift=16,
    weight_scale=16,
    function=piecewise.PiecewiseFunction(24, tuple(map(Piece, _EDGES, exact.GELU_COEFFICIENTS))),
)
ACTIVATIONS = {"quad": QUAD, "relu": RELU, "gelu": GELU}


@dataclass(frozen=True)
class Layer:
    """One encoder layer.

    Args:
        score_shift: scores are computed 2^-score_shift times their size; the queries' and keys' weights carry it.
        row_exponent: row means are divided by 2^row_exponent to lie below 1.
        divided: rows add up to one; False for 2quad-const, whose row means are only guarded.
        row_low: the lowest row mean after both.
        row_offset: 2ReLU's epsilon, scaled as the scores are; once a key.
        squarings: softmax: n of `squared_softmax`, else 0.
        score_limit: softmax: the bound of the clamp, an integer at SCORE_SCALE.
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

    @property
    def context_scale(self) -> int:
        """Of the numerators' product with the values."""
        return CONTEXT_SCALE if self.divided else CONST_CONTEXT_SCALE

    @property
    def value_room(self) -> float:
        """How large that product may be."""
        return float(2.0 ** (CONTEXT_BITS - 2 - self.context_scale))

    @property
    def row_slack(self) -> float:
        """What a row's numerators, scaled, add up to at most where no mark is set."""
        return DIVIDED_ROW_SLACK if self.divided else CONST_ROW_SLACK

    @property
    def unit(self) -> float:
        """2quad-const: the mean of (s + 5)^2 that stands for 1; the map behind attention makes up for it."""
        return float(2.0 ** (2 * self.score_shift + self.row_exponent))


@dataclass(frozen=True)
class Constants:
    """Everything public that is no shape."""

    embedding_norm: Norm
    layers: tuple[Layer, ...]
    activation: Activation
    tanh_clamp: piecewise.PiecewiseFunction
    tanh: TableFunction

    @property
    def norms(self) -> dict[str, Norm]:
        """The LayerNorms by name."""
        named = {"embeddings": self.embedding_norm}
        for n, layer in enumerate(self.layers):
            named |= {f"layer.{n}.attention": layer.attention_norm, f"layer.{n}.output": layer.output_norm}
        return named

    def digest(self) -> str:
        """Hex SHA-256: owners whose constants differ must not start."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def constants(
    *,
    hidden_size: int,
    epsilon: float,
    n_layers: int,
    bounds: CalibratedRanges,
    gelu: str = "quad",
    softmax: str = "2quad",
    constant_norms: Collection[str] = (),
) -> Constants:
    """Derive the constants of a model.

    Raises:
        RangeError: a range is missing, or wider than tables carry.
    """
    norms = model_norms(n_layers, constant_norms, hidden_size, epsilon, bounds)
    layers = tuple(
        _layer(name, [norms[f"{name}.{part}"] for part in NORM_PARTS], bounds, softmax)
        for name in (f"layer.{n}" for n in range(n_layers))
    )
    reach, unit = round(TANH_REACH * 2**TANH_SCALE), 2.0**-TANH_SCALE
    tanh = table("tanh", -TANH_TABLE_REACH, TANH_TABLE_REACH, unit, POOLED_SCALE, TANH_WIDTH, max_log_bins=MAX_LOG_BINS)
    return Constants(
        norms["embeddings"],
        layers,
        ACTIVATIONS[gelu],
        piecewise.clamp(TANH_BITS, reach),
        tanh,
    )


def key_factor(n_keys: int, log_keys: int) -> int:
    """About 2^(log_keys + KEY_FACTOR_BITS) / n_keys: makes a row's sum a mean, but for an eighth."""
    return round((1 << (log_keys + KEY_FACTOR_BITS)) / n_keys)


def key_correction(n_keys: int, log_keys: int) -> int:
    """key_factor times this, at KEY_CORRECTION_SCALE more bits, is 1 / n_keys but for 2^-16."""
    scale = KEY_CORRECTION_SCALE + log_keys + KEY_FACTOR_BITS
    return round((1 << scale) / (n_keys * key_factor(n_keys, log_keys)))


def row_bits(layer: Layer, log_keys: int) -> int:
    """b, so that a row mean of one, times key_factor(n), is 2^b: 2quad-const's guard looks from there on.

    Raises:
        RangeError: as `row_function`.
    """
    _check_numerators(layer, log_keys)
    return 2 * SCORE_SCALE + log_keys + KEY_FACTOR_BITS + layer.row_exponent


def row_function(layer: Layer, log_keys: int) -> TableFunction:
    """1 / row for rows of at most 2^log_keys keys: the sum, at scale 2 SCORE_SCALE, times key_factor(n).

    Raises:
        RangeError: so many keys and so wide a range that the numerators' product with the values leaves its ring.
    """
    _check_numerators(layer, log_keys)
    unit = 2.0 ** -(2 * SCORE_SCALE + log_keys + KEY_FACTOR_BITS + layer.row_exponent)
    return table("reciprocal", layer.row_low, 1.0, unit, ROW_SCALE, RECIPROCAL_WIDTH, max_log_bins=MAX_ROW_LOG_BINS)


def _check_numerators(layer: Layer, log_keys: int) -> None:
    numerators = 64 - (2 * SCORE_SCALE + log_keys + KEY_FACTOR_BITS + layer.row_exponent - NUMERATOR_SCALE)
    if numerators - (NUMERATOR_SCALE + VALUE_SCALE - layer.context_scale) < CONTEXT_BITS:
        raise RangeError(
            f"{1 << log_keys} positions and row means up to 2^{layer.row_exponent} do not fit the ring together",
            "give shorter texts, distil the student again, or use --engine crypten",
        )


def _layer(name: str, norms: list[Norm], bounds: CalibratedRanges, softmax: str) -> Layer:
    if softmax == "softmax":
        return _softmax_layer(name, norms, bounds)
    if softmax == "2quad-const":
        return _const_layer(name, norms, bounds)
    low, high = widened(*calibrated(bounds, f"{name}.row_mean"))
    offset, power = 0.0, 2
    if softmax == "2relu":
        low, high, offset, power = low + TWO_RELU_EPSILON, high + TWO_RELU_EPSILON, TWO_RELU_EPSILON, 1
    score_shift = max(0, even_shift(low, high) // power, _score_room(name, bounds))
    down = 2.0 ** -(power * score_shift)
    low, high = low * down * 0.875, high * down * 1.125
    exponent = math.ceil(math.log2(high)) if low > 0 else 0
    if not 0 < low < high or exponent > 5:
        raise RangeError(
            f"calibrated range {name}.row_mean spans {low:.3g}..{high:.3g} after scaling: too wide",
            "distil the student again, or use --engine crypten",
        )
    return Layer(
        score_shift=score_shift,
        row_exponent=exponent,
        row_low=low / 2.0**exponent,
        attention_norm=norms[0],
        output_norm=norms[1],
        row_offset=offset * down,
    )


def _const_layer(name: str, norms: list[Norm], bounds: CalibratedRanges) -> Layer:
    """Scores are shifted no further than their reach and the numerators' ring ask for: no table wants them near one."""
    low, high = calibrated(bounds, f"{name}.row_mean")
    if high <= 0:
        raise RangeError(
            f"calibrated range {name}.row_mean = {low}..{high} is not positive", "distil the student again"
        )
    log_high = math.log2(max(1.0, 1.125 * widened(low, high)[1]))
    score_shift = max(_score_room(name, bounds), math.ceil((log_high - MAX_CONST_EXPONENT) / 2))
    if score_shift > MAX_SCORE_SHIFT:
        raise RangeError(
            f"calibrated range {name}.row_mean reaches {high:.3g}: too far for fixed point",
            "distil the student again, or use --engine crypten",
        )
    exponent = math.ceil(log_high) - 2 * score_shift
    return Layer(score_shift, exponent, 0.0, norms[0], norms[1], divided=False)


def _softmax_layer(name: str, norms: list[Norm], bounds: CalibratedRanges) -> Layer:
    bound = exact.score_bound(*calibrated(bounds, f"{name}.scores"))
    n = exact.squarings(bound)
    if n > SCORE_BITS - 2 - SCORE_SCALE:
        raise RangeError(
            f"calibrated range {name}.scores reaches {bound / exact.SCORE_MARGIN:.3g}: too far",
            "distil the student again, or use --engine crypten",
        )
    score_shift = _score_room(name, bounds)
    limit = math.floor(bound * 2.0 ** (SCORE_SCALE - score_shift))
    return Layer(score_shift, 0, 0.0, norms[0], norms[1], squarings=n, score_limit=limit)


def _score_room(name: str, bounds: CalibratedRanges) -> int:
    """The shift at which scores fit for any text, if the ranges tell how far they reach."""
    _, reach = bounds.get(f"{name}.{SCORE_REACH}", (0.0, 1.0))
    shift = max(0, math.ceil(math.log2(reach)) - (SCORE_BITS - 2 - SCORE_SCALE))
    if shift > MAX_SCORE_SHIFT:
        raise RangeError(
            f"{name}.{SCORE_REACH}: scores may reach {reach:.3g} for some text: too far for fixed point",
            "distil the student again, with a lower learning rate or another seed, or use --engine crypten",
        )
    return shift


def softmax_functions(layer: Layer, log_keys: int) -> tuple[TableFunction, TableFunction, TableFunction]:
    """1 / mean of a row: of fourth powers of the base, of squares, and of the last squares, which is exact.

    The argument is the sum of the numbers at 2 POWER_SCALE times key_factor(n). A clamped row cannot leave the range.
    """
    unit = 2.0 ** -(2 * POWER_SCALE + log_keys + KEY_FACTOR_BITS)
    y = layer.score_limit * 2.0 ** (layer.score_shift - SCORE_SCALE - layer.squarings)
    # A coarse table is good from twice its low end on.
    low, high = (((1 + end) ** 2 + 1) ** 4 for end in (-y, y))
    squares = 1 / MEAN_SLACK**2, MEAN_SLACK**2 * 2.0**log_keys

    def reciprocal(low: float, high: float, scale: int, width: float) -> TableFunction:
        return table("reciprocal", low, high, unit, scale, width, max_log_bins=MAX_ROW_LOG_BINS, guarded=False)

    return (
        reciprocal(0.4 * low, 1.125 * high, DIVISOR_SCALE, COARSE_WIDTH),
        reciprocal(*squares, DIVISOR_SCALE, COARSE_WIDTH),
        reciprocal(*squares, LAST_DIVISOR_SCALE, RECIPROCAL_WIDTH),
    )


def softmax_base(layer: Layer) -> tuple[int, piecewise.PiecewiseFunction]:
    """Its scale, and (1 + y)^2 + 1 of the clamped y = score / 2^n, of a score at SCORE_SCALE."""
    scale = SCORE_SCALE - layer.score_shift + layer.squarings
    limit, one = layer.score_limit, 1 << scale
    low, high = ((one + end) ** 2 + one**2 for end in (-limit, limit))
    inside = Piece((-limit, limit), (2 * one**2, 2 * one, 1))
    return 2 * scale, piecewise.PiecewiseFunction(
        SCORE_BITS, (inside, Piece((limit,), (high,)), Piece((-limit,), (-low,))), low
    )


def square_scale(log_keys: int) -> int:
    """Of the squares of a row of mean one before their division, so that n^2 fits."""
    return min(15, POWER_BITS - 3 - 2 * log_keys)
