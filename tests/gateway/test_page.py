"""The page in a real Chromium, and the command as a user starts, interrupts and starts it again."""

import contextlib
import csv
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import Mock
from urllib.parse import urlsplit

import pytest
import uvicorn
from huggingface_hub import InferenceClient

from mpcformer.errors import UserInputError
from parties.gateway.app import build
from parties.gateway.served import ServedModel
from parties.gateway.server import place
from parties.gateway.token_file import Token
from parties.gateway.uploads import Uploads
from tests.devtools import Page, browser
from tests.gateway.running import Running, running

CANARY = "canary-of-the-gateway"
SECRET = "a-token-that-nobody-else-may-have"
WIDTHS = (390, 1280)
# What a reader would have to scroll sideways for.
TOO_WIDE = """[...document.querySelectorAll("body *")].filter((each) => {
  const box = each.getBoundingClientRect();
  return box.width && (box.left < -0.5 || box.right > innerWidth + 0.5) && !each.closest("svg");
}).map((each) => each.tagName + "." + each.className)"""


@pytest.fixture(scope="module")
def gateway(picky: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("running") / "gateway"
    with running(picky, folder) as found:
        yield found
        # Whatever the tests asked: neither a text nor the token is ever logged.
        found.ask(f"/{CANARY}")
        found.ask("/", json.dumps({"inputs": [CANARY, 3]}).encode())
        assert found.stop() == 0
        for secret in (CANARY, found.token, "the day was fine", "grim stone"):
            assert secret not in found.said


def opened(page: Page, gateway: Running, width: int = 1280) -> None:
    """Open the page with the token."""
    page.look(width)
    page.open(gateway.address)
    page.until("!document.getElementById('locked').hidden")
    page.type(gateway.token)
    page.press("Enter")
    page.until("!document.getElementById('open').hidden")


def test_a_reader_types_uploads_reads_and_sees_the_refused(gateway: Running, tmp_path: Path) -> None:
    rows = ["warm and lovely day", "zinc", "a grim stone"] * 10
    path = tmp_path / "reviews.csv"
    path.write_text("text\n" + "\n".join(rows) + "\n")
    with browser(tmp_path) as page:
        opened(page, gateway)
        # By keyboard alone: the text has the focus.
        page.type("the day was fine")
        page.press("Enter", ctrl=True)
        page.until("document.querySelectorAll('#bars dt').length === 2")
        page.until("document.getElementById('status').innerText.startsWith('Answer: ')")
        best = page.shown("#bars .best dt")
        assert page.shown("#status").startswith(f"Answer: {best}, ")
        assert page.run("document.querySelector('#bars .fill').style.width") > "50%"
        assert page.shown("#figures").split()[0] == "time"
        assert page.shown("#you-text") == "the day was fine"
        assert page.shown("#you-hex").startswith("74 68 65 20 64 61 79")
        assert page.run("document.querySelectorAll('#owner-chart rect').length") == 256
        assert "Chi-squared" in page.shown("#owner-caption")
        assert "linear" in page.shown("#dealer-shapes")

        # A refused text has no answer, and what to do.
        page.run("document.getElementById('text').value = ''")
        page.type("zinc")
        page.press("Tab")  # to the second text's heading
        page.press("Tab")
        assert page.run("document.activeElement.id") == "send"
        page.press("Enter")
        page.until("!document.getElementById('problem').hidden")
        assert "left the range" in page.shown("#problem")
        assert "What to do: say it in other words" in page.shown("#problem")
        assert page.shown("#bars") == ""
        assert "no answer" in page.shown("#status")

        # A file comes back answered, and its refused rows are marked.
        page.drop("#drop", path)
        page.until("document.querySelector('.upload-state')?.innerText === 'answered'")
        assert page.run("document.querySelector('.upload progress').value") == len(rows)
        assert "10 of them refused" in page.shown(".upload-counts")
        page.run("document.querySelector('.upload-refused summary').click()")
        assert "row 1: an activation of this text left the range" in page.shown(".upload-refused ul")
        page.run("document.querySelector('.do-download').click()")
        out = tmp_path / "reviews-answered.csv"
        deadline = time.monotonic() + 20
        while not out.is_file():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        answers = list(csv.DictReader(out.open(newline="")))
        assert [row["text"] for row in answers] == rows
        assert [row["refused"] for row in answers] == ["False", "True", "False"] * 10

        # Whatever is open, nothing has to be scrolled sideways.
        for width in WIDTHS:
            page.look(width, dark=width < 600)
            assert page.run(TOO_WIDE) == []
            page.picture(tmp_path / f"page-{width}.png")
            assert (tmp_path / f"page-{width}.png").stat().st_size > 20_000
        assert page.errors == []


def test_a_reader_stops_and_goes_on(gateway: Running, tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("first,second\n" + "a grim stone,warm\n" * 300)
    with browser(tmp_path) as page:
        opened(page, gateway, width=390)
        page.choose("#file", path)
        # Which column it is cannot be guessed.
        page.until("!document.getElementById('columns').hidden")
        assert page.run("document.activeElement.id") == "column"
        page.run("document.getElementById('column').value = 'second'")
        page.press("Tab")
        page.press("Enter")
        row = "[...document.querySelectorAll('.upload')].find((each) => each.innerText.includes('long.csv'))"
        page.until(f"{row}?.querySelector('progress').value > 0")
        page.run(f"{row}.querySelector('.do-stop').click()")
        page.until(f"{row}.querySelector('.upload-state').innerText === 'stopped'")
        n_done = page.run(f"{row}.querySelector('progress').value")
        assert 0 < n_done < 300
        page.run(f"{row}.querySelector('.do-go-on').click()")
        page.until(f"{row}.querySelector('.upload-state').innerText === 'answered'")
        page.run(f"{row}.querySelector('.do-remove').click()")
        page.until(f"!{row}")
        assert [error for error in page.errors if "400" not in error] == []


def test_without_the_token_the_page_asks_for_it(gateway: Running, tmp_path: Path) -> None:
    with browser(tmp_path) as page:
        page.look(390)
        page.open(gateway.address)
        page.until("!document.getElementById('locked').hidden")
        assert page.run("document.activeElement.id") == "token"
        page.type("a-wrong-token")
        page.press("Enter")
        page.until("document.getElementById('locked-title').innerText === 'The token is wrong'")
        page.type(gateway.token)
        page.press("Enter")
        page.until("!document.getElementById('open').hidden")
        assert page.run("document.getElementById('locked').hidden")
        # Another page of this machine gets nothing, whatever it sends.
        page.open("data:text/html,<title>another page</title>")
        script = f"fetch('{gateway.address}models').then((reply) => reply.status, () => 'refused')"
        assert page.run(script) == "refused"


class Impostor(http.server.BaseHTTPRequestHandler):
    """Another user of this machine, who listens at the port of a gateway that has ended."""

    heard: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.heard.append(f"{self.path} {self.headers}")
        body = json.dumps({"status": "ok", "proof": "00" * 32}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def without_parties(folder: Path, token: Token, port: int = 0, names: Sequence[str] = ("none",)) -> Iterator[str]:
    """Serve a gateway of this process that asks nobody, and give its address. Its models refuse every text."""
    facts = {"task": "text-classification", "labels": ["a", "b"], "model": "00" * 32, "positions": 16, "parties": {}}

    def refusing(name: str) -> Any:
        reply = {"label": None, "score": None, "refused": True, "reason": f"{name} was asked"}
        return Mock(**facts, answers=lambda texts, **more: (reply for _ in texts))

    models = [ServedModel(name, refusing(name), is_local=True) for name in names]
    app = build(models, Uploads(folder, {}), token, 1 << 20)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
    with socket.create_server(("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


def test_a_reader_picks_a_model(tmp_path: Path) -> None:
    token = Token(SECRET)
    chosen = "document.getElementById('models').value"
    with browser(tmp_path) as page, without_parties(tmp_path / "u", token, names=("films", "news")) as address:
        page.look(390)
        page.open(token.address(address))
        page.until("!document.getElementById('open').hidden")
        assert (page.run(chosen), page.shown("#name")) == ("films", "films")
        page.type("a text")
        page.press("Enter", ctrl=True)
        page.until("document.getElementById('problem').innerText.includes('films was asked')")
        page.run("document.getElementById('models').focus()")
        page.press("ArrowDown")
        page.until(f"{chosen} === 'news'")
        assert page.run("document.getElementById('problem').hidden")
        assert page.shown("#name") == "news"
        assert page.shown("#model").startswith("news: ")
        assert page.run(TOO_WIDE) == []
        page.run("document.getElementById('text').focus()")
        page.press("Enter", ctrl=True)
        page.until("document.getElementById('problem').innerText.includes('news was asked')")
    with browser(tmp_path) as page, without_parties(tmp_path / "one", token := Token(SECRET)) as address:
        page.open(token.address(address))
        page.until("!document.getElementById('open').hidden")
        assert page.run("document.getElementById('choice').hidden")


def test_an_open_page_sends_an_impostor_nothing(tmp_path: Path) -> None:
    token = Token(SECRET)
    with browser(tmp_path) as page:
        page.look(1280)
        with without_parties(tmp_path / "uploads", token) as address:
            page.open(token.address(address))
            page.until("!document.getElementById('open').hidden")
        with http.server.ThreadingHTTPServer(("127.0.0.1", urlsplit(address).port or 0), Impostor) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            page.type("a text that only the gateway may read")
            page.press("Enter", ctrl=True)
            page.until("document.getElementById('locked-title').innerText === 'The gateway of this page has ended'")
            page.type(SECRET)
            page.press("Enter")
            page.until("document.getElementById('locked-title').innerText === 'The token is wrong'")
            server.shutdown()
    heard = " ".join(Impostor.heard)
    assert "/health?challenge=" in heard
    assert SECRET not in heard
    assert token.page_secret not in heard
    assert "Authorization" not in heard
    assert not [each for each in Impostor.heard if not each.startswith("/health")]


def test_what_a_browser_writes_down_opens_nothing_later(tmp_path: Path) -> None:
    token = Token(SECRET)
    locked = "document.getElementById('locked-title').innerText === "
    with without_parties(tmp_path / "uploads", token) as address, browser(tmp_path) as page:
        printed = token.address(address)
        assert SECRET not in printed
        assert token.page_secret not in printed
        page.open(printed)
        page.until("!document.getElementById('open').hidden")
        assert page.run("location.href") == address
        # The tab may be loaded again; the address that is in the history may not.
        page.call("Page.reload")
        page.until("document.readyState === 'complete' && !document.getElementById('open').hidden")
        assert token.address(address) == address
        page.run("sessionStorage.clear()")
        page.open("about:blank")
        page.open(printed)
        page.until(locked + "'This address was used already'")
        # The token opens the page, and is then written down nowhere.
        page.type(SECRET)
        page.press("Enter")
        page.until("!document.getElementById('open').hidden")
        assert page.run("Object.values(sessionStorage)") == [token.page_secret]
        assert page.run("Object.keys(localStorage).length") == 0
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]


PLANTS = b"""<title>x</title><script>
navigator.serviceWorker.register("/w.js");
navigator.serviceWorker.ready.then(() => document.title = "planted");
</script>"""
WORKER = b"""addEventListener("activate", (event) => event.waitUntil(clients.claim()));
addEventListener("fetch", (event) => {
  const page = () => new Response("<title>another page</title>", { headers: { "Content-Type": "text/html" } });
  if (event.request.mode === "navigate") event.respondWith(page());
});"""


class Planter(Impostor):
    """Another user who leaves a service worker in the browser."""

    def do_GET(self) -> None:
        is_worker = self.path == "/w.js"
        body = WORKER if is_worker else PLANTS
        self.send_response(200)
        self.send_header("Content-Type", "text/javascript" if is_worker else "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_a_service_worker_that_another_user_planted_goes(tmp_path: Path) -> None:
    token = Token(SECRET)
    with browser(tmp_path) as page:
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Planter) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            port = server.server_address[1]
            page.open(f"http://127.0.0.1:{port}/")
            page.until("document.title === 'planted'")
            server.shutdown()
        with without_parties(tmp_path / "uploads", token, port) as address:
            page.open(address)
            assert page.run("document.title") == "another page", "it answers once more in the gateway's place"
            page.until("navigator.serviceWorker.getRegistrations().then((found) => found.length === 0)")
            page.open("about:blank")
            page.open(token.address(address))
            page.until("!document.getElementById('open').hidden")


def test_everything_on_the_page_has_a_name(gateway: Running, tmp_path: Path) -> None:
    with browser(tmp_path) as page:
        opened(page, gateway)
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "img", "progressbar", "link", "combobox", "heading", "DisclosureTriangle"}
    named = [
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in roles
    ]
    assert {role for role, _ in named} >= {"button", "textbox", "heading", "link"}
    assert [role for role, name in named if not name] == []
    live = [node for node in nodes if any(each["name"] == "live" for each in node.get("properties", []))]
    assert len(live) >= 2


def test_hugging_faces_own_client(gateway: Running) -> None:
    client = InferenceClient(model=f"{gateway.address}models/student", token=gateway.token)
    found = client.text_classification("the day was fine")
    assert {each.label for each in found} == {"negative", "positive"}
    assert found[0].score > 0.5
    assert len(client.text_classification("the day was fine", top_k=1)) == 1


HOST = b"Host: 127.0.0.1\r\n"
GARBAGE = [
    b"",
    b"\n" * 1000,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + HOST + b"Host: evil.example\r\n\r\n",
    b"GET / HTTP/9.9\r\n" + HOST + b"\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET " + b"a" * 200_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 50_000 + b"\r\n",
    b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /page/..%2fapp.py HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /models HTTP/1.1\r\n" + HOST + b"Authorization: Bearer \xff\r\n\r\n",
    b"CONNECT evil.example:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET / HTTP/1.1\r\n" + HOST + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999999999999\r\n\r\n",
    b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
]


@pytest.mark.parametrize("sent", GARBAGE, ids=range(len(GARBAGE)))
def test_whatever_a_stranger_sends_is_refused_soon(gateway: Running, sent: bytes) -> None:
    port = int(gateway.address.rstrip("/").rpartition(":")[2])
    reply = b""
    link = socket.create_connection(("127.0.0.1", port), timeout=10)
    # It may end the connection before it has read everything.
    with link, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        link.sendall(sent)
        # It is no error that the connection has ended by now.
        with contextlib.suppress(OSError):
            link.shutdown(socket.SHUT_WR)
        while part := link.recv(1 << 16):
            reply += part
    status = reply.split(b" ")[1:2]
    assert not status or status[0][:1] == b"4" or b"<title>Ask privately" in reply
    assert gateway.token.encode() not in reply
    assert b"root:" not in reply
    assert b"import " not in reply
    assert gateway.ask("/health") == (200, {"status": "ok"})


@pytest.mark.slow
def test_interrupted_and_on_again_and_no_text_is_logged(picky: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gateway"
    content = ("text\n" + f"warm {CANARY}\n" + "a grim stone\n" * 300).encode()
    with running(picky, folder) as gateway:
        token = gateway.token
        assert gateway.ask("/", json.dumps({"inputs": [CANARY, 3]}).encode())[0] == 400
        assert gateway.ask(f"/{CANARY}")[0] == 404
        key = gateway.ask("/uploads?name=reviews.csv", content)[1]["id"]
        while not gateway.ask(f"/uploads/{key}")[1]["answered"]:
            time.sleep(0.02)
        assert gateway.stop() == 0
        assert "1 upload is not finished" in gateway.said
        said = gateway.said
    with running(picky, folder) as gateway:
        assert gateway.token == token
        status, left = gateway.ask(f"/uploads/{key}")
        assert (status, left["state"]) == (200, "stopped")
        assert 0 < left["answered"] < 301
        assert gateway.ask(f"/uploads/{key}/go-on", b"")[0] == 200
        while (done := gateway.ask(f"/uploads/{key}")[1])["state"] != "done":
            assert "error" not in done
            time.sleep(0.05)
        assert done["answered"] == 301
        with pytest.raises(UserInputError, match="another gateway uses"), place(0, folder, None):
            pass
        assert gateway.stop() == 0
        said += gateway.said
    assert CANARY not in said
    assert token not in said
    rows = list(csv.DictReader((folder / "uploads" / key / "answers.csv").open(newline="")))
    assert len(rows) == 301
    assert CANARY in rows[0]["text"]


def test_nobody_else_can_take_the_port_before_a_session_is_open(tmp_path: Path) -> None:
    with place(0, tmp_path / "gateway", None) as site, socket.socket() as other:
        address = site.listener.getsockname()
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(address)
        # Who calls already waits in the queue of this process.
        with socket.create_connection(address, timeout=10):
            site.listener.accept()[0].close()


def test_a_port_or_folder_that_cannot_be_used(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserInputError, match=f"--port: {port} is in use"), place(port, tmp_path / "a", None):
            pass
    others = tmp_path / "others"
    others.mkdir()
    others.chmod(0o777)
    with pytest.raises(UserInputError, match=r"--folder: .* is no folder that this user alone"), place(0, others, None):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UserInputError, match="--folder"), place(0, tmp_path / "file", None):
        pass
    with place(0, tmp_path / "mine", None) as site:
        assert site.folder.stat().st_mode & 0o777 == 0o700
        assert site.token_file == tmp_path / "mine" / "token"
        assert site.address.startswith("http://127.0.0.1:")
