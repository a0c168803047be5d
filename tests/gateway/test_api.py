"""Questions to a gateway whose parties compute: shapes, statuses, lines, and what other parties saw."""

import asyncio
import contextlib
import hmac
import json
import re
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from mpcformer.errors import PartyError
from parties.gateway.app import Gateway, Lines
from parties.gateway.served import MOST_QUESTIONS, in_threads
from parties.gateway.token_file import Token
from parties.session.budget import NEVER
from parties.session.data_side import BudgetError
from tests.ask.test_classifier import plaintext
from tests.gateway.conftest import TOKEN, Site

TEXTS = ["the day was fine", "zinc", "a grim stone"]
LONG = "the " * 40


def test_texts_are_answered_in_hugging_faces_shapes(site: Site, picky: Path) -> None:
    reply = site.client.post("/models/picky", json={"inputs": TEXTS})
    assert reply.status_code == 200
    first, refused, last = reply.json()
    for entry, text in ((first, TEXTS[0]), (last, TEXTS[2])):
        expected = plaintext(picky, [text])[0]
        assert {each["label"] for each in entry} == {"negative", "positive"}
        assert entry[0]["label"] == expected["label"]
        assert entry[0]["score"] == pytest.approx(expected["score"], abs=0.002)
        assert sum(each["score"] for each in entry) == pytest.approx(1)
    (told,) = refused
    assert (told["label"], told["score"], told["refused"]) == (None, None, True)
    assert "left the range" in told["reason"]
    assert "other words" in told["fix"]


def test_one_text_a_pair_and_the_address_without_a_name(site: Site) -> None:
    one = site.client.post("/", json={"inputs": "warm"}).json()
    assert [len(entry) for entry in one] == [2]
    pair = site.client.post("/", json={"inputs": {"text": "warm", "text_pair": "cold"}, "parameters": {"top_k": 1}})
    assert [len(entry) for entry in pair.json()] == [1]
    assert site.client.post("/", json={"inputs": []}).json() == []
    # curl sends another type unless it is told; Hugging Face's API does not mind either.
    loose = site.client.post("/", content=b'{"inputs": "warm"}', headers={"content-type": "text/plain"})
    assert loose.json()[0][0]["label"] == one[0][0]["label"]


def test_too_long_a_text_says_what_to_do(site: Site) -> None:
    ((told,),) = site.client.post("/", json={"inputs": LONG}).json()
    assert told["label"] is None
    assert "more than the model's" in told["reason"]
    assert "--max-length" in told["fix"]


def test_details_and_what_the_others_saw(site: Site) -> None:
    asks = {"inputs": ["warm", LONG], "parameters": {"details": True, "seen": True}}
    reply = site.client.post("/", json=asks).json()
    assert set(reply) == {"answers", "details"}
    detail, nothing = reply["details"]
    assert nothing == {}, "a text that was not asked took nothing, and nobody saw anything of it"
    assert detail["seconds"] >= detail["online_seconds"] > 0
    assert detail["batch"] == [1, 16]
    owner, dealer = detail["seen"]["model_owner"], detail["seen"]["dealer"]
    assert len(bytes.fromhex(owner["first"])) == 256
    assert sum(owner["histogram"]) == owner["counted"] > 2000
    # All of them came over the wire, and frames add to them.
    assert owner["counted"] < detail["bytes"]
    # Uniform bytes: Pearson's statistic with 255 degrees of freedom has the mean 255 and the deviation 22.6.
    expected = owner["counted"] / 256
    assert sum((n - expected) ** 2 / expected for n in owner["histogram"]) < 255 + 8 * 22.6
    assert dealer["correlations"] > sum(each["count"] > 0 for each in dealer["listed"]) > 3
    assert {each["kind"] for each in dealer["listed"]} >= {"linear", "lifted"}


def test_what_left_is_fresh_each_time_and_not_the_text(site: Site) -> None:
    asks = {"inputs": "warm", "parameters": {"details": True, "seen": True}}
    firsts = [site.client.post("/", json=asks).json()["details"][0]["seen"]["model_owner"]["first"] for _ in range(2)]
    assert firsts[0] != firsts[1]
    assert (
        "seen"
        not in site.client.post("/", json={"inputs": "warm", "parameters": {"details": True}}).json()["details"][0]
    )


