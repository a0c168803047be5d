"""The errors a user can meet: what is wrong, the offending value, and what to do. One class per exit status.

The command line shows an error as `error: WHAT` and, on the next line, `fix: REMEDY`; a party logs the same.
"""

UNEXPECTED = 70
# What a remedy's line begins with, on the terminal and in a party's log.
FIX = "fix: "


class MPCFormerError(Exception):
    """Base of every error this project raises on purpose.

    Args:
        what: one sentence naming the thing and its value.
        remedy: one sentence saying what to do about it.
        told: what other parties are told instead of `what`, where that has figures that are a secret's.
    """

    exit_code = 1

    def __init__(self, what: str, remedy: str = "", *, told: str = "") -> None:
        self.what = what
        self.remedy = remedy
        self.told = told or what
        super().__init__(f"{what}\n{FIX}{remedy}" if remedy else what)


class UserInputError(MPCFormerError):
    """A wrong argument, file or dataset, found before any work started."""

    exit_code = 2


class PartyError(MPCFormerError):
    """A party died, stopped answering, or reported a failure. Names the party."""

    exit_code = 3

    def __init__(self, party: str, what: str, remedy: str = "") -> None:
        self.party = party
        super().__init__(f"{party}: {what}", remedy)


class ProtocolError(MPCFormerError):
    """A message or correlation that the protocol does not allow: wrong session, shape, dtype, or used twice."""

    exit_code = 4


class RangeError(MPCFormerError):
    """A number that fixed-point arithmetic cannot carry: NaN, infinite, or outside the calibrated range."""

    exit_code = 5


class DependencyError(MPCFormerError):
    """Something that must be installed or downloaded is missing."""

    exit_code = 6
