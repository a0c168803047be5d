"""A failure of a session: reported to the coordinator, logged, and turned into an exit status (mpcformer/errors.py)."""

import logging
from collections.abc import Callable

from mpcformer.errors import UNEXPECTED, MPCFormerError, PartyError, unexpected
from parties.session.membership import Membership

log = logging.getLogger("parties")


def report_failure_of(work: Callable[[], None], membership: Membership) -> int:
    """Do a session's work and return an exit status, 0 if all went well.

    A failure is reported to the coordinator, unless the coordinator has reported one first.
    """
    try:
        work()
    except MPCFormerError as error:
        cause = membership.fail(error)
        log.error("%s", cause)
        return cause.exit_code
    except Exception as error:
        # The message and the trace of an unforeseen error may quote data: only its type and place leave this process.
        was_told = membership.error is not None
        unexpected = as_known(error, membership.party_id)
        cause = membership.fail(unexpected)
        log.error("%s", cause if was_told else unexpected.what.removeprefix(f"{membership.party_id}: "))
        return cause.exit_code if was_told else UNEXPECTED
    membership.leave()
    log.info("done")
    return 0


def as_known(error: BaseException, party_id: str) -> MPCFormerError:
    """Return an error as other parties may be told it: as it is, or by its type and place if nobody foresaw it.

    Args:
        error: what was raised.
        party_id: the party in whose process it was raised.
    """
    if isinstance(error, MPCFormerError):
        return error
    return PartyError(party_id, unexpected(error), "please report this")