def test_long_lists_come_as_lines(site: Site) -> None:
    asks = {"inputs": TEXTS * 20}
    with site.client.stream("POST", "/", json=asks, headers={"accept": "application/x-ndjson"}) as reply:
        assert reply.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in reply.iter_lines()]
    assert len(lines) == 60
    assert [line[0]["label"] is None for line in lines] == [text == "zinc" for text in TEXTS * 20]


@pytest.mark.parametrize(
    ("path", "method", "body", "status", "error"),
    [
        ("/", "POST", '{"inputs": 3}', 400, "int is neither a text"),
        ("/", "POST", "{", 400, "no JSON"),
        ("/models/other", "POST", '{"inputs": "a"}', 404, "no model of this name"),
        ("/models/other", "GET", "", 404, "no model of this name"),
        ("/nothing", "GET", "", 404, "there is nothing"),
        ("/page/nothing.js", "GET", "", 404, "no such file"),
        ("/models", "PUT", "", 405, "PUT is not allowed"),
        ("/", "DELETE", "", 405, "DELETE is not allowed"),
        ("/", "POST", '{"inputs": ["a"' + ', "a"' * 10_000 + "]}", 413, "10001 texts"),
        ("/", "POST", " " * ((16 << 20) + 1), 413, "larger than 16 MiB"),
        ("/uploads/0123", "GET", "", 404, "no such upload"),
    ],
)
def test_errors(site: Site, path: str, method: str, body: str, status: int, error: str) -> None:
    reply = site.client.request(method, path, content=body)
    assert reply.status_code == status
    told = reply.json()
    assert error in told["error"]
    assert told["fix"]


def chunks() -> Iterator[bytes]:
    for _ in range(17):
        yield b" " * (1 << 20)


def test_a_body_of_unknown_length_is_limited_too(site: Site) -> None:
    assert site.client.post("/", content=chunks()).status_code == 413


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (BudgetError("model-owner", 3600), 429, "3600"),
        (BudgetError("model-owner", NEVER), 429, None),
        (PartyError("dealer", "its connection ended"), 503, "1"),
        (ValueError("the-secret-text"), 500, None),
    ],
)
@pytest.mark.parametrize("lines", [False, True])
def test_what_goes_wrong_while_it_is_answered(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, retry: str | None, lines: bool
) -> None:
    def fails(*_: object, **__: object) -> Iterator[Any]:
        raise error
        yield

    monkeypatch.setattr(site.model.classify, "answers", fails)
    accept = {"accept": "application/x-ndjson"} if lines else {}
    reply = site.client.post("/", json={"inputs": "a"}, headers=accept)
    assert reply.status_code == status
    assert reply.headers.get("retry-after") == retry
    assert reply.json()["error"]
    assert reply.json()["fix"]
    assert "the-secret-text" not in reply.text


def test_what_goes_wrong_between_lines_is_the_last_line(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object, **__: object) -> Iterator[Any]:
        yield {"label": "positive", "score": 0.5, "logits": [0.0, 0.0]}
        raise PartyError("dealer", "its connection ended")

    monkeypatch.setattr(site.model.classify, "answers", breaks)
    reply = site.client.post("/", json={"inputs": ["a", "b"]}, headers={"accept": "application/x-ndjson"})
    first, last = map(json.loads, reply.text.splitlines())
    assert len(first) == 2
    assert last["error"] == "dealer: its connection ended"


def test_no_more_questions_than_there_are_threads(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.model, "_n_asking", MOST_QUESTIONS)
    reply = site.client.post("/", json={"inputs": "a"})
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    monkeypatch.undo()
    assert site.client.post("/", json={"inputs": "warm"}).status_code == 200
    assert site.model._n_asking == 0


def test_the_facts_of_a_model(site: Site) -> None:
    (facts,) = site.client.get("/models").json()
    assert facts == site.client.get("/models/picky").json()
    assert facts["labels"] == ["negative", "positive"]
    assert facts["task"] == "text-classification"
    assert re.fullmatch(r"[0-9a-f]{64}", facts["sha256"])
    assert facts["local"]
    assert set(facts["parties"]) == {"dealer", "model-owner"}


