"""A session's work with every failure told, logged and turned into an exit status (mpcformer/errors.py)."""

import logging
from collections.abc import Callable
from pathlib import Path

from mpcformer.errors import MPCFormerError, PartyError
from parties.membership import Membership

UNEXPECTED = 70
log = logging.getLogger("parties")


def work(run: Callable[[], None], membership: Membership) -> int:
    """Run it; 0 if all went well. Failures are reported to the coordinator unless it told of them first."""
    try:
        run()
    except MPCFormerError as error:
        # What the coordinator said is the cause; a broken stream is only its consequence.
        log.error("%s", membership.error or error)
        membership.fail(error)
        return (membership.error or error).exit_code
    except Exception as error:
        if membership.error is not None:
            log.error("%s", membership.error)
            membership.leave()
            return membership.error.exit_code
        # The message of an unforeseen error may quote data: only its type leaves this process, the trace stays out too.
        place = _place(error)
        log.error("unexpected %s at %s", type(error).__name__, place)
        membership.fail(
            PartyError(membership.me, f"unexpected {type(error).__name__} at {place}", "please report this")
        )
        return UNEXPECTED
    membership.leave()
    log.info("done")
    return 0


def _place(error: BaseException) -> str:
    frame = error.__traceback__
    place = "?"
    while frame is not None:
        code = frame.tb_frame.f_code
        place = f"{Path(code.co_filename).name}:{frame.tb_lineno} in {code.co_name}"
        frame = frame.tb_next
    return place
