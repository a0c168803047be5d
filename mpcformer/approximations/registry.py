"""The forms of GeLU and of softmax, by name: the one list that configuration, engines, proofs and reports read."""

from collections.abc import Mapping
from typing import TypeVar

from mpcformer.approximations.forms import Form, GeluForm, SoftmaxForm
from mpcformer.approximations.gelu_exact import GELU
from mpcformer.approximations.gelu_quad import QUAD
from mpcformer.approximations.gelu_relu import RELU
from mpcformer.approximations.softmax_exact import SOFTMAX
from mpcformer.approximations.softmax_two_quad import TWO_QUAD
from mpcformer.approximations.softmax_two_quad_const import TWO_QUAD_CONST
from mpcformer.approximations.softmax_two_relu import TWO_RELU
from mpcformer.errors import UserInputError

GELU_FORMS: dict[str, GeluForm] = {form.name: form for form in (GELU, QUAD, RELU)}
SOFTMAX_FORMS: dict[str, SoftmaxForm] = {form.name: form for form in (SOFTMAX, TWO_QUAD, TWO_QUAD_CONST, TWO_RELU)}

F = TypeVar("F", bound=Form)


def gelu_form(name: str) -> GeluForm:
    """Return the form of GeLU of that name.

    Raises:
        UserInputError: there is none.
    """
    return _form(GELU_FORMS, GeluForm.kind, name)


def softmax_form(name: str) -> SoftmaxForm:
    """Return the form of softmax of that name.

    Raises:
        UserInputError: there is none.
    """
    return _form(SOFTMAX_FORMS, SoftmaxForm.kind, name)


def _form(forms: Mapping[str, F], kind: str, name: str) -> F:
    if name not in forms:
        raise UserInputError(f"{kind}: form {name!r} is unknown", f"choose one of: {', '.join(forms)}")
    return forms[name]
