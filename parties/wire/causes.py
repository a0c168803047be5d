"""The words for failures that several parties can notice: one cause reads the same, whoever saw it first."""

import errno
import logging

import grpc

from mpcformer.errors import MORE_FILES, PartyError, unexpected

log = logging.getLogger(__name__)
# The statuses with which a party of this project turns a call away (`parties.wire.callers.refuse`).
REFUSALS = (
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
)
# gRPC itself reports a message above its limit with the status of a refusal.
TOO_LARGE = "larger than max"
# What a party of this project says, with the status INTERNAL, of a call that failed because of a bug or a full machine.
FAILED = "it failed: "
# What a full machine leads to, and the remedy.
NO_FILES = "it can open no more files and connections", MORE_FILES
NO_THREADS = "it can start no more threads", "raise TasksMax of its unit, or ulimit -u, or allow fewer sessions"


def connection_ended(party_id: str) -> PartyError:
    """Return the error for a party whose stream ended or broke."""
    return PartyError(party_id, "its connection ended: the process died or was cut off")


def silent(party_id: str, seconds: float) -> PartyError:
    """Return the error for a party that sent no heartbeat."""
    return PartyError(party_id, f"stopped answering for {seconds:.0f} s")


def kept_waiting(party_id: str, seconds: float) -> PartyError:
    """Return the error for a party that is alive but did not send what the computation needs."""
    return PartyError(party_id, f"sent nothing for {seconds:.0f} s")


def is_kept_waiting(error: PartyError, party_id: str) -> bool:
    """Return whether a session was ended because this party had sent nothing for too long."""
    return error.party == party_id and error.what.startswith(f"{party_id}: sent nothing for ")


def unreachable(party_id: str, address: str, seconds: float) -> PartyError:
    """Return the error for a party to which no connection came about."""
    return PartyError(
        party_id,
        f"no answer at {address} for {seconds:.0f} s",
        "check that it runs, its address, and that both certificates come from one authority; mpcformer doctor"
        " --config on both machines tells what is between them",
    )


def no_session(coordinator_id: str, seconds: float) -> PartyError:
    """Return the error for a coordinator that did not order a session in time."""
    return PartyError(coordinator_id, f"ordered no session for {seconds:.0f} s", "start the coordinator")


def refused(party_id: str, why: str) -> PartyError:
    """Return the error for a party that turned a call away, for the reason that it gave."""
    return PartyError(party_id, f"it refused the session: {why}")


def disagreement(*fields: str) -> str:
    """Return the sentence for values that differ between the two owners."""
    return f"the owners disagree on: {', '.join(fields)}"


def not_as_begun(what: str) -> tuple[str, str]:
    """Return the sentence and the remedy for something that has changed since the run to be resumed began."""
    return (
        f"{what} differs from what the run to be resumed began with",
        "go on with the same, or start anew without --resume",
    )


def own_words(error: BaseException) -> tuple[str, str]:
    """Return what a party says of an error in its own process that nobody foresaw, and what to do about it."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return NO_FILES
    if isinstance(error, MemoryError):
        return "its machine has no memory left", "run it where there is more memory, or allow fewer sessions"
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return NO_THREADS
    return unexpected(error), "please report this"


def is_own_failure(error: Exception) -> bool:
    """Return whether the other party ended the call because something failed there that nobody foresaw."""
    if not isinstance(error, grpc.Call) or error.code() != grpc.StatusCode.INTERNAL:
        return False
    return bool((error.details() or "").startswith(FAILED))


def is_refusal(error: Exception) -> bool:
    """Return whether the other party ended the call on purpose."""
    return isinstance(error, grpc.Call) and error.code() in REFUSALS and TOO_LARGE not in (error.details() or "")


def of_call(party_id: str, error: Exception) -> PartyError:
    """Return the error for a call that failed; gRPC's own words go to the log of this process only.

    Args:
        party_id: the party at the other end.
        error: an RpcError of a client's call, or the bare Exception that a server's stream raises.
    """
    if not isinstance(error, grpc.Call):
        return connection_ended(party_id)
    details = error.details() or ""
    if is_refusal(error):
        return refused(party_id, details)
    if is_own_failure(error):
        return PartyError(party_id, details, "its own log says more; please report this")
    log.info("gRPC says of the connection to %s: %s %s", party_id, error.code().name, details)
    return connection_ended(party_id)
