"""Which positions of a text a layer gets, and which it keeps: of a student with strides, fewer from layer to layer."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Positions:
    """The positions of one layer.

    Args:
        n: how many the layer gets, L.
        step: how far apart in the text they are.
        stride: of how many it keeps one.
    """

    n: int
    step: int
    stride: int

    @property
    def n_kept(self) -> int:
        """The number of positions that the layer keeps, Q."""
        return -(-self.n // self.stride)


def positions(config: Any, index: int, n_positions: int) -> Positions:
    """Return the positions of a layer. If the head takes the first row alone, the last layer keeps no other.

    Args:
        config: the public configuration.
        index: the layer's.
        n_positions: how many the text has, with padding.
    """
    before, after = config.steps[index]
    n = -(-n_positions // before)
    is_last = index == config.num_hidden_layers - 1
    return Positions(n, before, n if is_last and config.pooling == "first" else after // before)
