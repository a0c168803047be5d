"""Decides which party is to blame when a session breaks.

A party that reports its own failure counts most, then a party whose process ended, then one that vanished or fell
silent, then one that others accuse.
"""

from enum import IntEnum

from mpcformer.errors import MPCFormerError, PartyError
from parties.stubs import parties_pb2 as pb
from parties.wire import causes

CONFESSED_REASON = "it failed; its own log says why"


class Weight(IntEnum):
    """The weight of a piece of evidence; the smallest number counts most."""

    CONFESSED = 0
    EXITED = 1
    VANISHED = 2
    ACCUSED = 3


class Evidence:
    """All evidence about the failure of one session."""

    def __init__(self) -> None:
        self._found: list[tuple[Weight, MPCFormerError]] = []

    def add(self, weight: Weight, error: MPCFormerError) -> None:
        """Add a piece of evidence."""
        self._found.append((weight, error))

    def __bool__(self) -> bool:
        return bool(self._found)

    def verdict(self) -> MPCFormerError:
        """Return the error that explains the others; there must be some evidence."""
        return self._heaviest()[1]

    def told(self) -> pb.Abort:
        """Return the verdict as the other parties may know it.

        What a party reports of itself, or writes to its log before it ends, may concern its data and is not passed on.
        """
        weight, error = self._heaviest()
        culprit = error.party if isinstance(error, PartyError) else ""
        if weight == Weight.CONFESSED:
            return pb.Abort(culprit=culprit, reason=CONFESSED_REASON)
        if weight == Weight.EXITED:
            error = causes.connection_ended(culprit)
        return pb.Abort(culprit=culprit, reason=error.what.removeprefix(f"{culprit}: "))

    def _heaviest(self) -> tuple[Weight, MPCFormerError]:
        """Return the first piece of the highest weight.

        Both owners notice some failures at the same time, such as an activation that left its range, and report them
        in the same words. The party whose id comes first is then named, whoever reported first.
        """
        weight, first = min(self._found, key=lambda item: item[0])
        alike = [error for other, error in self._found if other == weight and _said(error) == _said(first)]
        return weight, min(alike, key=lambda error: error.what)


def _said(error: MPCFormerError) -> str:
    """Return what happened, without the party that it happened to."""
    return error.what.removeprefix(f"{error.party}: ") if isinstance(error, PartyError) else error.what
