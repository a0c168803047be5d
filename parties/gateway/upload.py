"""A file of texts that was uploaded, and its answers.

Each upload is a folder of its own with the file, `upload.json`, and the answers: `answers.csv.partial` while they grow,
as `mpcformer ask --out` writes them (see parties/ask/answers.py), and `answers.csv` in the end.
"""

import itertools
import json
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from mpcformer.errors import MPCFormerError, UserInputError
from mpcformer.files import read_json, remove, sha256_file, write_json
from mpcformer.tasks.files import TextFile
from mpcformer.tasks.tables import open_table
from parties.ask.answers import AnswerFile, partial_of
from parties.ask.classifier import Classifier, Text
from parties.gateway import counts, replies
from parties.gateway.questions import because
from parties.gateway.replies import RequestError

# The format of the answers, by that of the texts. A .json file would have to be read at once, whatever its size.
FORMATS = {
    ".csv": ".csv",
    ".tsv": ".csv",
    ".txt": ".csv",
    ".jsonl": ".jsonl",
    ".ndjson": ".jsonl",
    ".parquet": ".parquet",
}
FACTS = "upload.json"
# How many refused rows are listed.
N_LISTED = 20
# In bytes, of which a character may take four: file systems allow 255.
LONGEST_NAME = 100


class State(StrEnum):
    """What an upload is doing."""

    WAITING = "waiting"
    WORKING = "working"
    STOPPED = "stopped"
    FAILED = "failed"
    DONE = "done"


@dataclass
class Upload:
    """One file and its answers.

    Args:
        folder: its folder.
        name: what its owner calls the file; the folder has it under this name.
        model: the name of the model that answers.
        columns: the columns of text.
        n_rows: how many texts there are.
        digest: hex SHA-256 of the file.
        state: what it is doing.
        n_done: how many texts have an answer.
        n_refused: how many of these are refusals.
        refused: the first refused rows, [(row from 0, reason), ...].
        seconds: how long it has been worked on since the gateway started.
        error: what went wrong, if it failed.
    """

    folder: Path
    name: str
    model: str
    columns: list[str]
    n_rows: int
    digest: str
    state: State = State.STOPPED
    n_done: int = 0
    n_refused: int = 0
    refused: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0
    error: MPCFormerError | None = None
    stop: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def id(self) -> str:
        """The name of its folder."""
        return self.folder.name

    @property
    def file(self) -> Path:
        """The file of texts."""
        return self.folder / self.name

    @property
    def out(self) -> Path:
        """The file of answers, once it is whole."""
        return self.folder / f"answers{FORMATS[self.file.suffix.lower()]}"

    @property
    def download_name(self) -> str:
        """What the file of answers is called at its owner's."""
        return f"{self.file.stem}-answered{self.out.suffix}"

    def facts(self) -> dict[str, Any]:
        """Return what a caller is told, as JSON values. Nothing of it quotes a text."""
        refused = [{"row": row, **because(reason)} for row, reason in self.refused]
        return {
            "id": self.id,
            "name": self.name,
            "model": self.model,
            "columns": self.columns,
            "state": "stopping" if self.state == State.WORKING and self.stop.is_set() else self.state,
            "rows": self.n_rows,
            "answered": self.n_done,
            "refused": self.n_refused,
            "first_refused": refused,
            "seconds": round(self.seconds, 1),
            **(replies.told(self.error) if self.error is not None else {}),
        }

    def save(self) -> None:
        """Write down what is needed to go on after a restart."""
        names = "name", "model", "columns", "n_rows", "digest", "n_refused", "refused"
        write_json(self.folder / FACTS, {name: getattr(self, name) for name in names})

    def recount(self) -> None:
        """Count the answers that are in the unfinished file."""
        self.n_done, self.n_refused, self.refused = 0, 0, []
        if not partial_of(self.out).exists():
            return
        with partial_of(self.out).open(encoding="utf-8") as handle:
            next(handle, None)
            for line in handle:
                # A kill while the last line was written has left half of it.
                if line.endswith("\n"):
                    self.note(json.loads(line))

    def note(self, answer: Mapping[str, Any]) -> None:
        """Count an answer."""
        if answer.get("refused"):
            self.n_refused += 1
            if len(self.refused) < N_LISTED:
                self.refused.append((self.n_done, str(answer["reason"])))
        self.n_done += 1


