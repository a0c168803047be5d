"""The gateway's routes: what is asked under which address. `openapi.json` describes them to others."""

import contextlib
import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mpcformer.errors import MPCFormerError, UserInputError, os_remedy, unexpected
from mpcformer.files import remove
from parties.ask.classifier import Answer
from parties.gateway import counts, questions, replies
from parties.gateway.gate import PAGE_SECRET, Gate
from parties.gateway.questions import Question
from parties.gateway.replies import RequestError
from parties.gateway.served import ServedModel, in_threads
from parties.gateway.token_file import Token
from parties.gateway.upload import State, Upload, checked_name
from parties.gateway.uploads import Uploads

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
MOST_QUESTION_BYTES = 16 << 20
# One length, so that a proof is of use for nothing else.
CHALLENGE = re.compile(r"[0-9a-f]{64}")
LINES = "application/x-ndjson"
METRICS = "text/plain; version=0.0.4"


class Gateway:
    """The endpoints.

    Args:
        models: what is served.
        uploads: the uploaded files.
        token: what proves to the page that this is the gateway, and the page's secret.
        most_upload_bytes: how large an upload may be.
    """

    def __init__(self, models: Iterable[ServedModel], uploads: Uploads, token: Token, most_upload_bytes: int) -> None:
        self._models = {model.name: model for model in models}
        self._uploads, self._token, self._most_upload_bytes = uploads, token, most_upload_bytes
        self._page = {path.name: path.read_bytes() for path in PAGE.iterdir() if path.suffix in TYPES}
        self._openapi = (PAGE.parent / "openapi.json").read_bytes()

    def routes(self) -> list[Route]:
        """Return all routes."""
        return [
            Route("/", self.page, methods=["GET"]),
            Route("/", self.ask, methods=["POST"]),
            Route("/page/{name}", self.page, methods=["GET"]),
            Route(PAGE_SECRET, self.page_secret, methods=["POST"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
            Route("/models", self.models, methods=["GET"]),
            Route("/models/{model}", self.model, methods=["GET"]),
            Route("/models/{model}", self.ask, methods=["POST"]),
            Route("/uploads", self.list_uploads, methods=["GET"]),
            Route("/uploads", self.upload, methods=["POST"]),
            Route("/uploads/{upload}", self.show_upload, methods=["GET"]),
            Route("/uploads/{upload}", self.remove_upload, methods=["DELETE"]),
            Route("/uploads/{upload}/stop", self.stop_upload, methods=["POST"]),
            Route("/uploads/{upload}/go-on", self.go_on, methods=["POST"]),
            Route("/uploads/{upload}/answers", self.download, methods=["GET"]),
        ]

    async def page(self, request: Request) -> Response:
        """Give a file of the page. None of them holds anything secret."""
        name = request.path_params.get("name", "index.html")
        if name not in self._page:
            raise RequestError(replies.NOTHING_THERE, "the page has no such file", "reload the page")
        return Response(self._page[name], media_type=TYPES[Path(name).suffix])

    async def page_secret(self, request: Request) -> Response:
        """Give the page's secret, in exchange for what the gate has seen: the code of an address, or the token."""
        return JSONResponse({"secret": self._token.page_secret})

    async def health(self, request: Request) -> Response:
        """Say that the gateway runs and, if it is challenged, prove that it has the token and the page's secrets."""
        challenge = request.query_params.get("challenge")
        if challenge is None:
            return JSONResponse({"status": "ok"})
        if not CHALLENGE.fullmatch(challenge):
            raise UserInputError("challenge: it is not 64 hex digits", "draw 32 random bytes")
        proofs = {"proof": self._token.proof(challenge), "page_proofs": self._token.page_proofs(challenge)}
        return JSONResponse({"status": "ok"} | proofs)

    async def metrics(self, request: Request) -> Response:
        """Count what was done, in the format of Prometheus."""
        states = [upload.state for upload in self._uploads.listed()]
        found = counts.shown({state.value: states.count(state) for state in State})
        return Response(found, media_type=METRICS)

    async def openapi(self, request: Request) -> Response:
        """Describe the routes."""
        return Response(self._openapi, media_type="application/json")

    async def models(self, request: Request) -> Response:
        """List what is public of each model."""
        return JSONResponse([model.facts() for model in self._models.values()])

    async def model(self, request: Request) -> Response:
        """Tell what is public of a model."""
        return JSONResponse(self._asked(request.path_params["model"]).facts())

    def _asked(self, name: str | None) -> ServedModel:
        """Return the model of this name, or the only one.

        Raises:
            RequestError: there is no such model, or there are several and none is named.
        """
        if name is None and len(self._models) == 1:
            return next(iter(self._models.values()))
        if name not in self._models:
            what = "no model is named" if name is None else "there is no model of this name"
            raise RequestError(replies.NOTHING_THERE, what, f"ask one of: {', '.join(self._models)}")
        return self._models[name]

    async def ask(self, request: Request) -> Response:
        """Answer texts."""
        model = self._asked(request.path_params.get("model"))
        question = questions.parsed(await replies.read_body(request, MOST_QUESTION_BYTES, "the body"))
        with contextlib.ExitStack() as held:
            held.enter_context(model.asking())
            answers = in_threads(model.answers(question))
            if LINES in request.headers.get("accept", ""):
                # An error before the first answer still has a status of its own.
                first = await anext(answers, None)
                return Lines(_lines(model, question, first, answers), held.pop_all())
            try:
                found = []
                async for answer in answers:
                    counts.count(answer)
                    found.append(answer)
                    # Nobody reads the rest: it need not be computed.
                    if await request.is_disconnected():
                        return Response(status_code=replies.CALLER_LEFT)
            finally:
                await answers.aclose()
        entries = [_entry(model, question, answer) for answer in found]
        if not question.details:
            return JSONResponse(entries)
        return JSONResponse({"answers": entries, "details": [questions.detail(answer) for answer in found]})

    async def list_uploads(self, request: Request) -> Response:
        """List the uploads, the latest first."""
        return JSONResponse([upload.facts() for upload in self._uploads.listed()])

    async def upload(self, request: Request) -> Response:
        """Take a file of texts, and begin to answer it."""
        query = request.query_params
        if unknown := sorted(set(query) - {"name", "text_column", "model"}):
            raise UserInputError(f"the parameter {unknown[0][:40]!r} is unknown", "give name, text_column and model")
        name, model = checked_name(query.get("name", "")), self._asked(query.get("model"))
        replies.check_length(request, self._most_upload_bytes, "the file")
        folder = self._uploads.place()
        try:
            await self._receive(request, folder / name)
            columns = query.getlist("text_column")
            upload = await to_thread.run_sync(self._uploads.add, folder, name, model.name, columns)
        finally:
            # After `add`, the folder has another name.
            remove(folder)
        return JSONResponse(upload.facts(), 201, {"Location": f"/uploads/{upload.id}"})

    async def _receive(self, request: Request, path: Path) -> None:
        n_bytes = 0
        try:
            with path.open("xb") as handle:
                path.chmod(0o600)
                async for chunk in request.stream():
                    n_bytes += len(chunk)
                    if n_bytes > self._most_upload_bytes:
                        raise replies.too_large("the file", self._most_upload_bytes)
                    handle.write(chunk)
        except OSError as error:
            raise RequestError(507, f"the file cannot be kept: {error.strerror}", os_remedy(error)) from None

    def _upload(self, request: Request) -> Upload:
        return self._uploads.get(request.path_params["upload"])

    async def show_upload(self, request: Request) -> Response:
        """Tell how far an upload is."""
        return JSONResponse(self._upload(request).facts())

    async def stop_upload(self, request: Request) -> Response:
        """Stop an upload after the batch that is being computed."""
        upload = self._upload(request)
        self._uploads.stop(upload)
        return JSONResponse(upload.facts())

    async def go_on(self, request: Request) -> Response:
        """Go on with an upload that stopped or failed."""
        upload = self._upload(request)
        self._uploads.go_on(upload)
        return JSONResponse(upload.facts())

    async def remove_upload(self, request: Request) -> Response:
        """Remove an upload with its answers."""
        await to_thread.run_sync(self._uploads.remove, self._upload(request))
        return Response(status_code=204)

    async def download(self, request: Request) -> Response:
        """Give the file of answers."""
        upload = self._upload(request)
        if upload.state != State.DONE:
            raise RequestError(
                replies.CONFLICT, f"the upload is {upload.state}: its answers are not whole", "wait, or let it go on"
            )
        disposition = f"attachment; filename*=UTF-8''{quote(upload.download_name)}"
        return FileResponse(upload.out, headers={"Content-Disposition": disposition})


class Lines(StreamingResponse):
    """A reply of lines.

    Args:
        lines: the lines. Nobody may ask for the first of them, if the caller has left.
        held: closed when the reply has ended in whatever way.
    """

    def __init__(self, lines: AsyncIterator[bytes], held: contextlib.ExitStack) -> None:
        super().__init__(lines, media_type=LINES)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the lines."""
        with self._held:
            await super().__call__(scope, receive, send)


def _entry(model: ServedModel, question: Question, answer: Answer) -> Any:
    return questions.entry(answer, model.classify.labels, model.classify.task, question)


async def _lines(
    model: ServedModel,
    question: Question,
    first: Answer | None,
    others: AsyncGenerator[Answer, None],
) -> AsyncIterator[bytes]:
    """Yield a line of JSON for each answer; the last one may be an error, after which nothing more is answered."""
    try:
        if first is not None:
            yield _line(model, question, first)
            async for answer in others:
                yield _line(model, question, answer)
    except MPCFormerError as error:
        yield _as_line(replies.told(error))
    except Exception as error:
        log.error("%s", unexpected(error))
        yield _as_line({"error": unexpected(error), "fix": "please report it"})
    finally:
        await others.aclose()


def _line(model: ServedModel, question: Question, answer: Answer) -> bytes:
    counts.count(answer)
    entry = _entry(model, question, answer)
    return _as_line({"answer": entry, "details": questions.detail(answer)} if question.details else entry)


def _as_line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def build(models: Iterable[ServedModel], uploads: Uploads, token: Token, most_upload_bytes: int) -> ASGIApp:
    """Return the gateway as an ASGI application."""
    gateway = Gateway(models, uploads, token, most_upload_bytes)
    return Gate(Starlette(routes=gateway.routes(), exception_handlers=replies.HANDLERS), token)
