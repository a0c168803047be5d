"""The ranges of every private non-linearity's input, recorded on training data and kept with the student.

Their names, for layer N, are: embeddings.variance; layer.N.scores; layer.N.row_mean (the mean of a row's unmasked
numerators); layer.N.attention.variance; layer.N.activation; layer.N.output.variance; layer.N.hidden; pooler.tanh;
logits. Only real tokens count. More ranges follow from the weights: layer.N.score_reach, the power of two below
which scores stay for any text, and layer.N.attended_reach and layer.N.output_reach, powers of two below which the
lengths of rows before the layer's two LayerNorms stay. In the wide precision they are recorded only of rows that may be
longer than LONG_ROW. pooler.reach is the power of two below which the argument of the head's activation stays, where
the head has one. Both owners and the dealer learn the ranges, because they are public model data.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mpcformer.errors import RangeError, UserInputError
from mpcformer.files import read_json, write_json
from mpcformer.modeling.bounds import WorstCase
from mpcformer.modeling.folder import RANGES
from mpcformer.modeling.precision import COMPACT, WIDE

SCORE_REACH = "score_reach"
# The length of rows before the LayerNorm behind attention, and before that behind GeLU.
STREAM_REACHES = ("attended_reach", "output_reach")
POOLER_REACH = "pooler.reach"
REACHES = (SCORE_REACH, *STREAM_REACHES, POOLER_REACH)
REACH_SLACK = 1.1
# Wide rings carry rows up to this length in any case.
LONG_ROW = 2.0**12
# Rows before a constant norm may have this many times the largest variance that was seen, and are refused beyond. It is
# the margin of all ranges, 1.5, times the power of two in which a private guard compares.
VARIANCE_REACH = 3.0
MAX_VARIANCE = 1e12


@dataclass
class Ranges:
    """The calibrated ranges of a student.

    Args:
        bounds: (low, high) by name.
        n_examples: how many sentences they were recorded on.
    """

    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)
    n_examples: int = 0

    def observe(self, name: str, values: torch.Tensor, valid: torch.Tensor) -> None:
        """Widen the range of `name` by the valid values, as an `Observer` of the student."""
        if valid.any():
            # Picking out the valid values would copy them, and all training texts come by here.
            seen = values.detach().float()
            low, high = (
                float(seen.masked_fill(~valid, math.inf).amin()),
                float(seen.masked_fill(~valid, -math.inf).amax()),
            )
            before = self.bounds.get(name, (math.inf, -math.inf))
            self.bounds[name] = (min(before[0], low), max(before[1], high))

    def covering(self, other: "Ranges") -> "Ranges":
        """Return ranges that contain these and the other ones."""
        joined = Ranges(dict(self.bounds), self.n_examples + other.n_examples)
        for name, (low, high) in other.bounds.items():
            before = joined.bounds.get(name, (math.inf, -math.inf))
            joined.bounds[name] = (min(before[0], low), max(before[1], high))
        return joined

    def note_reach(self, bounds: WorstCase, precision: str = WIDE) -> None:
        """Record how far each layer's scores reach, with REACH_SLACK, rounded up to tell little of the weights.

        Also record how long the rows of the residual stream can be, in the wide precision only where that is much.
        """
        for n, layer in enumerate(bounds.layers):
            reach = _reach(layer.scores)
            self.bounds[f"layer.{n}.{SCORE_REACH}"] = (-reach, reach)
            for name, length in zip(STREAM_REACHES, (layer.attended, layer.output), strict=True):
                if precision == COMPACT or length > LONG_ROW:
                    self.bounds[f"layer.{n}.{name}"] = (0.0, _reach(length))
        if bounds.pooler:
            reach = _reach(bounds.pooler)
            self.bounds[POOLER_REACH] = (-reach, reach)

    def norm_limits(self, names: Sequence[str]) -> dict[str, float]:
        """Return by name the largest variance that each of these constant LayerNorms may meet.

        Raises:
            RangeError: the rows before one of them grew beyond all numbers.
        """
        return {name: norm_limit(name, self.bounds[f"{name}.variance"][1]) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object with sorted names."""
        return {
            "n_examples": self.n_examples,
            "bounds": {name: list(self.bounds[name]) for name in sorted(self.bounds)},
        }

    def save(self, folder: Path) -> None:
        """Write ranges.json."""
        write_json(folder / RANGES, self.to_json())


def _reach(largest: float) -> float:
    return float(2.0 ** math.ceil(math.log2(max(1.0, REACH_SLACK * largest))))


def norm_limit(name: str, largest: float) -> float:
    """Return the largest variance that a constant LayerNorm may meet, from the largest variance that was seen.

    Raises:
        RangeError: rows grew beyond all numbers.
    """
    limit = VARIANCE_REACH * largest
    if not 0 <= limit < MAX_VARIANCE:
        raise RangeError(
            f"{name}.variance is {largest:.3g} on the training data",
            "distil the student again, with a lower learning rate or fewer constant LayerNorms",
        )
    return limit


def load_ranges(folder: Path) -> Ranges:
    """Read ranges.json.

    Raises:
        UserInputError: the file is missing, or holds no finite ordered pairs.
    """
    path = folder / RANGES
    if not path.is_file():
        raise UserInputError(
            f"{folder} is no student of a task: it has no {RANGES}",
            "give a folder that mpcformer distill made; a general student is only a start: distill --from",
        )
    value = read_json(path)
    try:
        bounds = {str(name): (float(low), float(high)) for name, (low, high) in value["bounds"].items()}
        n_examples = int(value["n_examples"])
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserInputError(f"{path} is not a ranges file: {error!r}", "distil the student again") from None
    for name, (low, high) in bounds.items():
        if not -math.inf < low <= high < math.inf:
            raise UserInputError(f"{path}: range {name} = {low}..{high} is not finite", "distil the student again")
    return Ranges(bounds, n_examples)
