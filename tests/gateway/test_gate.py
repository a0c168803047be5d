"""Who is answered: the token, the origin and the name of the host; and what every reply tells a browser."""

import asyncio
import json
import os
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from mpcformer.errors import UserInputError
from parties.gateway.gate import HEADERS, Gate
from parties.gateway.replies import HANDLERS
from parties.gateway.token_file import Token, load_token

TOKEN = "0123456789abcdef"
BEARER = {"authorization": f"Bearer {TOKEN}"}
HOST = "127.0.0.1:8765"


def client() -> TestClient:
    """Return a client of a gate before an application that says ok."""

    def fails(_: object) -> PlainTextResponse:
        raise ValueError("a text that nobody may read")

    names = "/", "/models", "/health", "/openapi.json", "/page/page.js"
    routes = [Route(path, lambda request: PlainTextResponse("ok"), methods=["GET", "POST"]) for path in names]
    routes.append(Route("/fails", fails))
    return TestClient(
        Gate(Starlette(routes=routes, exception_handlers=HANDLERS), Token(TOKEN)), base_url=f"http://{HOST}"
    )


@pytest.mark.parametrize(
    ("path", "method", "headers", "status"),
    [
        ("/models", "GET", {}, 401),
        ("/models", "GET", {"authorization": TOKEN}, 401),
        ("/models", "GET", {"authorization": f"Basic {TOKEN}"}, 401),
        ("/models", "GET", {"authorization": f"Bearer {TOKEN}x"}, 401),
        ("/models", "GET", {"authorization": f"Bearer {TOKEN[:-1]}"}, 401),
        ("/models", "GET", {"authorization": "Bearer \u00e9"}, 401),
        ("/models", "GET", {"authorization": "Bearer "}, 401),
        ("/models", "GET", BEARER, 200),
        ("/models", "GET", {"authorization": f"bearer {TOKEN}"}, 200),
        # A stranger is not told what exists.
        ("/nothing", "GET", {}, 401),
        ("/", "POST", {}, 401),
        ("/", "POST", BEARER, 200),
        ("/page/../models", "GET", {}, 401),
        # What holds no secret.
        ("/", "GET", {}, 200),
        ("/health", "GET", {}, 200),
        ("/openapi.json", "GET", {}, 200),
        ("/page/page.js", "GET", {}, 200),
    ],
)
def test_the_token(path: str, method: str, headers: dict[str, str], status: int) -> None:
    sent = {name: value.encode("latin-1") for name, value in headers.items()}
    reply = client().request(method, path, headers=sent)
    assert reply.status_code == status
    if status == 401:
        assert reply.headers["www-authenticate"] == "Bearer"
        assert "token" in reply.json()["fix"]
        assert TOKEN not in reply.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1"}, 200),
        ({"host": "127.0.0.1:9000"}, 200),
        # Another user can listen at [::1], which browsers try first for this name.
        ({"host": "localhost:8765"}, 403),
        ({"host": "localhost"}, 403),
        ({"host": "[::1]:8765"}, 403),
        # DNS rebinding: the name of another page that was made to mean this address.
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:8765"}, 403),
        ({"host": "127.0.0.1.evil.example:8765"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "127.0.0.1@evil.example"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": ""}, 403),
        ({"origin": f"http://{HOST}"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": f"https://{HOST}"}, 403),
        ({"origin": "http://127.0.0.1:3000"}, 403),
        ({"origin": "http://localhost:8765"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, 403),
    ],
)
def test_host_and_origin_even_with_the_token(headers: dict[str, str], status: int) -> None:
    reply = client().get("/models", headers=BEARER | headers)
    assert reply.status_code == status
    if status == 403:
        assert set(reply.json()) == {"error", "fix"}
        assert "localhost" not in reply.text
        assert "access-control-allow-origin" not in reply.headers


def test_a_link_may_open_the_page_and_a_frame_may_not() -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client().get("/", headers=link).status_code == 200
    assert client().get("/", headers=link | {"sec-fetch-dest": "iframe"}).status_code == 403
    assert client().post("/", headers=link | BEARER).status_code == 403
    asks = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    assert client().options("/models", headers=asks).status_code == 403


@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/models", 401), ("/nothing", 401), ("/fails", 500)])
def test_every_reply_has_the_headers_that_protect(path: str, status: int) -> None:
    reply = client().get(path, headers=BEARER if status == 500 else {})
    assert reply.status_code == status
    assert {name: reply.headers[name] for name in HEADERS} == HEADERS
    policy = dict(part.split(" ", 1) for part in HEADERS["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"


def test_an_error_that_nobody_foresaw_quotes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    reply = client().get("/fails", headers=BEARER)
    assert reply.status_code == 500
    assert reply.json()["error"].startswith("unexpected ValueError at test_gate.py")
    assert "nobody may read" not in reply.text + caplog.text
    assert "unexpected ValueError" in caplog.text


def test_a_code_opens_the_page_once_and_nothing_else() -> None:
    token = Token(TOKEN)
    code = token.address("").removeprefix("#code=")
    assert not token.fits(f"Bearer {code}")
    assert not token.opens("Bearer None")
    assert not token.opens(f"Bearer {token.page_secret}")
    assert len(token.page_proofs("")) == 2
    assert token.opens(f"Bearer {code}")
    assert not token.opens(f"Bearer {code}")
    assert len(token.page_proofs("")) == 1
    # The page's secret serves in the place of the token, until the gateway stops.
    assert token.fits(f"Bearer {token.page_secret}")
    assert token.opens(f"Bearer {TOKEN}")
    later = Token(TOKEN)
    assert not later.fits(f"Bearer {token.page_secret}")
    assert not later.opens(f"Bearer {code}")


def test_every_service_worker_gets_a_script_that_removes_it() -> None:
    reply = client().get("/whatever.js", headers={"service-worker": "script"})
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    assert "registration.unregister()" in reply.text
    assert client().get("/whatever.js", headers={"service-worker": "script", "host": "evil.example"}).status_code == 403
    assert client().post("/", headers={"service-worker": "script"}).status_code == 401


def test_a_token_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "token"
    first = load_token(path)
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text().strip()
    assert len(text) >= 40
    assert load_token(path).fits(f"Bearer {text}")
    printed = first.address("http://127.0.0.1:1/")
    assert printed.startswith("http://127.0.0.1:1/#code=")
    assert text not in printed + repr(first)
    assert load_token(tmp_path / "other").address("") != first.address("")


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (TOKEN, 0o644, "can be read or written by other users"),
        (TOKEN, 0o620, "can be read or written by other users"),
        ("too few", 0o600, "holds no token"),
        ("", 0o600, "holds no token"),
        ("two words of a token that is long enough", 0o600, "holds no token"),
        ("a-token-that-is-long-enough-with-\u00e9", 0o600, "holds no token"),
        ("x" * 2000, 0o600, "holds no token"),
    ],
)
def test_wrong_token_files(tmp_path: Path, content: str, mode: int, message: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(UserInputError, match=message) as caught:
        load_token(path)
    assert caught.value.remedy
    assert not content or content not in str(caught.value)


def test_a_token_file_must_be_a_file_that_can_be_made(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "token"):
        with pytest.raises(UserInputError, match="--token-file"):
            load_token(path)
    if os.geteuid() == 0:
        path = tmp_path / "others"
        path.write_text(TOKEN)
        path.chmod(0o600)
        os.chown(path, 65534, -1)
        with pytest.raises(UserInputError, match="no file of this user"):
            load_token(path)


def test_what_a_stopping_server_gives_up_is_told() -> None:
    sent: list[dict[str, object]] = []

    async def forever(*_: object) -> None:
        await asyncio.sleep(60)

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b""}

    async def send(message: object) -> None:
        sent.append(dict(message))  # type: ignore[call-overload]

    async def main() -> None:
        headers = [(b"host", HOST.encode()), (b"authorization", f"Bearer {TOKEN}".encode())]
        scope = {"type": "http", "method": "GET", "path": "/models", "headers": headers}
        task = asyncio.create_task(Gate(forever, Token(TOKEN))(scope, receive, send))  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"]) == {"error": "the gateway is stopping", "fix": "ask again once it runs"}  # type: ignore[arg-type]
