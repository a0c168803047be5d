"""A session's work with every failure told, logged and turned into an exit status (mpcformer/errors.py)."""

import logging
from collections.abc import Callable
from pathlib import Path

from mpcformer.errors import UNEXPECTED, MPCFormerError, PartyError
from parties.roles.membership import Membership

log = logging.getLogger("parties")


def work(run: Callable[[], None], membership: Membership) -> int:
    """Run it; 0 if all went well. Failures are reported to the coordinator unless it told of them first."""
    try:
        run()
    except MPCFormerError as error:
        cause = membership.fail(error)
        log.error("%s", cause)
        return cause.exit_code
    except Exception as error:
        # The message of an unforeseen error may quote data: only its type leaves this process, the trace stays out too.
        place, told = _place(error), membership.error is not None
        what = f"unexpected {type(error).__name__} at {place}"
        cause = membership.fail(PartyError(membership.me, what, "please report this"))
        log.error("%s", cause if told else what)
        return cause.exit_code if told else UNEXPECTED
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
