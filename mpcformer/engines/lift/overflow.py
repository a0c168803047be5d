"""The model owner's proof, before a session, that no text whatever makes a value leave its ring unnoticed.

The bounds follow from the weights (`mpcformer.modeling.bounds`); attention's weights are not negative and add up to at
most one, where the row was in range. In 2quad-const, which does not divide, they add up to at most what its guard lets
pass: for some text scores may reach thirty times their usual size, and no ring would hold the square of that. A
constant LayerNorm, which does not divide by a row's deviation either, leaves rows as long as the guard lets pass.
What rounding adds to the weights is for `carried` to see.
Variances and row sums, which the bounds are too loose for, are what tables and the guard look at while running.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mpcformer.engines.lift import fixed_point as fp
from mpcformer.engines.lift.norms import STREAM_BITS, Norm
from mpcformer.engines.lift.rows import LayerScales
from mpcformer.engines.lift.scales import LiftScales
from mpcformer.errors import RangeError
from mpcformer.modeling.bounds import Bounds, check_constants, model_bounds

MAX_VALUE_SHIFT = 4
# How much larger rounding may make values: they fit in the end (`carried`) where they were thought to.
ROUNDED_VALUES = 1.01
# 2quad-const computes rows in a unit that its calibrated range decides, and divides them by c in the weights behind:
# errors grow by their ratio. At 2^7 a context entry of usual size is right to about one percent.
MAX_UNIT_TO_DIVISOR = 2.0**7


@dataclass(frozen=True)
class Room:
    """The largest size of a value for any text, and the size that its ring carries."""

    name: str
    value: float
    room: float


def value_shift(layer: LayerScales, values: torch.Tensor) -> int:
    """How many bits smaller a layer's values are computed, from their bounds (H,): the output map makes up for it.

    Only the model owner knows, so it tells nobody anything.
    """
    largest = ROUNDED_VALUES * fp.BOUND_SLACK * layer.row_slack * float(values.max())
    return max(0, math.ceil(math.log2(largest / layer.value_room)))


def rooms(constants: LiftScales, bounds: Bounds) -> Iterator[Room]:
    """Every private value that no table watches, and rows so short that their sum of squares is below 2^60."""
    yield Room("embeddings", bounds.embeddings, stream_room(constants.embedding_norm))
    activation = constants.activation
    for n, (layer, bound) in enumerate(zip(constants.layers, bounds.layers, strict=True)):
        name, values = f"layer.{n}", layer.row_slack * float(bound.values.max())
        yield Room(f"{name}.scores", bound.scores, ring_room(fp.SCORE_BITS, fp.SCORE_SCALE - layer.score_shift))
        yield Room(f"{name}.values", values, layer.value_room * 2**MAX_VALUE_SHIFT)
        yield Room(f"{name}.attended", bound.attended, stream_room(layer.attention_norm))
        yield Room(f"{name}.activation", float(bound.inner.max()), ring_room(activation.bits, activation.scale))
        yield Room(f"{name}.output", bound.output, stream_room(layer.output_norm))
    yield Room("pooler", bounds.pooler, ring_room(fp.TANH_BITS, fp.TANH_SCALE))
    yield Room("logits", bounds.logits, ring_room(fp.LOGIT_BITS, fp.LOGIT_TOTAL_SCALE))


def check_overflow(config: Any, constants: LiftScales, state: Mapping[str, torch.Tensor]) -> Bounds:
    """Refuse a model some of whose values might leave their ring for some text.

    Returns:
        The bounds.

    Raises:
        RangeError: naming the value, its bound and the room.
        UserInputError: weights and configuration differ in which LayerNorms are constant.
    """
    check_constants(config.num_hidden_layers, config.constant_norms, state)
    guarded = [layer.row_slack * layer.unit for layer in constants.layers if not layer.divided]
    norms = constants.norms
    limits = {name: norms[name].limit for name in config.constant_norms}
    bounds = model_bounds(config, state, guarded or None, limits)
    for room in rooms(constants, bounds):
        check_room(room)
    for n, (layer, bound) in enumerate(zip(constants.layers, bounds.layers, strict=True)):
        if not layer.divided:
            divisor = math.exp(float(state[f"bert.encoder.layer.{n}.attention.self.log_divisor"]))
            ratio = layer.unit * 2.0 ** value_shift(layer, bound.values) / divisor
            if not ratio <= MAX_UNIT_TO_DIVISOR:
                what = f"layer.{n}.row_mean: the calibrated rows reach so far that errors grow"
                raise RangeError(
                    f"{what} {ratio:.3g} times",
                    f"at most {MAX_UNIT_TO_DIVISOR:.0f} is carried: distil the student again, or calibrate it on more"
                    " typical sentences",
                    told=f"{what} too much",
                )
    return bounds


def check_room(room: Room) -> None:
    """Refuse a value that might leave its room.

    Raises:
        RangeError: naming the value, its bound and the room.
    """
    if not fp.BOUND_SLACK * room.value < room.room:
        raise RangeError(
            f"{room.name} may reach {room.value:.4g} for some text; its ring carries {room.room:.4g}",
            "distil the student again (an older release did not record how far its scores reach),"
            " or use --engine crypten",
            told=f"{room.name} may reach too far for some text; its ring carries {room.room:.4g}",
        )


def stream_room(norm: Norm) -> float:
    """How long a row may be before a LayerNorm."""
    return norm.unit * ring_room(STREAM_BITS, norm.scale)


def ring_room(bits: int, scale: int) -> float:
    """How large a number may be in a ring."""
    return float(2.0 ** (bits - 2 - scale))
