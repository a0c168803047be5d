"""The public numbers of a model's head: from the last layer's rows to the logits.

A dense layer takes the last rows before they are divided by their deviation. So its product is made while the factor of
each row is found, and the factor multiplies what the layer makes.
"""

import math
from dataclasses import dataclass, replace

from mpcformer.approximations import gelu_form
from mpcformer.approximations.forms import LIFT, LiftPieces, LiftWindow
from mpcformer.correlations.table import MAX_LOG_BINS
from mpcformer.engines.calibrated import CalibratedRanges
from mpcformer.engines.lift.scales import fixed_point as fp
from mpcformer.engines.lift.scales.elementwise import Elementwise, argument_scale, elementwise, result_scale
from mpcformer.engines.lift.scales.fixed_point import Rings
from mpcformer.engines.lift.scales.norms import Norm
from mpcformer.engines.lift.scales.tables import table
from mpcformer.errors import RangeError
from mpcformer.modeling.description import ModelDescription
from mpcformer.modeling.ranges import POOLER_REACH
from mpcformer.protocols.table import TableFunction
from mpcformer.ring.packing import WORD, packing_width

# Two bins of the table of tanh are at most so wide, and its values are off by so much at the most.
TANH_WIDTH, TANH_ERROR = 0.3, 2.5e-4
# The dense layer reaches no further than the student's ranges say; those of older students do not say it.
OLD_REACH, MAX_REACH = 64.0, 512.0
# What the dense layer makes is opened in so many bits. Products with a row's factor are shifted by at most MOST_DOWN
# bits, which leaves the ring of the argument.
DENSE_BITS, MOST_DOWN = 48, 28
# Logits are told to 2^-10: finer digits would tell how shares were rounded, and with it something of the weights. They
# are told in so many bits; the mean of rows needs more bits before the classifier, and leaves fewer for the logits.
LOGIT_SCALE, LOGIT_WIRE_BITS, MEAN_WIRE_BITS = 10, 24, 20
MIN_WEIGHT_SCALE, MAX_WEIGHT_SCALE = 10, 18


@dataclass(frozen=True)
class DenseScales:
    """The public numbers of a head's dense layer and of its activation.

    Args:
        product_scale: fraction bits of the product of a row, which is not divided yet, and the weights.
        scale: fraction bits to which the product is shifted before it is opened.
        argument_scale: fraction bits of the activation's argument.
        reach: how large an argument may be.
        function: the activation; None if it is tanh.
        table: the table of tanh, if that is the activation.
        bits: the width of the ring in which the product is opened.
    """

    product_scale: int
    scale: int
    argument_scale: int
    reach: float
    function: Elementwise | None = None
    table: TableFunction | None = None
    bits: int = DENSE_BITS


@dataclass(frozen=True)
class HeadScales:
    """The public numbers of a head. In one without a dense layer, the classifier takes the last layer's rows.

    Args:
        bits: the width of the ring of the classifier's product.
        row_scale: fraction bits of the rows that the classifier takes.
        weight_scale: fraction bits of the classifier's weights.
        dense: the numbers of the dense layer, if there is one.
        log_positions: log2 of the most positions, rounded up, where the head takes the mean of the rows; else 0.
    """

    bits: int
    row_scale: int
    weight_scale: int
    dense: DenseScales | None = None
    log_positions: int = 0

    @property
    def is_tagged(self) -> bool:
        """Whether what the classifier takes comes from tables, which tag it."""
        return self.dense is not None and self.dense.table is not None

    @property
    def total_scale(self) -> int:
        """The scale of the classifier's product."""
        return self.row_scale + self.weight_scale

    @property
    def low_bits(self) -> int:
        """The number of the lowest bits of the classifier's product that nobody is told."""
        return self.total_scale - LOGIT_SCALE

    @property
    def wire_bits(self) -> int:
        """The number of bits in which the model owner tells its share of a logit."""
        return self.bits - self.low_bits

    @property
    def logit_room(self) -> float:
        """How large a logit may be."""
        return float(2.0 ** (self.bits - 2 - self.total_scale))

    def row_factor(self, n_tokens: int) -> int:
        """Return what the sum of a sentence's rows is multiplied by where the head takes their mean."""
        return fp.key_factor(n_tokens, self.log_positions)

    def row_ratio(self, n_tokens: int) -> float:
        """Return by how much the mean of a sentence's rows comes out too large where the head takes it."""
        if not self.log_positions:
            return 1.0
        return self.row_factor(n_tokens) * n_tokens / 2.0 ** (self.log_positions + fp.KEY_FACTOR_BITS)