def checked_name(name: str) -> str:
    """Return a file's name as it is kept: the last part of a path, without characters that mean something to a shell.

    Raises:
        UserInputError: its suffix is none of `FORMATS`.
    """
    last = re.split(r"[/\\]", name)[-1]
    kept = re.sub(r"[^\w.-]+", "_", last).encode(errors="replace")[-LONGEST_NAME:].decode(errors="ignore").lstrip(".-")
    suffix = Path(kept).suffix.lower()
    if suffix not in FORMATS:
        raise UserInputError(
            f"name: a file that ends in {suffix!r} is of no known format" if suffix else "name: it has no suffix",
            f"give a file that ends in one of: {', '.join(FORMATS)}",
        )
    # The names of our own files are taken.
    return f"texts_{kept}" if kept.startswith("answers.") else kept


def arrived(folder: Path, name: str, model: str, columns: list[str]) -> Upload:
    """Check a file that has arrived in its folder, all of it.

    Raises:
        UserInputError: it is no table of texts; the error names row and column, and shows no text.
    """
    path = folder / name

    def shown(text: str) -> str:
        # The path is this machine's; the option is named as in a request.
        return text.replace(str(path), name).replace("--text-column", "text_column")

    try:
        table = open_table(path)
    except UserInputError as error:
        raise UserInputError(shown(error.what), shown(error.remedy)) from None
    try:
        texts = TextFile.open(path, columns)
        n_rows = sum(1 for _ in texts)
        if not n_rows:
            raise UserInputError(f"{name} has no text", "give a file with a row for each text")
        found = Upload(folder, name, model, list(texts.columns), n_rows, sha256_file(path))
        # A column that has a name of the answers' own is refused before any work.
        AnswerFile(found.out, found.columns, {}).close()
        remove(partial_of(found.out))
    except UserInputError as error:
        what, remedy = shown(error.what), shown(error.remedy)
        raise RequestError(replies.BAD_INPUT, what, remedy, columns=table.columns) from None
    found.save()
    return found


def restored(folder: Path) -> Upload:
    """Return an upload as a gateway that ended has left it.

    Raises:
        UserInputError: it is damaged.
    """
    try:
        facts = read_json(folder / FACTS)
        facts["refused"] = [(int(row), str(reason)) for row, reason in facts["refused"]]
        found = Upload(folder, **facts)
        if found.out.exists():
            found.state, found.n_done = State.DONE, found.n_rows
            return found
        found.recount()
    except (KeyError, TypeError, ValueError) as error:
        raise UserInputError(f"{folder} is damaged ({type(error).__name__})", f"rm -r {folder}") from None
    return found


def answer_all(upload: Upload, classify: Classifier, max_length: int | None, tell: Callable[[], None]) -> bool:
    """Answer what is left of an upload; what is answered is kept, whatever happens.

    Args:
        upload: the upload. Its counts grow, and its `stop` ends the work after the batch that is being computed.
        classify: what answers.
        max_length: to how many tokens texts are cut.
        tell: called after each answer.

    Returns:
        Whether all is answered.

    Raises:
        UserInputError: the model or `max_length` is another one than when it began.
        MPCFormerError: a party failed, or the budget is used up.
    """
    work = {"source": upload.digest, "model": classify.model, "max_length": max_length}
    partial = partial_of(upload.out)
    try:
        answers = AnswerFile(upload.out, upload.columns, work, resume=partial.exists())
    except UserInputError as error:
        what = error.what.removeprefix("--resume: ").replace(str(partial), "the file of answers")
        raise UserInputError(
            what, "start the gateway with the model and --max-length of before, or remove the upload and give it again"
        ) from None
    try:
        upload.recount()
        source = TextFile.open(upload.file, upload.columns)
        texts, told = itertools.tee(itertools.islice(iter(source), answers.n_rows, None))
        found = classify.answers(map(_as_text, texts))
        with closing(found):
            while not upload.stop.is_set() and (answer := next(found, None)) is not None:
                answers.add(next(told), answer)
                upload.note(answer)
                counts.count(answer)
                tell()
        if answers.n_rows < upload.n_rows:
            return False
        upload.save()
        answers.finish()
        return True
    finally:
        answers.close()


def _as_text(row: tuple[str, ...]) -> Text:
    return row[0] if len(row) == 1 else (row[0], row[1])
