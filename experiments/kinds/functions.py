"""Experiments of kind `functions`: the error of each approximation over a range. Nothing is trained.

GeLU is compared as a function of its input. Softmax is compared as the probability of one key with score s while the
scores of the others are 0; this is what an attention head gives to a key that stands out. The forms "pieces" and
"squaring" are what the private engine computes for exact GeLU and exact softmax.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from experiments.kinds.experiment import Measured, Workplace
from experiments.spec.quantities import Row
from experiments.spec.scales import FunctionsScale
from experiments.spec.spec import FunctionsExperiment
from mpcformer.approximations import GELU_FORMS, SOFTMAX_FORMS, piecewise_gelu, score_bound, squared_softmax
from mpcformer.errors import UserInputError

PIECES, SQUARING, EXACT = "pieces", "squaring", "exact"
N_DRAWN = 401
Function = Callable[[torch.Tensor], torch.Tensor]


class Functions:
    """An experiment of kind `functions` at one scale.

    Args:
        spec: the experiment.
        scale: the section of that scale.
        workplace: the folders to work in.

    Raises:
        UserInputError: a data folder is given, which this kind does not read.
    """

    def __init__(self, spec: FunctionsExperiment, scale: FunctionsScale, workplace: Workplace) -> None:
        self.scale = scale
        if workplace.data_dir:
            raise UserInputError(
                f"--data-dir: {workplace.data_dir} is not for this experiment, which reads none", "leave --data-dir out"
            )

    def run(self) -> Measured:
        """Return the errors as rows and the functions as curves."""
        scale, measured = self.scale, Measured()
        gelu: dict[str, Function] = {name: GELU_FORMS[name] for name in scale.gelu} | {PIECES: piecewise_gelu}
        self._compare(measured, "gelu", scale.gelu_range, F.gelu, gelu)
        bound = score_bound(*scale.score_range)
        softmax = {name: self._first_key(SOFTMAX_FORMS[name]) for name in scale.softmax}
        softmax[SQUARING] = self._first_key(lambda s, m: (squared_softmax(s, m, bound),))
        self._compare(measured, "softmax", scale.score_range, self._first_key(SOFTMAX_FORMS["softmax"]), softmax)
        return measured

    def _compare(
        self, measured: Measured, name: str, ends: tuple[float, float], exact: Function, forms: dict[str, Function]
    ) -> None:
        x = torch.linspace(*ends, self.scale.points, dtype=torch.float64)
        true = exact(x)
        drawn = torch.linspace(0, self.scale.points - 1, min(N_DRAWN, self.scale.points)).round().long()
        curves = {"x": x[drawn].tolist(), EXACT: true[drawn].tolist()}
        for form, function in forms.items():
            values = function(x)
            error = (values - true).abs()
            measured.rows.append(
                Row(
                    {"function": name, "form": form},
                    {"max_error": float(error.max()), "mean_error": float(error.mean())},
                )
            )
            curves[form] = values[drawn].tolist()
        measured.curves[name] = curves

    def _first_key(self, form: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]) -> Function:
        """Return the probability of the first of `keys` keys as a function of its score; the other scores are 0."""

        def function(x: torch.Tensor) -> torch.Tensor:
            scores = torch.zeros(len(x), 1, 1, self.scale.keys, dtype=x.dtype)  # (N, A, L, L): one row for each score
            scores[:, 0, 0, 0] = x
            return form(scores, torch.ones(len(x), 1, 1, self.scale.keys, dtype=x.dtype))[0][:, 0, 0, 0]

        return function
