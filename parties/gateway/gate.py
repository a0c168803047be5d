"""What every request passes before anything else: who may ask, from where, and what a browser may do with the reply.

The gateway listens on the loopback interface, where every user and every web page of this machine can reach it. Other
users have no token. Another page has none either, and its requests are refused by their origin in addition. A page
whose name was made to mean 127.0.0.1 (DNS rebinding) is refused by the name that its requests call this host.
"""

import asyncio
import logging
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpcformer.errors import unexpected
from parties.gateway import counts, replies
from parties.gateway.replies import RequestError
from parties.gateway.token_file import Token

log = logging.getLogger(__name__)

# The one name of the gateway. At [::1], which `localhost` may mean, another user can listen at the same port.
HOST = "127.0.0.1"
# What holds no secret and shows none: browsers ask for it before the page has read the token.
OPEN_PATHS = ("/health", "/openapi.json")
OPEN_FOLDER = "/page/"
# Where a page gets its secret.
PAGE_SECRET = "/page-secret"
# While no gateway ran, another user may have listened here, and made a browser install a service worker, which would
# stand between this gateway and its page. The browser asks for the worker's script again whenever the page is opened,
# and gets one that removes itself. The header Clear-Site-Data would remove the page's secret, too.
REMOVES_WORKER = (
    "addEventListener('install', () => skipWaiting());"
    "addEventListener('activate', (event) => event.waitUntil(registration.unregister()));"
)
STOPPING = RequestError(replies.NO_SESSION, "the gateway is stopping", "ask again once it runs")
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


class Gate:
    """An ASGI application that lets only those requests pass to another one which may be answered.

    Args:
        app: the other one.
        token: what a caller must show.
    """

    def __init__(self, app: ASGIApp, token: Token) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the other application do it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = False

        async def send_guarded(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                if message["status"] >= replies.BAD_INPUT:
                    counts.errors.labels(str(message["status"])).inc()
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            if self._check(scope):
                script = Response(REMOVES_WORKER, media_type="text/javascript")
                await script(scope, receive, send_guarded)
                return
            await self._app(scope, receive, send_guarded)
        except RequestError as error:
            await replies.error_reply(error)(scope, receive, send_guarded)
        except asyncio.CancelledError:
            # The server stops, and waits no longer for what is being computed.
            if not began:
                await replies.error_reply(STOPPING)(scope, receive, send_guarded)
            raise
        except Exception as error:
            # Its message may quote a text, so uvicorn must not log it. It notices a reply that is incomplete by itself.
            log.error("%s", unexpected(error))
            if not began:
                await replies.unexpected_reply(error)(scope, receive, send_guarded)

    def _check(self, scope: Scope) -> bool:
        """Return whether a browser asks for the script of a service worker, of which this gateway has none.

        Raises:
            RequestError: the request may not be answered.
        """
        headers = Headers(scope=scope)
        host = _check_host(headers)
        _check_origin(scope, headers, host)
        if _only_reads(scope) and headers.get("service-worker") == "script":
            return True
        path = scope["path"]
        is_open = path in OPEN_PATHS or path.startswith(OPEN_FOLDER) or (path == "/" and _only_reads(scope))
        may_ask = self._token.opens if path == PAGE_SECRET and scope["method"] == "POST" else self._token.fits
        if not is_open and not may_ask(headers.get("authorization", "")):
            raise RequestError(
                replies.NO_TOKEN,
                "Authorization: the token is missing or wrong",
                "send `Authorization: Bearer TOKEN` with the token of the gateway's --token-file",
                {"WWW-Authenticate": "Bearer"},
            )
        return False


def _only_reads(scope: Scope) -> bool:
    return scope["method"] in ("GET", "HEAD")


def _check_host(headers: Headers) -> str:
    """Return how the request calls this host.

    Raises:
        RequestError: it is another name than 127.0.0.1.
    """
    hosts = headers.getlist("host")
    try:
        name = urlsplit(f"//{hosts[0]}").hostname if len(hosts) == 1 else None
    except ValueError:
        name = None
    if name != HOST:
        raise RequestError(replies.FORBIDDEN, "Host: this gateway has no such name", f"call it {HOST}")
    return hosts[0]


def _check_origin(scope: Scope, headers: Headers, host: str) -> None:
    """Refuse what another web page sends. Programs that are no browsers say nothing of an origin."""
    origins, site = headers.getlist("origin"), headers.get("sec-fetch-site", "none")
    # A link to the page is no request of another page: what it opens sees nothing of what opened it.
    follows_link = (
        scope["path"] == "/"
        and _only_reads(scope)
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )
    if any(origin != f"http://{host}" for origin in origins) or (
        site not in ("same-origin", "none") and not follows_link
    ):
        raise RequestError(
            replies.FORBIDDEN, "Origin: another web page sent this request", "use the gateway's own page, or a program"
        )
