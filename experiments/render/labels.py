"""Values of an axis as a reader sees them in tables and figures."""

from parties.runs.html_report import FORMS


def show(value: str | int | float) -> str:
    """Return the text of an axis value: a number without trailing zeros, or the usual spelling of a form."""
    return f"{value:g}" if isinstance(value, float) else FORMS.get(str(value), str(value))
