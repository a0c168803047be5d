"""Forms of GeLU as the protocols take them that compute a function of each element."""

from mpcformer.approximations.forms import LiftPieces, LiftWindow
from mpcformer.protocols.piecewise import Piece, PiecewiseFunction
from mpcformer.protocols.window import WindowFunction
from mpcformer.ring.packing import WORD, packing_width

# Either is evaluated in the same way.
Elementwise = PiecewiseFunction | WindowFunction


def argument_scale(realisation: LiftPieces | LiftWindow) -> int:
    """Return the fraction bits of the argument."""
    return realisation.scale if isinstance(realisation, LiftPieces) else realisation.lines.scale


def result_scale(realisation: LiftPieces | LiftWindow) -> int:
    """Return the fraction bits of the result."""
    return realisation.result_scale if isinstance(realisation, LiftPieces) else realisation.lines.value_scale


def elementwise(realisation: LiftPieces | LiftWindow, bits: int, result_bits: int = WORD) -> Elementwise:
    """Return the function of a realisation.

    Args:
        realisation: a form's, on engine `lift`.
        bits: the width of the ring in which the argument is opened.
        result_bits: how many bits of the result are needed.
    """
    if isinstance(realisation, LiftPieces):
        return PiecewiseFunction(bits, tuple(Piece(*piece) for piece in realisation.pieces))
    lines, lift = realisation.lines, packing_width(result_bits)
    above = 0, 1 << lines.slope_scale
    return WindowFunction(bits, lift, lines.log_width, *lines.fitted, above, down=realisation.down)


def lift_bits(function: Elementwise) -> int:
    """Return the width of the ring of a function's result."""
    return function.lift if isinstance(function, WindowFunction) else WORD


def largest_result(function: Elementwise) -> int:
    """Return a bound of the result, for any argument that fits the ring in which it is opened."""
    reach = function.bits - 2
    if isinstance(function, WindowFunction):
        constant, slope = function.above
        return max(2 * max(map(abs, function.values)), abs(constant) + (abs(slope) << reach))
    # All pieces might count at once.
    terms = (term for piece in function.pieces for term in enumerate(piece.coefficients))
    return sum(abs(coefficient) << (power * reach) for power, coefficient in terms)