def head_scales(config: ModelDescription, rings: Rings, norm: Norm, bounds: CalibratedRanges) -> HeadScales:
    """Return the numbers of a model's head.

    Args:
        config: the model's description.
        rings: those of the model.
        norm: the last LayerNorm.
        bounds: calibrated (low, high) by name.

    Raises:
        UserInputError: the engine does not compute the head's activation.
        RangeError: the head takes the mean of so many rows that its weights would be too coarse, or the dense layer's
            results may be too large.
    """
    if not config.has_dense:
        log_positions = math.ceil(math.log2(config.max_position_embeddings)) if config.pooling == "mean" else 0
        row_scale = rings.input_scale + (log_positions + fp.KEY_FACTOR_BITS if log_positions else 0)
        wire_bits = MEAN_WIRE_BITS if log_positions else LOGIT_WIRE_BITS
        return HeadScales(*_classifier(row_scale, rings.input_bits, wire_bits), log_positions=log_positions)
    if config.head_activation == "tanh":
        reach = _reach(bounds, MAX_REACH)
        dense, argument_bits = _dense(fp.TANH_SCALE, reach, norm, rings)
        unit = 2.0**-fp.TANH_SCALE
        tanh = table(
            "tanh", -reach, reach, unit, fp.POOLED_SCALE, TANH_WIDTH, max_log_bins=MAX_LOG_BINS, ring=argument_bits
        )
        # What the data owner sends into the last map is tagged.
        spec = replace(tanh.upper.spec, tags=config.hidden_size)
        tanh = replace(tanh, upper=replace(tanh.upper, spec=spec))
        return HeadScales(*_classifier(fp.TABLE_SCALE), dense=replace(dense, table=tanh))
    form = gelu_form(config.head_activation)
    realisation = form.on(LIFT)
    if not isinstance(realisation, LiftPieces | LiftWindow):
        raise form.refused(LIFT)
    scale = argument_scale(realisation)
    bits = realisation.bits
    if isinstance(realisation, LiftPieces):
        # In a smaller ring less is counted on the wrong side of a threshold.
        reach = min(_reach(bounds), 2.0 ** (bits - 2 - scale))
        bits = packing_width(scale + 2 + math.ceil(math.log2(reach)))
    reach = 2.0 ** (bits - 2 - scale)
    dense, argument_bits = _dense(scale, reach, norm, rings)
    if argument_bits < bits:
        raise form.refused(LIFT)
    return HeadScales(
        *_classifier(result_scale(realisation)), dense=replace(dense, function=elementwise(realisation, bits))
    )


def _reach(bounds: CalibratedRanges, most: float = math.inf) -> float:
    """Return how large an argument of the head's activation may be for any text.

    Raises:
        RangeError: it is below one, which nobody records, or larger than `most`.
    """
    _, reach = bounds.get(POOLER_REACH, (0.0, OLD_REACH))
    if not 1 <= reach <= most:
        raise RangeError(
            f"{POOLER_REACH}: the dense layer may reach {reach:.3g} for some text: 1 to {most:.0f} is carried",
            "distil the student again, with a lower learning rate or another seed, or use --engine crypten",
        )
    return reach


def _dense(argument_scale: int, reach: float, norm: Norm, rings: Rings) -> tuple[DenseScales, int]:
    """Return the numbers of a dense layer, and the width of the ring in which the activation's argument is right.

    Args:
        argument_scale: fraction bits of the argument.
        reach: how large it may be.
        norm: the LayerNorm before.
        rings: those of the model.

    Raises:
        RangeError: results for rows that no table marks might be too large.
    """
    ring, product_scale = rings.weight_bits("pooler"), norm.scale + rings.pooler_weight_scale
    # The largest deviation of a row that no table marks; tables are right a little beyond.
    largest = 1.0 if norm.function is None else math.sqrt(norm.function.limits[1])
    room = DENSE_BITS - 3 - math.ceil(math.log2(reach * largest))
    scale = min(product_scale, room, argument_scale + MOST_DOWN - norm.factor_scale)
    if scale < product_scale - (ring - DENSE_BITS) or scale + norm.factor_scale < argument_scale:
        raise RangeError(
            f"rows of deviation {largest * norm.unit:.3g} and a head whose arguments may reach {reach:.3g} do not fit"
            f" a ring of {DENSE_BITS} bits together",
            "distil the student again, or use --engine crypten",
        )
    argument_bits = WORD - (scale + norm.factor_scale - argument_scale)
    return DenseScales(product_scale, scale, argument_scale, reach), argument_bits


def _classifier(row_scale: int, most_bits: int = WORD, wire_bits: int = LOGIT_WIRE_BITS) -> tuple[int, int, int]:
    """Return bits, row_scale and weight_scale of a classifier whose rows have `row_scale` over Z_2^most_bits.

    Raises:
        RangeError: the weights would be too coarse.
    """
    for weight_scale in range(MAX_WEIGHT_SCALE, MIN_WEIGHT_SCALE - 1, -1):
        bits = row_scale + weight_scale - LOGIT_SCALE + wire_bits
        if bits <= most_bits and bits == packing_width(bits):
            return bits, row_scale, weight_scale
    raise RangeError(
        f"max_position_embeddings: the mean of so many rows leaves {most_bits} bits too little room for the last map",
        "distil the student again with --weight-bits all, or give a checkpoint with fewer positions",
    )
