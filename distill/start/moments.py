"""Column means and variances of rows that arrive in batches."""

import torch


class Moments:
    """Running sums in float64, from which the mean and the variance of each column follow."""

    def __init__(self) -> None:
        self.n = 0
        self.total = self.squares = torch.zeros(())

    def add(self, rows: torch.Tensor) -> None:
        """Count some rows, (N, C)."""
        self.n += len(rows)
        self.total = self.total + rows.double().sum(0)
        self.squares = self.squares + rows.double().square().sum(0)

    def mean(self) -> torch.Tensor:
        """Return the mean of each column, (C,)."""
        return self.total / self.n

    def variance(self) -> torch.Tensor:
        """Return the variance of each column, (C,)."""
        return self.squares / self.n - self.mean().square()
