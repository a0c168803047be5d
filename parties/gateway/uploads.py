"""All uploads of a gateway, and the thread that answers them one after the other."""

import logging
import queue
import re
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from mpcformer.errors import MPCFormerError, UserInputError, os_remedy, unexpected
from mpcformer.files import remove
from parties.ask.classifier import Classifier
from parties.gateway import replies
from parties.gateway.replies import RequestError
from parties.gateway.upload import State, Upload, answer_all, arrived, restored

log = logging.getLogger(__name__)

ID = re.compile(r"[0-9a-f]{16}")
# While a file arrives, its folder has this before its name.
UNFINISHED = "new-"
MOST_UPLOADS = 100


class Uploads:
    """All uploads of a folder, and the thread that answers them one after the other.

    Args:
        folder: where they are; it is made if it is missing, and other users may not read it.
        models: the classifier and the `max_length` of each model, by name.

    Attributes:
        folder: the same.
    """

    def __init__(self, folder: Path, models: Mapping[str, tuple[Classifier, int | None]]) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self.folder, self._models = folder, models
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Upload | None] = queue.SimpleQueue()
        self._found: dict[str, Upload] = {}
        self._began = 0.0
        for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime):
            if path.name.startswith(UNFINISHED):
                remove(path)
            elif ID.fullmatch(path.name):
                try:
                    self._found[path.name] = restored(path)
                except UserInputError as error:
                    log.warning("%s; fix: %s", error.what, error.remedy)
        self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
        self._thread.start()

    def listed(self) -> list[Upload]:
        """Return all uploads, the latest first."""
        with self._lock:
            return list(reversed(self._found.values()))

    def get(self, key: str) -> Upload:
        """Return the upload of this id.

        Raises:
            RequestError: there is none.
        """
        with self._lock:
            if key in self._found:
                return self._found[key]
        raise RequestError(replies.NOTHING_THERE, "there is no such upload", "GET /uploads lists those that exist")

    def place(self) -> Path:
        """Return a fresh folder for a file that arrives.

        Raises:
            RequestError: there are too many uploads.
        """
        if len(self._found) >= MOST_UPLOADS:
            raise RequestError(replies.CONFLICT, f"{MOST_UPLOADS} uploads are kept already", "remove some of them")
        path = self.folder / f"{UNFINISHED}{secrets.token_hex(8)}"
        path.mkdir(mode=0o700)
        return path

    def add(self, folder: Path, name: str, model: str, columns: list[str]) -> Upload:
        """Take a file that has arrived in a folder of `place`, and begin to answer it.

        Raises:
            UserInputError: it is no table of texts.
        """
        arrived(folder, name, model, columns)
        final = folder.with_name(folder.name.removeprefix(UNFINISHED))
        folder.rename(final)
        upload = restored(final)
        with self._lock:
            self._found[upload.id] = upload
        self.go_on(upload)
        return upload

    def go_on(self, upload: Upload) -> None:
        """Let an upload that stopped or failed be answered, after those that wait already.

        Raises:
            RequestError: it is being answered, or is done.
        """
        with self._lock:
            if upload.state not in (State.STOPPED, State.FAILED):
                raise RequestError(
                    replies.CONFLICT, f"the upload is {upload.state}", "only one that stopped or failed goes on"
                )
            upload.stop.clear()
            upload.state, upload.error = State.WAITING, None
        self._queue.put(upload)

    def stop(self, upload: Upload) -> None:
        """Stop an upload after the batch that is being computed; nothing happens if it is not being answered."""
        with self._lock:
            upload.stop.set()
            if upload.state == State.WAITING:
                upload.state = State.STOPPED

    def remove(self, upload: Upload) -> None:
        """Remove an upload with its file and its answers.

        Raises:
            RequestError: it is being answered.
        """
        with self._lock:
            if upload.state in (State.WORKING, State.WAITING):
                raise RequestError(replies.CONFLICT, f"the upload is {upload.state}", "stop it first")
            self._found.pop(upload.id, None)
        remove(upload.folder)

    def close(self) -> int:
        """Stop all of them, wait for the batch that is being computed, and return how many are not done."""
        self._queue.put(None)
        unfinished = [upload for upload in self.listed() if upload.state != State.DONE]
        for upload in unfinished:
            self.stop(upload)
        self._thread.join()
        return sum(upload.state != State.DONE for upload in unfinished)

    def _work(self) -> None:
        while (upload := self._queue.get()) is not None:
            with self._lock:
                # It was stopped, or removed, while it waited.
                if upload.state != State.WAITING:
                    continue
                upload.state = State.WORKING
            state, error = self._answered(upload)
            with self._lock:
                upload.state, upload.error = state, error

    def _answered(self, upload: Upload) -> tuple[State, MPCFormerError | None]:
        before, began = upload.seconds, time.monotonic()

        def tell() -> None:
            upload.seconds = before + time.monotonic() - began

        try:
            if upload.model not in self._models:
                raise UserInputError(
                    f"this gateway serves no model {upload.model}", "start it with that model, or remove the upload"
                )
            done = answer_all(upload, *self._models[upload.model], tell)
            return State.DONE if done else State.STOPPED, None
        except MPCFormerError as error:
            return State.FAILED, error
        except OSError as error:
            return State.FAILED, UserInputError(f"{upload.name}: {error.strerror}", os_remedy(error))
        except Exception as error:
            log.error("%s", unexpected(error))
            return State.FAILED, MPCFormerError(unexpected(error), "please report it")
