"""The public constants of a private BERT: how far each private value is scaled, and how each Newton iteration starts.

All follow from the configuration and the calibrated ranges, which both owners know, by exactly rounded arithmetic.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass

from mpcformer.engines.calibrated import CalibratedRanges, calibrated, even_shift, widened
from mpcformer.engines.crypten.newton import NewtonPlan, reciprocal_plan, rsqrt_plan
from mpcformer.errors import RangeError
from mpcformer.modeling.configuration import norm_names
from mpcformer.modeling.ranges import SCORE_REACH

# A value below 2^13 leaves 2^30 for sums of products at 16 fractional bits.
MAX_ACTIVATION = 2.0**13


@dataclass(frozen=True)
class NormConstants:
    """LayerNorm: the variance is scaled by 2^-shift (even), then inverted.

    Args:
        plan: of the inversion; None: a constant norm, which has none.
        limit: a constant norm's largest variance.
    """

    shift: int
    plan: NewtonPlan | None
    limit: float = 0.0


@dataclass(frozen=True)
class LayerConstants:
    """One encoder layer.

    Args:
        score_scale: the scores are computed 2^-score_scale times their size.
        score_bound: softmax form only, the largest |score| expected.
        row: the reciprocal of the row sum divided by a power of two near the number of keys; None: not divided.
        row_offset: 2ReLU's epsilon, scaled; it counts once per key, as the numerators do.
    """

    score_scale: int
    score_bound: float
    row: NewtonPlan | None
    row_offset: float
    attention_norm: NormConstants
    output_norm: NormConstants


@dataclass(frozen=True)
class ModelConstants:
    """Everything public that is no shape."""

    embedding_norm: NormConstants
    layers: tuple[LayerConstants, ...]
    tanh_bound: float

    def digest(self) -> str:
        """Hex SHA-256: owners whose constants differ must not start."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def model_constants(
    *, softmax: str, n_layers: int, bounds: CalibratedRanges, row_epsilon: float, constant_norms: Collection[str] = ()
) -> ModelConstants:
    """Derive the constants of a model.

    Args:
        softmax: softmax, 2quad, 2quad-const or 2relu.
        n_layers: encoder layers.
        bounds: calibrated (low, high) by name, see mpcformer/modeling/ranges.py.
        row_epsilon: added to the mean of 2ReLU's row.
        constant_norms: names of LayerNorms that divide by a constant.

    Raises:
        RangeError: a range is missing, not finite, or outside what fixed point carries.
    """
    for name, (low, high) in bounds.items():
        if not name.endswith(SCORE_REACH) and not (-MAX_ACTIVATION < low <= high < MAX_ACTIVATION):
            raise RangeError(
                f"calibrated range {name} = {low}..{high} does not fit -{MAX_ACTIVATION:.0f}..{MAX_ACTIVATION:.0f}",
                "the student diverged or its ranges.json is damaged: distil it again",
            )
    norms = {name: _norm(bounds, name, name in constant_norms) for name in norm_names(n_layers)}
    layers = tuple(_layer(softmax, f"layer.{n}", bounds, row_epsilon, norms) for n in range(n_layers))
    low, high = calibrated(bounds, "pooler.tanh")
    tanh_bound = 2 * max(abs(low), abs(high), 1.0)
    return ModelConstants(norms["embeddings"], layers, tanh_bound)


def _norm(bounds: CalibratedRanges, name: str, constant: bool) -> NormConstants:
    low, high = widened(*calibrated(bounds, f"{name}.variance"))
    if constant:
        if not high > 0:
            raise RangeError(f"calibrated range {name}.variance is not positive", "distil the student again")
        return NormConstants(0, None, high)
    shift = even_shift(low, high)
    factor = 2.0**-shift
    return NormConstants(shift, rsqrt_plan(low * factor, high * factor))


def _layer(
    softmax: str, name: str, bounds: CalibratedRanges, row_epsilon: float, norms: Mapping[str, NormConstants]
) -> LayerConstants:
    score_scale, bound, offset, row = 0, 0.0, 0.0, None
    if softmax == "softmax":
        bound = 1.5 * max(abs(edge) for edge in calibrated(bounds, f"{name}.scores"))
        row = reciprocal_plan(0.5**10, 1.05)
    elif softmax == "2quad-const":
        # Usual rows are far below the highest, and must not be far below one.
        high = calibrated(bounds, f"{name}.row_mean")[1]
        score_scale = even_shift(high / 64, high) // 2
    else:
        low, high = widened(*calibrated(bounds, f"{name}.row_mean"))
        if softmax == "2quad":
            score_scale = even_shift(low, high) // 2
            factor = 4.0**-score_scale
        else:
            low, high = low + row_epsilon, high + row_epsilon
            score_scale = even_shift(low, high)
            factor = 2.0**-score_scale
            offset = row_epsilon * factor
        low, high = low * factor, high * factor
        # The row sum is divided by a power of two between n and 2 n instead of by the number of keys n.
        row = reciprocal_plan(low / 2, high)
    return LayerConstants(
        score_scale=score_scale,
        score_bound=bound,
        row=row,
        row_offset=offset,
        attention_norm=norms[f"{name}.attention"],
        output_norm=norms[f"{name}.output"],
    )
