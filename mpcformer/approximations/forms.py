"""The statement of a form of GeLU or of softmax: its plaintext function, its private realisations, and its bounds.

Each form is one file of this folder and one entry of `registry`. The private half of a form is either data that an
engine interprets or a function of the engine's own operations, which the engine passes in. Plaintext training
therefore loads no engine, and this folder imports nothing but torch and the errors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from mpcformer.approximations.lines import Lines
from mpcformer.errors import UserInputError

# The keys of `Form.private`.
LIFT, CRYPTEN = "lift", "crypten"
MAX_SHIFT, MAX_SLOPE = 64.0, 4

Probabilities = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Form:
    """The part that forms of GeLU and of softmax have in common.

    Args:
        name: the name in config.json and on the command line.
        title: the name that reports print.
        description: the formula, for people.
        private: by engine, what it computes for this form. An engine that has no entry refuses the form.
    """

    kind: ClassVar[str]

    name: str
    title: str
    description: str
    private: Mapping[str, Any] = field(default_factory=dict)

    def on(self, engine: str) -> Any:
        """Return the realisation of this form on an engine.

        Raises:
            UserInputError: the engine has none.
        """
        if engine not in self.private:
            raise self.refused(engine)
        return self.private[engine]

    def refused(self, engine: str) -> UserInputError:
        """Return the error of an engine that cannot compute this form."""
        return UserInputError(
            f"{self.kind}: engine {engine} does not compute the form {self.name!r}",
            "choose another engine, or distil a student with another form",
        )


# ---- GeLU -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShiftedSquare:
    """The function factor (x + shift)^2 + offset, with no negative number among the three."""

    factor: float
    shift: float
    offset: float


@dataclass(frozen=True)
class LiftSquare:
    """GeLU on engine `lift` as a square: the engine computes (x + shift)^2; factor and offset fold into the next map.

    Args:
        square: the whole function.
        scale: fraction bits of the argument x.
        bits: width of the ring in which x is opened; |x| 2^scale stays below 2^(bits - 2).
        result_shift: bits that the square, at scale 2 `scale`, is shifted down before the next map.
    """

    square: ShiftedSquare
    scale: int
    bits: int
    result_shift: int


@dataclass(frozen=True)
class LiftPieces:
    """GeLU on engine `lift` as a sum of polynomials of degree two at most, each of which counts on a part of the line.

    Args:
        pieces: pairs of thresholds and coefficients of 1, x, x^2, all integers, see `mpcformer.protocols.piecewise`.
        scale: fraction bits of the argument x, and of the thresholds.
        bits: width of the ring in which x is opened; |x| 2^scale stays below 2^(bits - 2).
        result_scale: fraction bits of the sum; the coefficient of x^k has k `scale` fewer.
        result_shift: bits that the sum is shifted down before the next map.
    """

    pieces: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    scale: int
    bits: int
    result_scale: int
    result_shift: int


@dataclass(frozen=True)
class LiftWindow:
    """GeLU on engine `lift` as many lines in a window around zero, zero below it, and x above it.

    Args:
        lines: the line of each bin of the window.
        bits: width of the ring in which x is opened; |x| 2^scale stays below 2^(bits - 2).
        down: bits that a line's value is shifted down before it is opened.
        result_shift: bits that the result, at the lines' scale, is shifted down before the next map.
    """

    lines: Lines
    bits: int
    down: int
    result_shift: int


@dataclass(frozen=True, eq=False, kw_only=True)
class GeluForm(Form):
    """A form of GeLU. Calling it computes it in plaintext, elementwise.

    Its entries in `private` are a `LiftSquare`, `LiftPieces` or `LiftWindow` for engine `lift`, and for engine
    `crypten` a function (ops, x) of the module `mpcformer.engines.crypten.ops` and the shared x.

    Args:
        function: the plaintext function, elementwise.
        square: the function as a shifted square, where it is one: students are fitted to a teacher by it.
        growth: the largest |function(x)| / |x|, where it is none. The proof that no text overflows a ring rests on one
            of the two.
    """

    kind = "gelu"

    function: Callable[[torch.Tensor], torch.Tensor]
    square: ShiftedSquare | None = None
    growth: float = 1.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the form of x (...), elementwise."""
        return self.function(x)


# ---- softmax --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DividedRows:
    """Weights are numerators over their sum: p_j = m_j f(s_j) / (sum_j m_j f(s_j) + epsilon n) for n unmasked keys.

    The numerators f(s) are never negative, so weights add up to at most one: the proof that no text overflows a ring
    rests on it. Engines take the scale of a row from its calibrated mean.

    Args:
        degree: f(s) becomes 2^-degree as large when the scores, and the unit they are in, become half as large.
        epsilon: what is added to the mean of a row's numerators.
    """

    needs: ClassVar[str] = "row_mean"
    degree: int
    epsilon: float = 0.0


