"""Ridge regression of a linear map, in closed form, on rows that come bit by bit."""

from collections.abc import Iterable

import torch
from torch import nn

# Weights of the old map against the data, as shares of the inputs' mean square.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def refit(linear: nn.Linear, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Ridge regression of wanted outputs (T, O) on inputs (T, I), drawn towards the present map.

    How strongly is chosen by fitting on every other batch and looking at the rest; then all batches count.
    """
    halves = [_Sums(), _Sums()]
    for index, (inputs, wanted) in enumerate(pairs):
        halves[index % 2].add(inputs, wanted - linear(inputs))
    seen, unseen = halves
    ridge = min(RIDGES, key=lambda r: unseen.error(seen.solve(r))) if unseen.n else RIDGES[len(RIDGES) // 2]
    change = seen.plus(unseen).solve(ridge).to(linear.weight)  # (I + 1, O)
    linear.weight.add_(change[:-1].t())
    linear.bias.add_(change[-1])


class _Sums:
    """What a least squares fit of rests (T, O) by inputs (T, I) and a constant needs to know of them."""

    def __init__(self) -> None:
        self.n = 0
        self.gram = self.mixed = self.square = torch.zeros((), dtype=torch.float64)

    def add(self, inputs: torch.Tensor, rest: torch.Tensor) -> None:
        """Count some rows."""
        inputs = nn.functional.pad(inputs, (0, 1), value=1.0)
        self.n += len(inputs)
        self.gram = self.gram.to(inputs.device) + (inputs.t() @ inputs).double()
        self.mixed = self.mixed.to(inputs.device) + (inputs.t() @ rest).double()
        self.square = self.square.to(inputs.device) + rest.double().square().sum()

    def plus(self, other: "_Sums") -> "_Sums":
        """Of both together."""
        both = _Sums()
        both.n, both.square = self.n + other.n, self.square + other.square
        both.gram, both.mixed = self.gram + other.gram, self.mixed + other.mixed
        return both

    def solve(self, ridge: float) -> torch.Tensor:
        """The map (I + 1, O), its last row the constant, which the ridge does not draw to zero."""
        draw = torch.full_like(self.gram[0], ridge * float(self.gram.diagonal()[:-1].mean()))
        draw[-1] = 0.0
        solution: torch.Tensor = torch.linalg.solve(self.gram + draw.diag(), self.mixed)
        return solution

    def error(self, change: torch.Tensor) -> float:
        """Summed squared error of a map on these rows."""
        return float(self.square - 2 * (change * self.mixed).sum() + (change * (self.gram @ change)).sum())
