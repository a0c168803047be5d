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
        # Who accuses whom.
        self._accused: dict[str, str] = {}

    def add(self, weight: Weight, error: MPCFormerError, by: str = "") -> None:
        """Add a piece of evidence; `by` is the party that accuses another one, if one does."""
        self._found.append((weight, error))
        if weight == Weight.ACCUSED and by and isinstance(error, PartyError):
            self._accused.setdefault(by, error.party)

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

        An accused party that accuses another one has left because of that one, which then is the cause.
        Both owners notice some failures at the same time, such as an activation that left its range, and report them
        in the same words. The party whose id comes first is then named, whoever reported first.
        """
        weight = min(weight for weight, _ in self._found)
        pieces = [error for other, error in self._found if other == weight]
        causal = [error for error in pieces if not (isinstance(error, PartyError) and error.party in self._accused)]
        if weight == Weight.ACCUSED and causal:
            pieces = causal
        alike = [error for error in pieces if said(error) == said(pieces[0])]
        return weight, min(alike, key=lambda error: error.what)


def said(error: MPCFormerError) -> str:
    """Return what happened, without the party that it happened to."""
    return error.what.removeprefix(f"{error.party}: ") if isinstance(error, PartyError) else error.what