@dataclass(frozen=True)
class ConstantRows:
    """Weights are numerators over a constant: p_j = m_j f(s_j) / (c n) for n unmasked keys, c learnt, one a layer.

    The numerators f(s) are never negative; a private guard limits their mean. The model owner folds 1 / c into the map
    behind attention, and nobody else learns c.

    Args:
        degree: as in `DividedRows`.
        divisor: c before training.
    """

    needs: ClassVar[str] = "row_mean"
    degree: int
    divisor: float


@dataclass(frozen=True)
class ExponentialRows:
    """Weights are those of the exact softmax; engines take the scale from the calibrated range of the scores."""

    needs: ClassVar[str] = "scores"


@dataclass(frozen=True)
class SquaredScores:
    """Numerators (s + shift)^2 on engine `lift`; |shift| is at most MAX_SHIFT, so that no row wraps around the ring."""

    degree: ClassVar[int] = 2
    shift: float

    def __post_init__(self) -> None:
        if not abs(self.shift) <= MAX_SHIFT:
            raise ValueError(f"shift {self.shift} is not in -{MAX_SHIFT}..{MAX_SHIFT}")


@dataclass(frozen=True)
class SlopedScores:
    """Numerators on engine `lift`: `above` times s where s is positive, `below` times s elsewhere; never negative."""

    degree: ClassVar[int] = 1
    below: int
    above: int

    def __post_init__(self) -> None:
        if not -MAX_SLOPE <= self.below <= 0 <= self.above <= MAX_SLOPE:
            raise ValueError(f"slopes {self.below} and {self.above}: want -{MAX_SLOPE}..0 and 0..{MAX_SLOPE}")


@dataclass(frozen=True)
class RepeatedSquaring:
    """`squared_softmax` on engine `lift`, which only `ExponentialRows` ask for."""


@dataclass(frozen=True)
class ScoreUnit:
    """The unit in which engine `crypten` holds scores when it computes their numerators.

    Args:
        one: the number that stands for 1.
        bound: a bound of every |score|; `ExponentialRows` only, else 0.
        keys: public int64 (B, 1, 1, L), 1 at real tokens.
    """

    one: float
    bound: float
    keys: torch.Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class SoftmaxForm(Form):
    """A form of softmax over attention scores. Calling it computes it in plaintext.

    The public mask multiplies the numerators; -10000 is never added to scores, because its square overflows. The
    entries in `private` are `SquaredScores`, `SlopedScores` or `RepeatedSquaring` for engine `lift`, and for engine
    `crypten` a function (ops, scores, unit) of the module `mpcformer.engines.crypten.ops`, the shared scores and a
    `ScoreUnit`, which returns the shared numerators.

    Args:
        function: the plaintext function, see `__call__`; it takes a third argument if rows are `ConstantRows`.
        rows: how numerators become weights.
        square_shift: b where numerators are (s + b)^2: students are fitted to a teacher, and rows kept narrow, by it.
    """

    kind = "softmax"

    function: Callable[..., Probabilities]
    rows: DividedRows | ConstantRows | ExponentialRows
    square_shift: float | None = None

    def __call__(
        self, scores: torch.Tensor, mask: torch.Tensor, divisor: float | torch.Tensor | None = None
    ) -> Probabilities:
        """Return the weights p, and the mean of each row's unmasked numerators.

        Args:
            scores: (B, A, L, L).
            mask: (B, 1, 1, L) of 0 and 1.
            divisor: c of `ConstantRows`; None stands for its value before training.

        Returns:
            p (B, A, L, L), and row means (B, A, L, 1), which the private reciprocal or the private guard sees.
        """
        return self.function(scores, mask) if divisor is None else self.function(scores, mask, divisor)

    @property
    def divisor(self) -> float | None:
        """The learnt constant c before training; None if rows have none."""
        return self.rows.divisor if isinstance(self.rows, ConstantRows) else None


def normalised(numerators: torch.Tensor, mask: torch.Tensor, epsilon: float = 0.0) -> Probabilities:
    """Return p and row means of `DividedRows`, from masked numerators (B, A, L, L) and the mask (B, 1, 1, L)."""
    row_mean = numerators.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
    return numerators / ((row_mean + epsilon) * mask.sum(-1, keepdim=True)), row_mean
