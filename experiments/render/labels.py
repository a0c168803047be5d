"""Values of an axis as a reader sees them in tables and figures."""

from mpcformer.approximations import GELU_FORMS, SOFTMAX_FORMS


def show(value: str | int | float) -> str:
    """Return the text of an axis value: a number without trailing zeros, or the usual spelling of a form."""
    if isinstance(value, float):
        return f"{value:g}"
    form = GELU_FORMS.get(str(value)) or SOFTMAX_FORMS.get(str(value))
    return form.title if form else str(value)
