"""A failure of a session: reported to the coordinator, logged, and turned into an exit status (mpcformer/errors.py)."""

import logging
from collections.abc import Callable
from pathlib import Path

from mpcformer.errors import UNEXPECTED, MPCFormerError, PartyError
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
        what = f"unexpected {type(error).__name__} at {place_of(error)}"
        cause = membership.fail(PartyError(membership.party_id, what, "please report this"))
        log.error("%s", cause if was_told else what)
        return cause.exit_code if was_told else UNEXPECTED
    membership.leave()
    log.info("done")
    return 0


def place_of(error: BaseException) -> str:
    """Return the file, line and function in which an error was raised."""
    trace = error.__traceback__
    place = "?"
    while trace is not None:
        code = trace.tb_frame.f_code
        place = f"{Path(code.co_filename).name}:{trace.tb_lineno} in {code.co_name}"
        trace = trace.tb_next
    return place
