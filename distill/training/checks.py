"""Checks of options that several recipes share. They run before any work starts."""

from distill.training.device import autocast, pick_device
from mpcformer.errors import UserInputError


def check_numbers(**numbers: float) -> None:
    """Check that every number is positive. Each keyword is the name of a command-line option.

    Raises:
        UserInputError: names the option and its value.
    """
    for name, value in numbers.items():
        if not value > 0:
            raise UserInputError(f"--{name.replace('_', '-')}: {value} is not positive", "give a positive number")


def check_replaced(share: float) -> None:
    """Check that `share` is a fraction of tokens.

    Raises:
        UserInputError: names the option and its value.
    """
    if not 0 <= share <= 1:
        raise UserInputError(f"--replaced: {share} is not in 0..1", "give a share of tokens, or 0 for none")


def check_precision(precision: str) -> None:
    """Check that the precision is known.

    Raises:
        UserInputError: an unknown precision.
    """
    autocast(precision, pick_device())