def test_metrics_count_and_never_quote(site: Site) -> None:
    def counted() -> dict[str, float]:
        reply = site.client.get("/metrics")
        assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = [line for line in reply.text.splitlines() if not line.startswith("#")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}

    before = counted()
    site.client.post("/", json={"inputs": TEXTS})
    site.client.post("/", json={"inputs": 3})
    after = counted()
    grown = {name: n - before.get(name, 0) for name, n in after.items() if n != before.get(name, 0)}
    assert grown['mpcformer_gateway_texts_total{outcome="answered"}'] == 2
    assert grown['mpcformer_gateway_texts_total{outcome="refused"}'] == 1
    assert grown['mpcformer_gateway_errors_total{status="400"}'] == 1
    asked = sum(grown.get(f'mpcformer_asked_batches_total{{dealt="{when}"}}', 0) for when in ("ahead", "late"))
    assert asked >= 1
    assert after["mpcformer_sentences_total"] > before["mpcformer_sentences_total"]
    assert site.stranger.get("/metrics").status_code == 401
    assert not any(text in site.client.get("/metrics").text for text in TEXTS)


def test_the_gateway_proves_that_it_has_the_token(site: Site) -> None:
    challenge = "5c" * 32
    told = site.stranger.get("/health", params={"challenge": challenge}).json()
    secret = site.client.post("/page-secret").json()["secret"]
    of_token, of_page = (hmac.new(key.encode(), challenge.encode(), "sha256").hexdigest() for key in (TOKEN, secret))
    assert set(told) == {"status", "proof", "page_proofs"}
    assert (told["status"], told["proof"]) == ("ok", of_token)
    assert of_page in told["page_proofs"]
    assert site.stranger.get("/models", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    assert site.stranger.get("/health").json() == {"status": "ok"}
    for wrong in ("", "5c", "5C" * 32, challenge + "00", "x" * 64):
        assert site.stranger.get("/health", params={"challenge": wrong}).status_code == 400


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, each in value.items():
            if name == "$ref":
                yield each
            else:
                yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def test_the_description_names_every_route_field_and_status(site: Site) -> None:
    described = site.stranger.get("/openapi.json").json()
    routes: list[Route] = Gateway([site.model], site.uploads, Token(TOKEN), 1).routes()
    real = {(route.path, method.lower()) for route in routes for method in (route.methods or ()) if method != "HEAD"}
    assert {(path, method) for path, methods in described["paths"].items() for method in methods} == real
    for reference in references(described):
        place = described
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
    open_ones = {path for path, methods in described["paths"].items() if methods.get("get", {}).get("security") == []}
    for path, methods in described["paths"].items():
        for method in methods:
            address = path.replace("{name}", "page.js").replace("{model}", "picky").replace("{upload}", "0")
            status = site.stranger.request(method, address).status_code
            assert (status == 401) == (path not in open_ones or method == "post"), (path, method)
            assert str(status) in methods[method]["responses"] or status == 200
    schemas = described["components"]["schemas"]
    (facts,) = site.client.get("/models").json()
    assert set(facts) == set(schemas["Model"]["properties"])
    asks = {"inputs": "warm", "parameters": {"details": True, "seen": True}}
    detail = site.client.post("/", json=asks).json()["details"][0]
    assert set(detail) == set(schemas["Detail"]["properties"])
    assert set(detail["seen"]["model_owner"]) == set(schemas["Seen"]["properties"]["model_owner"]["properties"])


def test_pages_come_with_their_types(site: Site) -> None:
    page = site.stranger.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    linked = re.findall(r'(?:href|src)="(/page/[^"]+)"', page.text)
    assert len(set(linked)) == 3
    for address in linked:
        assert site.stranger.get(address).status_code == 200
    # The policy forbids these; a browser would leave them out without a word.
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script>", page.text)
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", page.text)


def test_a_cancelled_wait_lets_the_thread_end_with_its_batch() -> None:
    goes_on, closed = threading.Event(), threading.Event()

    def slow() -> Generator[int, None, None]:
        try:
            yield 1
            goes_on.wait(10)
            yield 2
        finally:
            closed.set()

    async def wait() -> None:
        async for _ in in_threads(slow()):
            pass

    async def main() -> None:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        goes_on.set()

    asyncio.run(main())
    assert closed.wait(10)


def test_a_caller_that_leaves_before_the_first_line_is_counted_no_longer(site: Site) -> None:
    async def left() -> None:
        held = contextlib.ExitStack()
        held.enter_context(site.model.asking())

        async def lines() -> AsyncIterator[bytes]:
            yield b""

        async def gone(*_: object) -> None:
            raise OSError

        with pytest.raises(ClientDisconnect):
            await Lines(lines(), held)({"type": "http", "asgi": {"spec_version": "2.4"}}, gone, gone)  # type: ignore[arg-type]

    assert site.model._n_asking == 0
    asyncio.run(left())
    assert site.model._n_asking == 0
