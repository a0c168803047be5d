"""All public numbers of a private model, which both owners derive from its configuration and its calibrated ranges."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace

from mpcformer.approximations import gelu_form
from mpcformer.approximations.forms import LIFT, GeluForm, LiftPieces, LiftSquare, LiftWindow, ShiftedSquare
from mpcformer.engines.calibrated import CalibratedRanges
from mpcformer.engines.lift.scales import fixed_point as fp
from mpcformer.engines.lift.scales.elementwise import (
    Elementwise,
    argument_scale,
    elementwise,
    largest_result,
    lift_bits,
)
from mpcformer.engines.lift.scales.elementwise import result_scale as scale_of_result
from mpcformer.engines.lift.scales.fixed_point import Rings
from mpcformer.engines.lift.scales.head import HeadScales, head_scales
from mpcformer.engines.lift.scales.norms import (
    LOG_LONGEST,
    Norm,
    compact_unit,
    largest_squares,
    model_norms,
    stream_reach,
)
from mpcformer.engines.lift.scales.rows import LayerScales, layer_scales
from mpcformer.errors import RangeError
from mpcformer.modeling.description import NORM_PARTS, ModelDescription
from mpcformer.modeling.precision import WIDE
from mpcformer.ring.packing import WORD

# The squares of longer rows would take rings of more than 64 bits.
MAX_LENGTH = 2.0 ** (LOG_LONGEST + 1)


@dataclass(frozen=True)
class Activation:
    """A form of GeLU: factor g(x) + addend, of which only g is private; the map behind it carries the rest.

    Args:
        scale: fraction bits of x.
        bits: width of the ring in which x is opened.
        result_shift: bits that g(x) is shifted down before the map.
        weight_scale: fraction bits of the map's weights.
        function: g; None: the square (x + offset 2^-scale)^2.
        offset: what is added to x at `scale` before it is squared.
        factor, addend: what the map carries.
        lift: the width of the ring in which g(x) is computed.
    """

    scale: int
    bits: int
    result_shift: int
    weight_scale: int
    function: Elementwise | None
    offset: int = 0
    factor: float = 1.0
    addend: float = 0.0
    lift: int = WORD

    @property
    def square(self) -> ShiftedSquare | None:
        """Return g as a shifted square, or None where it is none."""
        return ShiftedSquare(1.0, self.offset * 2.0**-self.scale, 0.0) if self.function is None else None


@dataclass(frozen=True)
class LiftScales:
    """Everything public that the private computation needs besides shapes."""

    embedding_norm: Norm
    layers: tuple[LayerScales, ...]
    activation: Activation
    head: HeadScales
    rings: Rings = fp.WIDE

    @property
    def norms(self) -> dict[str, Norm]:
        """The LayerNorms by name."""
        named = {"embeddings": self.embedding_norm}
        for n, layer in enumerate(self.layers):
            named |= {f"layer.{n}.attention": layer.attention_norm, f"layer.{n}.output": layer.output_norm}
        return named

    def weight_bits(self, name: str) -> int:
        """Return the width of the ring in which a weight is masked, and in which its product lies."""
        return self.head.bits if name == "classifier" else self.rings.weight_bits(name)

    def limits(self) -> dict[str, tuple[float, float]]:
        """Return by the name of its calibrated range the interval in which a number is never marked.

        A number that is a little outside may be marked, and one that is far outside always is.
        """
        limits = {f"{name}.variance": norm.variance_limits for name, norm in self.norms.items()}
        for n, layer in enumerate(self.layers):
            limits[f"layer.{n}.{'scores' if layer.squarings else 'row_mean'}"] = layer.row_limits
        return limits

    def digest(self) -> str:
        """Return the hex SHA-256 of all numbers: owners whose numbers differ must not start."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def lift_scales(config: ModelDescription, bounds: CalibratedRanges) -> LiftScales:
    """Derive the scales of a model.

    Args:
        config: the model's description.
        bounds: calibrated (low, high) by name, see mpcformer/modeling/ranges.py.

    Raises:
        RangeError: a range is missing, or wider than tables carry.
        UserInputError: the engine does not compute a form.
    """
    n_layers, hidden = config.num_hidden_layers, config.hidden_size
    rings = fp.WIDE if config.precision == WIDE else compact_rings(n_layers, hidden, bounds)
    norms = model_norms(config, bounds, rings)
    last = f"layer.{n_layers - 1}.{NORM_PARTS[-1]}"
    if config.has_dense and norms[last].function is not None:
        norms[last] = replace(norms[last], divides_later=True)
    layers = tuple(
        layer_scales(name, [norms[f"{name}.{part}"] for part in NORM_PARTS], bounds, config.softmax, rings)
        for name in (f"layer.{n}" for n in range(n_layers))
    )
    head = head_scales(config, rings, norms[last], bounds)
    return LiftScales(norms["embeddings"], layers, activation(gelu_form(config.gelu), rings), head, rings)


def compact_rings(n_layers: int, hidden_size: int, bounds: CalibratedRanges) -> Rings:
    """Return the compact rings of a model, from how long the rows of its streams can be for any text.

    Raises:
        RangeError: the ranges do not tell that, or the rows are too long.
    """
    lengths, squares = [], []
    for part in NORM_PARTS:
        sizes, sums = [], []
        for name in (f"layer.{n}.{part}" for n in range(n_layers)):
            unit = compact_unit(name, bounds, fp.compact(1.0, 1.0).attention)
            sizes.append(stream_reach(name, bounds) / unit)
            sums.append(largest_squares(name, hidden_size, bounds) / unit**2)
        lengths.append(max(sizes))
        squares.append(max(sums))
    if max(lengths) >= MAX_LENGTH or max(squares) >= MAX_LENGTH**2:
        raise RangeError(
            f"rows of {max(lengths):.3g} for some text are too long for compact rings",
            "distil the student again, or with --weight-bits all",
        )
    return fp.compact(*lengths, *squares)


def activation(form: GeluForm, rings: Rings = fp.WIDE) -> Activation:
    """Return how the engine computes a form of GeLU.

    Raises:
        UserInputError: the engine does not compute this form, or its numbers do not fit the rings.
    """
    realisation, lift = form.on(LIFT), WORD
    if isinstance(realisation, LiftSquare):
        square, function = realisation.square, None
        scale, bits, down = realisation.scale, realisation.bits, realisation.result_shift
        if rings.is_compact:
            scale, bits, down, lift = rings.square_scale, rings.square_bits, rings.square_shift, rings.square_lift
        offset, result_scale = round(square.shift * 2.0**scale), 2 * scale
        largest = ((1 << (bits - 2)) + offset) ** 2
        folded = offset, square.factor, square.offset
    elif isinstance(realisation, LiftPieces | LiftWindow):
        scale, bits, down = argument_scale(realisation), realisation.bits, realisation.result_shift
        function = elementwise(realisation, bits, rings.outer_bits + down)
        result_scale, largest, lift = scale_of_result(realisation), largest_result(function), lift_bits(function)
        folded = 0, 1.0, 0.0
    else:
        raise form.refused(LIFT)
    # The sum must be exact in the large ring, and what is left of it after the shift must fit the ring of the map.
    if largest >= 1 << (lift - 2) or largest >> down >= 1 << (rings.outer_bits - 1):
        raise form.refused(LIFT)
    weight_scale = rings.outer_scale - (result_scale - down)
    return Activation(scale, bits, down, weight_scale, function, *folded, lift=lift)
