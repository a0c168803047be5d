"""The public numbers of a model's head: from the last layer's rows to the logits."""

import math
from dataclasses import dataclass, replace

from mpcformer.approximations import gelu_form
from mpcformer.approximations.forms import LIFT, LiftPieces, LiftWindow
from mpcformer.correlations.table import MAX_LOG_BINS
from mpcformer.engines.lift.scales import fixed_point as fp
from mpcformer.engines.lift.scales.elementwise import Elementwise, argument_scale, elementwise, result_scale
from mpcformer.engines.lift.scales.fixed_point import Rings
from mpcformer.engines.lift.scales.tables import table
from mpcformer.errors import RangeError
from mpcformer.modeling.description import ModelDescription
from mpcformer.protocols import piecewise
from mpcformer.protocols.table import TableFunction
from mpcformer.ring.packing import WORD, packing_width

TANH_WIDTH = 0.12
# Logits are told to 2^-10: finer digits would tell how shares were rounded, and with it something of the weights. They
# are told in so many bits; the mean of rows needs more bits before the classifier, and leaves fewer for the logits.
LOGIT_SCALE, LOGIT_WIRE_BITS, MEAN_WIRE_BITS = 10, 24, 20
MIN_WEIGHT_SCALE, MAX_WEIGHT_SCALE = 10, 18


@dataclass(frozen=True)
class HeadScales:
    """The public numbers of a head. In one without a dense layer, the classifier takes the last layer's rows.

    Args:
        bits: the width of the ring of the classifier's product.
        row_scale: fraction bits of the rows that the classifier takes.
        weight_scale: fraction bits of the classifier's weights.
        argument_scale: fraction bits of what the dense layer makes.
        function: what is computed of that: a clamp before tanh, or another activation; None without a dense layer.
        table: the tables of tanh, if that is the activation.
        log_positions: log2 of the most positions, rounded up, where the head takes the mean of the rows; else 0.
    """

    bits: int
    row_scale: int
    weight_scale: int
    argument_scale: int = 0
    function: Elementwise | None = None
    table: TableFunction | None = None
    log_positions: int = 0

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


def head_scales(config: ModelDescription, rings: Rings) -> HeadScales:
    """Return the numbers of a model's head.

    Raises:
        UserInputError: the engine does not compute the head's activation.
        RangeError: the head takes the mean of so many rows that its weights would be too coarse.
    """
    if not config.has_dense:
        log_positions = math.ceil(math.log2(config.max_position_embeddings)) if config.pooling == "mean" else 0
        row_scale = rings.input_scale + (log_positions + fp.KEY_FACTOR_BITS if log_positions else 0)
        wire_bits = MEAN_WIRE_BITS if log_positions else LOGIT_WIRE_BITS
        return HeadScales(*_classifier(row_scale, rings.input_bits, wire_bits), log_positions=log_positions)
    if config.head_activation == "tanh":
        reach, unit = round(fp.TANH_REACH * 2**fp.TANH_SCALE), 2.0**-fp.TANH_SCALE
        ends = -fp.TANH_TABLE_REACH, fp.TANH_TABLE_REACH
        tanh = table("tanh", *ends, unit, fp.POOLED_SCALE, TANH_WIDTH, max_log_bins=MAX_LOG_BINS)
        # What the data owner sends into the last map is tagged.
        spec = replace(tanh.upper.spec, tags=config.hidden_size)
        tanh = replace(tanh, upper=replace(tanh.upper, spec=spec))
        clamp = piecewise.clamp(fp.TANH_BITS, reach)
        return HeadScales(*_classifier(fp.TABLE_SCALE), fp.TANH_SCALE, function=clamp, table=tanh)
    form = gelu_form(config.head_activation)
    realisation = form.on(LIFT)
    if not isinstance(realisation, LiftPieces | LiftWindow):
        raise form.refused(LIFT)
    scale = argument_scale(realisation)
    # What the dense layer's product has left when it is shifted to the argument's scale.
    left = rings.input_bits - (rings.input_scale + rings.pooler_weight_scale - scale)
    function = elementwise(realisation, min(realisation.bits, left // 4 * 4))
    return HeadScales(*_classifier(result_scale(realisation)), scale, function=function)


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
