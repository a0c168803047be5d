"""The forms of GeLU and softmax: formula, torch function, valid range, source; for student and private model alike."""

from mpcformer.approximations.activations import GELU_FORMS, QUAD_COEFFICIENTS, quad
from mpcformer.approximations.attention import (
    QUAD_DIVISOR,
    QUAD_SHIFT,
    SOFTMAX_FORMS,
    TWO_RELU_EPSILON,
    masked_softmax,
    two_quad,
    two_quad_const,
    two_relu,
)

__all__ = [
    "GELU_FORMS",
    "QUAD_COEFFICIENTS",
    "QUAD_DIVISOR",
    "QUAD_SHIFT",
    "SOFTMAX_FORMS",
    "TWO_RELU_EPSILON",
    "masked_softmax",
    "quad",
    "two_quad",
    "two_quad_const",
    "two_relu",
]
