"""Ridge regression of a linear map, in closed form, on rows that arrive in batches."""

from collections.abc import Iterable

import torch
from torch import nn

# The strengths of the penalty that are tried, as fractions of the inputs' mean square.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def refit(linear: nn.Linear, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Fit a linear map to wanted outputs by ridge regression, which penalises the distance from the present map.

    The strength of the penalty is chosen by a fit on every other batch that is tested on the rest; the final fit then
    uses all batches.

    Args:
        linear: the map; its weight and bias are replaced.
        pairs: inputs (T, I) and wanted outputs (T, O).
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
    """Sums over rows from which a least squares fit of residuals (T, O) to inputs (T, I) and a constant follows."""

    def __init__(self) -> None:
        self.n = 0
        self.gram = self.mixed = self.square = torch.zeros((), dtype=torch.float64)

    def add(self, inputs: torch.Tensor, residuals: torch.Tensor) -> None:
        """Count some rows."""
        inputs = nn.functional.pad(inputs, (0, 1), value=1.0)
        self.n += len(inputs)
        self.gram = self.gram.to(inputs.device) + (inputs.t() @ inputs).double()
        self.mixed = self.mixed.to(inputs.device) + (inputs.t() @ residuals).double()
        self.square = self.square.to(inputs.device) + residuals.double().square().sum()

    def plus(self, other: "_Sums") -> "_Sums":
        """Return the sums over the rows of both."""
        both = _Sums()
        both.n, both.square = self.n + other.n, self.square + other.square
        both.gram, both.mixed = self.gram + other.gram, self.mixed + other.mixed
        return both

    def solve(self, ridge: float) -> torch.Tensor:
        """Return the fitted map, (I + 1, O). Its last row is the constant, which is not penalised."""
        penalty = torch.full_like(self.gram[0], ridge * float(self.gram.diagonal()[:-1].mean()))
        penalty[-1] = 0.0
        solution: torch.Tensor = torch.linalg.solve(self.gram + penalty.diag(), self.mixed)
        return solution

    def error(self, change: torch.Tensor) -> float:
        """Return the summed squared error of a map, (I + 1, O), on these rows."""
        return float(self.square - 2 * (change * self.mixed).sum() + (change * (self.gram @ change)).sum())
