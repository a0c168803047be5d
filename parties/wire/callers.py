"""Who calls a service, how a call is refused, and how the one message of a call is taken."""

import threading
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

import grpc

# Without TLS a caller writes its id into this header.
PARTY_HEADER = "party"
# The data owner names the session of its stream to the model owner in this header.
SESSION_HEADER = "session-bin"
# And which of the session's streams it is in this one.
STREAM_HEADER = "stream"
FIRST_MESSAGE_TIMEOUT_S = 10.0
Message = TypeVar("Message")


def refuse(context: grpc.ServicerContext, code: grpc.StatusCode, why: str) -> NoReturn:
    """End the call with a status code and a sentence that the caller reads."""
    context.abort(code, why)
    raise AssertionError("context.abort raises")


def refuse_unknown_session(context: grpc.ServicerContext) -> NoReturn:
    """End a call for a session that this party does not run."""
    what = "no such session: the coordinator did not order it, or it has ended"
    refuse(context, grpc.StatusCode.NOT_FOUND, what)


def caller_names(context: grpc.ServicerContext) -> list[str]:
    """Return the ids in the caller's certificate; without TLS, the ids that the caller claims."""
    secured = context.auth_context()
    if secured.get("transport_security_type") == [b"local"]:
        return [value for key, value in context.invocation_metadata() if key == PARTY_HEADER]
    return [name.decode() for name in secured.get("x509_subject_alternative_name", [])]


def require_caller(context: grpc.ServicerContext, *allowed: str) -> str:
    """Return the caller's id if it is one of `allowed`; otherwise refuse the call and name the caller.

    A certificate with several names is nobody's: with it one party could take the parts of two.
    """
    names = caller_names(context)
    if len(names) == 1 and names[0] in allowed:
        return names[0]
    what = f"the caller's certificate names {names or ['nobody']}, which is not served here"
    refuse(context, grpc.StatusCode.PERMISSION_DENIED, what)


def at_end(context: grpc.ServicerContext, callback: Callable[[], None]) -> None:
    """Call `callback` when the call ends; at once if it has ended already, which gRPC itself would not do."""
    if not context.add_callback(callback):
        callback()


def first_message(requests: Iterator[Message], context: grpc.ServicerContext) -> Message:
    """Return the message of a call that consists of one message; refuse the call if it does not come in time.

    The protocol file declares such calls as streams. For a call declared without `stream`, gRPC reads the message in a
    worker thread before it calls the method, so callers that send nothing would occupy all workers. A method of a
    stream is called at once: it checks the caller first and then takes the message here.
    """
    timer = threading.Timer(FIRST_MESSAGE_TIMEOUT_S, context.cancel)
    timer.daemon = True
    timer.start()
    try:
        request = next(requests, None)
    finally:
        timer.cancel()
    if request is None:
        refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
    return request
