"""Where each private number of the `mpcformer` engine lies in its ring: scales, rings, tables; public, from the ranges.

The ring is a budget of 64 bits. An opening with a lifted mask brings a number back to 64; each local shift by s bits
spends s of them, and the next opening needs as many as its value has. The scales below make every chain between two
openings fit: see docs/architecture.md for the sums.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass

from mpcformer.correlations.suite import GUARD_BITS
from mpcformer.correlations.table import GUARD, MAX_LOG_BINS, TableSpec
from mpcformer.errors import RangeError
from mpcformer.inference.constants import MAX_TANH_INPUT, Bounds
from mpcformer.inference.newton import even_shift, widened
from mpcformer.protocols.table import Argument, Function

# Weights: as many fraction bits as the rings after them leave room for. QUERY: queries and keys.
QUERY_WEIGHT_SCALE, VALUE_WEIGHT_SCALE, OUTPUT_WEIGHT_SCALE, INNER_WEIGHT_SCALE = 15, 19, 16, 18
POOLER_WEIGHT_SCALE, LOGIT_WEIGHT_SCALE = 20, 17
RESIDUAL_SCALE = 16
MEAN_SCALE = 19
# A normalised row: 26 as the product leaves it (in Z_2^64), 18 when it enters a linear map (in Z_2^56).
NORMAL_SCALE, INPUT_SCALE, INPUT_BITS = 26, 18, 56
# Queries and keys: Z_2^36. Values: lifted from 32 bits, multiplied in Z_2^48.
QUERY_SCALE, QUERY_BITS, VALUE_SCALE, VALUE_BITS = 13, 40, 13, 32
SCORE_SCALE, SCORE_BITS = 14, 24
NUMERATOR_SCALE, NUMERATOR_BITS = 23, 48
CONTEXT_SCALE, CONTEXT_BITS = 17, 24
ROW_SCALE, ATTENDED_SCALE = 12, 20
INNER_SCALE, INNER_BITS = 13, 32
# Quad's square: scale 26 in Z_2^64, 10 in Z_2^48 when it enters the second map, whose weights are W / 8 at 19.
SQUARE_SCALE, SQUARE_BITS, OUTER_WEIGHT_SCALE = 10, 48, 19
STREAM_BITS = 32
POOLED_SCALE, LOGIT_BITS = 14, 64
EMBEDDING_BITS = 32

RECIPROCAL_WIDTH, RSQRT_WIDTH, TANH_WIDTH = 0.33, 0.5, 0.05
MAX_ROW_LOG_BINS, MAX_NORM_LOG_BINS = 6, 7
KEY_FACTOR_BITS = 2
_GUARD_BINS = 2.5
# A guard's bin is at most 1 / 15 of the range's upper end wide: tables stay right that much beyond it.
GUARD_LOG_BINS, _SLACK = 6, 1.08


@dataclass(frozen=True)
class Norm:
    """A LayerNorm: its input's scale, its factor's scale, and x^(-1/2) of the sum of squares."""

    scale: int
    factor_scale: int
    function: Function


@dataclass(frozen=True)
class Layer:
    """One encoder layer.

    Args:
        score_shift: scores are computed 2^-score_shift times their size; the queries' and keys' weights carry it.
        row_exponent: row means are divided by 2^row_exponent to lie below 1.
        row_low: the lowest row mean after both.
    """

    score_shift: int
    row_exponent: int
    row_low: float
    attention_norm: Norm
    output_norm: Norm


@dataclass(frozen=True)
class Constants:
    """Everything public that is no shape."""

    embedding_norm: Norm
    layers: tuple[Layer, ...]
    tanh: Function

    def digest(self) -> str:
        """Hex SHA-256: owners whose constants differ must not start."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def constants(*, hidden_size: int, epsilon: float, n_layers: int, bounds: Bounds) -> Constants:
    """Derive the constants of a quad + 2quad model.

    Raises:
        RangeError: a range is missing, or wider than tables carry.
    """
    layers = tuple(_layer(f"layer.{n}", hidden_size, epsilon, bounds) for n in range(n_layers))
    low, high = _bounds(bounds, "pooler.tanh")
    reach = min(MAX_TANH_INPUT, 2 * max(abs(low), abs(high), 1.0))
    product_scale = INPUT_SCALE + POOLER_WEIGHT_SCALE
    tanh = _table("tanh", -reach, reach, 2.0**-product_scale, POOLED_SCALE, TANH_WIDTH, max_log_bins=MAX_LOG_BINS)
    return Constants(_norm("embeddings.variance", hidden_size, epsilon, bounds), layers, tanh)


def key_factor(n_keys: int, log_keys: int) -> int:
    """About 2^(log_keys + KEY_FACTOR_BITS) / n_keys: makes a row's sum a mean, but for an eighth."""
    return round((1 << (log_keys + KEY_FACTOR_BITS)) / n_keys)


