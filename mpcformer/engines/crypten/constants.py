"""The public numbers of a private BERT: how far each private value is scaled, and how each Newton iteration starts.

They follow from the configuration and the calibrated ranges, which both owners know, by exactly rounded arithmetic.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass

from mpcformer.approximations import ConstantRows, ExponentialRows, SoftmaxForm, gelu_form, softmax_form
from mpcformer.approximations.forms import CRYPTEN
from mpcformer.engines.base import PublicModel
from mpcformer.engines.calibrated import CalibratedRanges, calibrated, even_shift, widened
from mpcformer.engines.crypten.newton import NewtonPlan, reciprocal_plan, rsqrt_plan
from mpcformer.errors import RangeError
from mpcformer.modeling.description import norm_names
from mpcformer.modeling.ranges import REACHES

# The reciprocal of the exact softmax's row, whose largest numerator is one: rows from 2^-10 to one have room.
EXPONENTIAL_ROW = (0.5**10, 1.05)
SCORE_MARGIN = 1.5
# A value below 2^13 leaves 2^30 for sums of products at 16 fractional bits.
MAX_ACTIVATION = 2.0**13


@dataclass(frozen=True)
class NormScales:
    """The public numbers of a LayerNorm, whose variance is scaled by 2^-shift and then inverted.

    Args:
        shift: an even number.
        plan: the Newton iteration of the inverse root; None for a constant norm, which needs none.
        limit: the largest variance of a constant norm.
    """

    shift: int
    plan: NewtonPlan | None
    limit: float = 0.0


@dataclass(frozen=True)
class LayerScales:
    """The public numbers of one encoder layer.

    Args:
        score_scale: scores are computed 2^-score_scale times their size.
        score_bound: the largest |score| that is expected, for the exact softmax only.
        row: the Newton iteration for the reciprocal of the row sum, which is divided by a power of two near the number
            of keys; None for rows that are not divided.
        row_offset: what is added to a row's mean, scaled as numerators are; it counts once a key, as they do.
        attention_norm, output_norm: the two LayerNorms.
        row_unit: the mean of a row's numerators that is computed as 1.
    """

    score_scale: int
    score_bound: float
    row: NewtonPlan | None
    row_offset: float
    attention_norm: NormScales
    output_norm: NormScales
    row_unit: float


@dataclass(frozen=True)
class NewtonScales:
    """Everything public that the private computation needs besides shapes."""

    embedding_norm: NormScales
    layers: tuple[LayerScales, ...]
    tanh_bound: float

    def digest(self) -> str:
        """Return the hex SHA-256 of all numbers: owners whose numbers differ must not start."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def constants_of(public: PublicModel) -> NewtonScales:
    """Derive the public numbers of a model from what both owners know of it; see `model_constants`."""
    return model_constants(
        gelu=public.config.gelu,
        softmax=public.config.softmax,
        n_layers=public.config.num_hidden_layers,
        bounds=public.ranges.bounds,
        constant_norms=public.config.constant_norms,
        head_activation=public.config.head_activation,
    )


def model_constants(
    *,
    gelu: str,
    softmax: str,
    n_layers: int,
    bounds: CalibratedRanges,
    constant_norms: Collection[str] = (),
    head_activation: str = "tanh",
) -> NewtonScales:
    """Derive the public numbers of a model.

    Args:
        gelu, softmax: the forms.
        n_layers: the number of encoder layers.
        bounds: calibrated (low, high) by name, see mpcformer/modeling/ranges.py.
        constant_norms: names of the LayerNorms that divide by a constant.
        head_activation: what stands behind the head's dense layer.

    Raises:
        RangeError: a range is missing, not finite, or outside what fixed point carries.
        UserInputError: the engine does not compute a form.
    """
    gelu_form(gelu).on(CRYPTEN)
    for name, (low, high) in bounds.items():
        if not name.endswith(REACHES) and not (-MAX_ACTIVATION < low <= high < MAX_ACTIVATION):
            raise RangeError(
                f"calibrated range {name} = {low}..{high} does not fit -{MAX_ACTIVATION:.0f}..{MAX_ACTIVATION:.0f}",
                "the student diverged or its ranges.json is damaged: distil it again",
            )
    norms = {name: _norm(bounds, name, name in constant_norms) for name in norm_names(n_layers)}
    layers = tuple(_layer(softmax_form(softmax), f"layer.{n}", bounds, norms) for n in range(n_layers))
    low, high = calibrated(bounds, "pooler.tanh") if head_activation == "tanh" else (0.0, 0.0)
    tanh_bound = 2 * max(abs(low), abs(high), 1.0)
    return NewtonScales(norms["embeddings"], layers, tanh_bound)


def _norm(bounds: CalibratedRanges, name: str, constant: bool) -> NormScales:
    low, high = widened(*calibrated(bounds, f"{name}.variance"))
    if constant:
        if not high > 0:
            raise RangeError(f"calibrated range {name}.variance is not positive", "distil the student again")
        return NormScales(0, None, high)
    shift = even_shift(low, high)
    factor = 2.0**-shift
    return NormScales(shift, rsqrt_plan(low * factor, high * factor))


def _layer(form: SoftmaxForm, name: str, bounds: CalibratedRanges, norms: Mapping[str, NormScales]) -> LayerScales:
    form.on(CRYPTEN)
    rows, score_scale, bound, offset, row = form.rows, 0, 0.0, 0.0, None
    degree = 1 if isinstance(rows, ExponentialRows) else rows.degree
    if isinstance(rows, ExponentialRows):
        bound = SCORE_MARGIN * max(abs(edge) for edge in calibrated(bounds, f"{name}.{rows.needs}"))
        row = reciprocal_plan(*EXPONENTIAL_ROW)
    elif isinstance(rows, ConstantRows):
        # Usual rows are far below the highest, and must not be far below one.
        high = calibrated(bounds, f"{name}.{rows.needs}")[1]
        score_scale = even_shift(high / 64, high) // degree
    else:
        low, high = widened(*calibrated(bounds, f"{name}.{rows.needs}"))
        low, high = low + rows.epsilon, high + rows.epsilon
        score_scale = even_shift(low, high) // degree
        factor = 2.0 ** -(degree * score_scale)
        offset = rows.epsilon * factor
        # The row sum is divided by a power of two between n and 2 n instead of by the number of keys n.
        row = reciprocal_plan(low * factor / 2, high * factor)
    return LayerScales(
        score_scale=score_scale,
        score_bound=bound,
        row=row,
        row_offset=offset,
        attention_norm=norms[f"{name}.attention"],
        output_norm=norms[f"{name}.output"],
        row_unit=2.0 ** (degree * score_scale),
    )
