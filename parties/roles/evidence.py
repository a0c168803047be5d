"""Who is to blame when a session breaks.

A party's own report of what it did wrong comes first, then the party that died or fell silent, then the one that others
accuse.
"""

from enum import IntEnum

from mpcformer.errors import MPCFormerError, PartyError
from parties.stubs import parties_pb2 as pb

CONFESSED_REASON = "it failed; its own log says why"


class Weight(IntEnum):
    """How a piece of evidence weighs; the smallest counts."""

    CONFESSED = 0
    VANISHED = 1
    ACCUSED = 2


class Evidence:
    """All that was found."""

    def __init__(self) -> None:
        self._found: list[tuple[Weight, MPCFormerError]] = []

    def add(self, weight: Weight, error: MPCFormerError) -> None:
        """A piece of it."""
        self._found.append((weight, error))

    def __bool__(self) -> bool:
        return bool(self._found)

    def verdict(self) -> MPCFormerError:
        """The error that explains the others; there must be one."""
        return min(self._found, key=lambda item: item[0])[1]

    def told(self) -> pb.Abort:
        """The verdict for the other parties: what a party says of itself may concern its data, and is not passed on."""
        weight, worst = min(self._found, key=lambda item: item[0])
        culprit = worst.party if isinstance(worst, PartyError) else ""
        reason = CONFESSED_REASON if weight == Weight.CONFESSED else worst.what.removeprefix(f"{culprit}: ")
        return pb.Abort(culprit=culprit, reason=reason)