def row_function(layer: Layer, log_keys: int) -> Function:
    """1 / row for rows of at most 2^log_keys keys: the sum, at scale 2 SCORE_SCALE, times key_factor(n).

    Raises:
        RangeError: so many keys and so wide a range that the numerators' product with the values leaves its ring.
    """
    numerators = 64 - (2 * SCORE_SCALE + log_keys + KEY_FACTOR_BITS + layer.row_exponent - NUMERATOR_SCALE)
    if numerators - (NUMERATOR_SCALE + VALUE_SCALE - CONTEXT_SCALE) < CONTEXT_BITS:
        raise RangeError(
            f"{1 << log_keys} positions and row means up to 2^{layer.row_exponent} do not fit the ring together",
            "give shorter texts, distil the student again, or use --engine crypten",
        )
    unit = 2.0 ** -(2 * SCORE_SCALE + log_keys + KEY_FACTOR_BITS + layer.row_exponent)
    return _table("reciprocal", layer.row_low, 1.0, unit, ROW_SCALE, RECIPROCAL_WIDTH, max_log_bins=MAX_ROW_LOG_BINS)


def _bounds(bounds: Bounds, name: str) -> tuple[float, float]:
    if name not in bounds:
        raise RangeError(f"calibrated range {name} is missing from ranges.json", "distil the student again")
    return bounds[name]


def _layer(name: str, hidden_size: int, epsilon: float, bounds: Bounds) -> Layer:
    low, high = widened(*_bounds(bounds, f"{name}.row_mean"))
    score_shift = max(0, even_shift(low, high) // 2)
    low, high = low / 4.0**score_shift * 0.875, high / 4.0**score_shift * 1.125
    exponent = math.ceil(math.log2(high))
    if not 0 < low < high or exponent > 5:
        raise RangeError(
            f"calibrated range {name}.row_mean spans {low:.3g}..{high:.3g} times 4^{score_shift}: too wide",
            "distil the student again, or use --engine crypten",
        )
    return Layer(
        score_shift=score_shift,
        row_exponent=exponent,
        row_low=low / 2.0**exponent,
        attention_norm=_norm(f"{name}.attention.variance", hidden_size, epsilon, bounds),
        output_norm=_norm(f"{name}.output.variance", hidden_size, epsilon, bounds),
    )


def _norm(name: str, hidden_size: int, epsilon: float, bounds: Bounds) -> Norm:
    low, high = widened(*_bounds(bounds, name))
    if not 0 < low < high:
        raise RangeError(f"calibrated range {name} = {low}..{high} is not positive", "distil the student again")
    # Large factors need fewer bits: their rows are small and take them instead.
    scale = 13 + min(5, max(0, math.ceil(-math.log2(low) / 2)))
    factor_scale = NORMAL_SCALE - scale
    unit = 2.0 ** (-2 * scale) / hidden_size
    function = _table(
        "rsqrt", low, high, unit, factor_scale, RSQRT_WIDTH, epsilon=epsilon, max_log_bins=MAX_NORM_LOG_BINS
    )
    return Norm(scale, factor_scale, function)


def _table(
    name: str,
    low: float,
    high: float,
    unit: float,
    scale: int,
    width: float,
    *,
    max_log_bins: int,
    epsilon: float = 0.0,
) -> Function:
    """Tables of a function on [low, high] of an integer times `unit`; `width`: a bin's, relative to the low end."""

    def argument(low: float, high: float, log_bins: int, split: float = 0.0, start: float | None = None) -> Argument:
        n_bins = 2.0**log_bins
        bottom = low if start is None else start
        top = high if name == "tanh" else high * _SLACK
        bin_width = (top - bottom) / (n_bins - 2 * _GUARD_BINS - 1)
        # One step of the 24-bit argument, in integers of the share: 2^shift / multiplier.
        step = bin_width * n_bins / 2.0**TableSpec.BITS / unit
        shift = 8 + math.frexp(step)[1] - 1
        multiplier = math.floor(2.0**shift / step)
        step_real = 2.0**shift / multiplier * unit
        base = math.floor((bottom - _GUARD_BINS * bin_width) / step_real)
        spec = TableSpec(name, log_bins, base, step_real, low, top, scale + GUARD_BITS, epsilon, split)
        return Argument(spec, multiplier, shift)

    guard, guard_bits = (None, 0) if name == "tanh" else _guard(high, unit)

    reach = (high - low) / width / (low if name != "tanh" else 1.0)
    log_bins = max(4, math.ceil(math.log2(reach + 6)))
    if log_bins <= max_log_bins:
        return Function(argument(low, high, log_bins), guard=guard, guard_bits=guard_bits)
    split = math.sqrt(low * high)
    log_bins = math.ceil(math.log2(high / split / width + 8))
    if log_bins > MAX_LOG_BINS:
        raise RangeError(
            f"the calibrated range of a {name}, {low:.3g}..{high:.3g}, is too wide for its tables",
            "distil the student again, or use --engine crypten",
        )
    upper = argument(low, high, log_bins, split, start=0.0)
    coarse = upper.spec.unit * 2.0**upper.spec.bin_bits
    lower = argument(low, split + 2 * coarse, math.ceil(math.log2((split + 2 * coarse - low) / low / width + 6)))
    return Function(upper, lower, guard, guard_bits)


def _guard(high: float, unit: float) -> tuple[Argument, int]:
    """Marks from a little above `high` up to 2^(bits + 1), where 2^bits is a power of two above it."""
    bits = math.frexp(high * _SLACK / unit)[1]
    # Two bins more than to 2^(bits + 1), so that the bin that wraps around lies above it.
    shift, multiplier = bits + 1 - TableSpec.BITS + 8, 240
    spec = TableSpec(GUARD, GUARD_LOG_BINS, 0, 2.0**shift / multiplier * unit, 0.0, high, 0)
    return Argument(spec, multiplier, shift), bits
