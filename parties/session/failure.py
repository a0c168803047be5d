"""A failure of a session: reported to the coordinator, logged, and turned into an exit status (mpcformer/errors.py)."""

import contextvars
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from mpcformer.errors import UNEXPECTED, MPCFormerError, PartyError
from parties.session.membership import Membership
from parties.settings.config_file import by_keys
from parties.wire import causes

log = logging.getLogger("parties")
# How often work is looked after, and how long it may go on in a session that has been aborted.
POLL_S, HEED_S = 0.2, 1.5
Value = TypeVar("Value")


def report_failure_of(work: Callable[[], None], membership: Membership) -> int:
    """Do a session's work and return an exit status, 0 if all went well.

    A failure is reported to the coordinator, unless the coordinator has reported one first.
    """
    try:
        work()
    except MPCFormerError as error:
        cause = membership.fail(by_keys(error))
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


def attended(
    work: Callable[[], Value],
    membership: Membership,
    on_left: Callable[[threading.Thread], None] = lambda thread: None,
) -> Value:
    """Do work of a session that cannot ask whether the session still stands, such as reading a file from a slow disk.

    The work has a thread of its own. If the session is aborted, and the work has not ended shortly afterwards by
    itself, it is left to its thread.

    Args:
        work: what to do.
        membership: the session.
        on_left: called with the thread if the work is left to it.

    Raises:
        MPCFormerError: the session was aborted.
        BaseException: whatever the work raised.
    """
    found: list[Value] = []
    raised: list[BaseException] = []
    ended, context = threading.Event(), contextvars.copy_context()

    def run() -> None:
        try:
            found.append(context.run(work))
        except BaseException as error:
            raised.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="work", daemon=True)
    thread.start()
    while not ended.wait(POLL_S):
        if membership.error is not None and not ended.wait(HEED_S):
            on_left(thread)
            membership.check()
    if raised:
        raise raised[0]
    return found[0]


@contextmanager
def telling(membership: Membership) -> Iterator[None]:
    """Tell whoever ordered the session of an error in the block, before the caller cancels anything."""
    try:
        yield
    except Exception as error:
        membership.tell(as_known(error, membership.party_id))
        raise


def as_known(error: BaseException, party_id: str) -> MPCFormerError:
    """Return an error as other parties may be told it: as it is, or by its type and place if nobody foresaw it.

    Args:
        error: what was raised.
        party_id: the party in whose process it was raised.
    """
    if isinstance(error, MPCFormerError):
        return error
    return PartyError(party_id, *causes.own_words(error))
