"""The forms of GeLU and softmax: one file a form, and `registry`, which lists them all.

Only the registry is imported at once. The forms' files load torch, for which a command's help need not wait, and are
imported when somebody asks for something in them.
"""

from typing import TYPE_CHECKING

from mpcformer.approximations.registry import GELU_FORMS, SOFTMAX_FORMS, gelu_form, softmax_form
from mpcformer.lazy import lazily

if TYPE_CHECKING:
    from mpcformer.approximations.forms import (
        ConstantRows,
        DividedRows,
        ExponentialRows,
        Form,
        GeluForm,
        Probabilities,
        SoftmaxForm,
    )
    from mpcformer.approximations.gelu_exact import piecewise_gelu
    from mpcformer.approximations.gelu_quad import QUAD_COEFFICIENTS, quad
    from mpcformer.approximations.softmax_exact import masked_softmax, score_bound, squared_softmax, squarings
    from mpcformer.approximations.softmax_two_quad import QUAD_SHIFT, two_quad
    from mpcformer.approximations.softmax_two_quad_const import QUAD_DIVISOR, two_quad_const
    from mpcformer.approximations.softmax_two_relu import TWO_RELU_EPSILON, two_relu

MODULES = {
    "forms": (
        "ConstantRows",
        "DividedRows",
        "ExponentialRows",
        "Form",
        "GeluForm",
        "Probabilities",
        "SoftmaxForm",
    ),
    "gelu_exact": ("piecewise_gelu",),
    "gelu_quad": (
        "QUAD_COEFFICIENTS",
        "quad",
    ),
    "softmax_exact": (
        "masked_softmax",
        "score_bound",
        "squared_softmax",
        "squarings",
    ),
    "softmax_two_quad": (
        "QUAD_SHIFT",
        "two_quad",
    ),
    "softmax_two_quad_const": (
        "QUAD_DIVISOR",
        "two_quad_const",
    ),
    "softmax_two_relu": (
        "TWO_RELU_EPSILON",
        "two_relu",
    ),
}

__all__ = [
    "GELU_FORMS",
    "QUAD_COEFFICIENTS",
    "QUAD_DIVISOR",
    "QUAD_SHIFT",
    "SOFTMAX_FORMS",
    "TWO_RELU_EPSILON",
    "ConstantRows",
    "DividedRows",
    "ExponentialRows",
    "Form",
    "GeluForm",
    "Probabilities",
    "SoftmaxForm",
    "gelu_form",
    "masked_softmax",
    "piecewise_gelu",
    "quad",
    "score_bound",
    "softmax_form",
    "squared_softmax",
    "squarings",
    "two_quad",
    "two_quad_const",
    "two_relu",
]

__getattr__ = lazily(__name__, MODULES)
