"""What the gateway replies: JSON, and for each error a status, what is wrong, and what to do."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from mpcformer.errors import MPCFormerError, UserInputError, shortened, unexpected
from parties.session.data_side import BudgetError

BAD_INPUT, NO_TOKEN, FORBIDDEN, NOTHING_THERE, WRONG_METHOD, CONFLICT = 400, 401, 403, 404, 405, 409
TOO_LARGE, NO_BUDGET, CALLER_LEFT, UNEXPECTED, NO_SESSION = 413, 429, 499, 500, 503
AGAIN = "ask again: the next question opens a new session"


class RequestError(UserInputError):
    """An error because a request cannot be served as it is.

    Args:
        status: the HTTP status.
        what, remedy: as for every error.
        headers: what the reply's head says besides.
        columns: the columns of a file, if one of them must be chosen.
    """

    def __init__(
        self,
        status: int,
        what: str,
        remedy: str,
        headers: Mapping[str, str] | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        super().__init__(what, remedy)
        self.status, self.headers, self.columns = status, dict(headers or {}), list(columns)


def status_of(error: MPCFormerError) -> int:
    """Return the HTTP status that an error has."""
    if isinstance(error, RequestError):
        return error.status
    if isinstance(error, BudgetError):
        return NO_BUDGET
    return BAD_INPUT if isinstance(error, UserInputError) else NO_SESSION


def told(error: MPCFormerError) -> dict[str, Any]:
    """Return an error as JSON values."""
    remedy = error.remedy or (AGAIN if status_of(error) == NO_SESSION else "")
    columns = error.columns if isinstance(error, RequestError) else []
    return {"error": error.what, "fix": remedy} | ({"columns": columns} if columns else {})


def error_reply(error: MPCFormerError) -> Response:
    """Return the reply that says what is wrong."""
    headers = dict(error.headers) if isinstance(error, RequestError) else {}
    if isinstance(error, BudgetError) and error.seconds is not None:
        headers["Retry-After"] = str(error.seconds)
    elif status_of(error) == NO_SESSION:
        headers.setdefault("Retry-After", "1")
    return JSONResponse(told(error), status_of(error), headers)


def unexpected_reply(error: Exception) -> Response:
    """Return the reply to a request that met an error which nobody foresaw. Its message may quote a text."""
    return JSONResponse({"error": unexpected(error), "fix": "please report it"}, UNEXPECTED)


async def on_error(_: Request, error: Exception) -> Response:
    """Handle the errors of this project, for Starlette."""
    assert isinstance(error, MPCFormerError)
    return error_reply(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Handle what the router refuses, for Starlette."""
    assert isinstance(error, HTTPException)
    path = shortened(request.url.path)[:200]
    if error.status_code == WRONG_METHOD:
        allowed = (error.headers or {}).get("Allow", "")
        what, fix = f"{path}: the method {request.method[:20]} is not allowed", f"use one of: {allowed}"
    elif error.status_code == NOTHING_THERE:
        what, fix = f"{path}: there is nothing", "/openapi.json lists what there is"
    else:
        what, fix = str(error.detail), "/openapi.json says what can be asked"
    return JSONResponse({"error": what, "fix": fix}, error.status_code, error.headers)


async def on_caller_left(_: Request, error: Exception) -> Response:
    """Handle a request whose caller left while it was read; nobody gets this reply."""
    return Response(status_code=CALLER_LEFT)


async def on_unexpected(_: Request, error: Exception) -> Response:
    """Handle any other error, for Starlette, which raises it again for the gate to log."""
    return unexpected_reply(error)


HANDLERS: dict[Any, Any] = {
    Exception: on_unexpected,
    MPCFormerError: on_error,
    HTTPException: on_http_error,
    ClientDisconnect: on_caller_left,
}


async def read_body(request: Request, limit: int, what: str) -> bytes:
    """Return the body of a request.

    Args:
        request: the request.
        limit: the most bytes.
        what: the name of the body, for the error.

    Raises:
        RequestError: it is larger.
    """
    check_length(request, limit, what)
    found = bytearray()
    async for chunk in request.stream():
        found += chunk
        if len(found) > limit:
            raise too_large(what, limit)
    return bytes(found)


def check_length(request: Request, limit: int, what: str) -> None:
    """Refuse a body that says that it is too large, before it is read."""
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > limit:
        raise too_large(what, limit)


def too_large(what: str, limit: int) -> RequestError:
    """Return the error of a body that is too large."""
    size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit} bytes"
    return RequestError(TOO_LARGE, f"{what}: it is larger than {size}", "give it in several pieces")
