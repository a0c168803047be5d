"""The forms of GeLU and of softmax, by name: the one list that configuration, engines, proofs and reports read.

To add a form, write a file with its object, and add one line to `GELU_FORMS` or `SOFTMAX_FORMS`. Importing this module
loads no torch, because a command's help lists the names: a form's file is imported when the form is first asked for.
"""

import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, TypeVar

from mpcformer.errors import UserInputError

if TYPE_CHECKING:
    from mpcformer.approximations.forms import Form, GeluForm, SoftmaxForm

F = TypeVar("F", bound="Form")


class Forms(MutableMapping[str, F]):
    """Forms by name.

    Args:
        places: for each name the module of this folder and the object in it, as "module.OBJECT".
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._forms: dict[str, F | str] = dict(places)

    def __getitem__(self, name: str) -> F:
        form = self._forms[name]
        if isinstance(form, str):
            module, _, constant = form.partition(".")
            loaded: F = getattr(importlib.import_module(f"mpcformer.approximations.{module}"), constant)
            self._forms[name] = form = loaded
        return form

    def __setitem__(self, name: str, form: F) -> None:
        self._forms[name] = form

    def __delitem__(self, name: str) -> None:
        del self._forms[name]

    def __contains__(self, name: object) -> bool:
        return name in self._forms

    def __iter__(self) -> Iterator[str]:
        return iter(self._forms)

    def __len__(self) -> int:
        return len(self._forms)


GELU_FORMS: "Forms[GeluForm]" = Forms(
    {
        "gelu": "gelu_exact.GELU",
        "gelu_tanh": "gelu_tanh.GELU_TANH",
        "quad": "gelu_quad.QUAD",
        "relu": "gelu_relu.RELU",
    }
)
SOFTMAX_FORMS: "Forms[SoftmaxForm]" = Forms(
    {
        "softmax": "softmax_exact.SOFTMAX",
        "2quad": "softmax_two_quad.TWO_QUAD",
        "2quad-const": "softmax_two_quad_const.TWO_QUAD_CONST",
        "2relu": "softmax_two_relu.TWO_RELU",
    }
)


def gelu_form(name: str) -> "GeluForm":
    """Return the form of GeLU of that name.

    Raises:
        UserInputError: there is none.
    """
    return _form(GELU_FORMS, "gelu", name)


def softmax_form(name: str) -> "SoftmaxForm":
    """Return the form of softmax of that name.

    Raises:
        UserInputError: there is none.
    """
    return _form(SOFTMAX_FORMS, "softmax", name)


def _form(forms: Forms[F], kind: str, name: str) -> F:
    if name not in forms:
        raise UserInputError(f"{kind}: form {name!r} is unknown", f"choose one of: {', '.join(forms)}")
    return forms[name]
