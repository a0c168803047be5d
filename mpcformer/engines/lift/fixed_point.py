"""The scales and rings of the engine's private numbers: how many fraction bits each has, in a ring of how many bits.

The ring is a budget of 64 bits. An opening with a lifted mask brings a number back to 64; each local shift by s bits
spends s of them, and the next opening needs as many as its value has. The scales below make every chain between two
openings fit: see docs/architecture.md for the sums.
"""

from mpcformer.correlations.lifted import FACTOR_EXTRA_BITS

# Weights have as many fraction bits as the rings after them leave room for. QUERY is for queries and keys.
QUERY_WEIGHT_SCALE, VALUE_WEIGHT_SCALE, OUTPUT_WEIGHT_SCALE, INNER_WEIGHT_SCALE = 15, 19, 16, 18
POOLER_WEIGHT_SCALE, LOGIT_WEIGHT_SCALE = 20, 17
RESIDUAL_SCALE = 16
MEAN_SCALE = 19
# A normalised row enters a linear map in Z_2^56.
INPUT_SCALE, INPUT_BITS = 18, 56
# Queries and keys lie in Z_2^40. Values are lifted from 32 bits and multiplied in Z_2^48.
QUERY_SCALE, QUERY_BITS, VALUE_SCALE, VALUE_BITS = 13, 40, 13, 32
SCORE_SCALE, SCORE_BITS = 14, 24
NUMERATOR_SCALE, NUMERATOR_BITS = 23, 48
CONTEXT_SCALE, CONTEXT_BITS = 17, 24
ROW_SCALE, ATTENDED_SCALE = 12, 20
# Rows that a constant divides may add up to more than rows that tables divide, so their context has a bit more room.
CONST_CONTEXT_SCALE = 16
# `key_factor` is up to an eighth away from 1 / n. Where a constant divides rows, the values make up for that, and they
# are lifted to 64 bits.
KEY_CORRECTION_SCALE = 16
KEY_FACTOR_BITS = 2
# The activation enters the second map in Z_2^48, at a scale that makes OUTER_SCALE with the weights of the map.
ACTIVATED_BITS, OUTER_SCALE = 48, 29
# The pooler's sum is clamped, then looked up: beyond TANH_REACH, tanh is 1 to within 1.2e-5.
TANH_SCALE, TANH_BITS, TANH_REACH, TANH_TABLE_REACH = 16, 32, 6.0, 6.1
POOLED_SCALE, LOGIT_BITS = 14, 64
LOGIT_TOTAL_SCALE = POOLED_SCALE + FACTOR_EXTRA_BITS + LOGIT_WEIGHT_SCALE
EMBEDDING_BITS = 32
# Softmax: the base and its square, and a row of mean one; then the reciprocals that follow its squarings.
BASE_SCALE, FOURTH_SCALE, POWER_SCALE, POWER_BITS = 26, 20, 20, 32
DIVISOR_SCALE, LAST_DIVISOR_SCALE = 20, 18
# Tables (1 percent), the rounding of LayerNorm's factors and truncations may make a bound that follows from rows of
# length sqrt(H) this much larger.
BOUND_SLACK = 1.05


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


def square_scale(log_keys: int) -> int:
    """Return the scale of the squares of a row of mean one before their division: n^2 fits the ring at it."""
    return min(15, POWER_BITS - 3 - 2 * log_keys)
