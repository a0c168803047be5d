"""A file of answers, written as they come. What is answered is kept when the work is interrupted, and it can go on.

While it grows it is `<out>.partial`: a line of JSON about the work, then one for each answer. At the end it is written
in the format that its suffix names, and gets its name.
"""

import csv
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mpcformer.errors import UserInputError
from mpcformer.files import remove

SUFFIXES = (".csv", ".jsonl", ".parquet")
CHUNK = 4096
# How the file shows what is no character: as \udcff for the byte 0xff, for example.
AS_ESCAPES = "backslashreplace"
RESULT = {"label": pa.string(), "score": pa.float64(), "refused": pa.bool_(), "reason": pa.string()}
# What some models answer in place of one label, as `Classifier` names it; CSV files have it as JSON.
VECTOR = pa.list_(pa.float64())
TOKENS = pa.list_(pa.struct({"label": pa.string(), "score": pa.float64()}))
MORE = {"embedding": VECTOR, "tokens": TOKENS}


class AnswerFile:
    """The answers of one piece of work, row by row.

    Args:
        out: the file to write in the end; its suffix is the format.
        columns: the names of the columns of text.
        work: what decides the answers, as JSON values: the same work can be resumed, other work cannot.
        resume: go on with the unfinished file.

    Raises:
        UserInputError: the suffix is unknown, the file exists, an unfinished one stands there (or, with `resume`, does
            not, or belongs to other work), another process writes it, or a column of text has the name of a column of
            answers.
    """

    def __init__(self, out: Path, columns: Sequence[str], work: dict[str, Any], *, resume: bool = False) -> None:
        check_out(out, resume=resume)
        if taken := [name for name in columns if name in RESULT or name in MORE]:
            raise UserInputError(
                f"--text-column: the answers have a column {taken[0]!r} of their own", "rename the column of text"
            )
        self._out, self._columns = out, list(columns)
        self.partial = partial_of(out)
        self._open(json.loads(json.dumps({"work": work, "columns": self._columns})), resume)

    def _open(self, head: dict[str, Any], resume: bool) -> None:
        # Other users of this machine must not read texts and answers.
        self._handle = os.fdopen(os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8")
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._handle.close()
            what = f"--out: another process writes {self.partial}"
            raise UserInputError(what, "wait for it, or choose another file") from None
        self.n_rows = self.n_refused = 0
        if resume:
            self._go_on(head)
        if not self._handle.tell():  # it is new, or a kill came before its first line
            self._handle.write(json.dumps(head) + "\n")
            self._handle.flush()

    def _go_on(self, head: dict[str, Any]) -> None:
        end = 0
        try:
            for number, line in enumerate(iter(self._handle.readline, "")):
                if not line.endswith("\n"):
                    break  # A kill while it was written left half a line.
                value = json.loads(line)
                if number == 0 and value != head:
                    raise UserInputError(
                        f"--resume: {self.partial} belongs to other work: another file, model or option",
                        "give the same, or remove it and start without --resume",
                    )
                if number:
                    self.n_rows += 1
                    self.n_refused += bool(value["refused"])
                end = self._handle.tell()
        except (ValueError, KeyError, TypeError) as error:
            what = f"--resume: {self.partial} is damaged ({type(error).__name__})"
            raise UserInputError(what, "remove it and start without --resume") from None
        self._handle.seek(end)
        self._handle.truncate()

    def add(self, texts: Sequence[str], answer: dict[str, Any]) -> None:
        """Add the answer to the next row."""
        refused = bool(answer.get("refused"))
        row: dict[str, Any] = dict(zip(self._columns, texts, strict=True))
        row |= {"label": answer["label"], "score": answer["score"], "refused": refused}
        row |= {name: answer[name] for name in MORE if name in answer}
        self._handle.write(json.dumps(row | {"reason": answer.get("reason")}) + "\n")
        self.n_rows += 1
        self.n_refused += refused
        # A kill then loses nothing that was answered.
        self._handle.flush()

    def finish(self) -> None:
        """Write the file in its format and under its name, and remove the unfinished one."""
        self._handle.flush()
        fresh = self._out.with_name(f".{self._out.name}.new")
        try:
            if self._out.suffix == ".parquet":
                self._write_parquet(fresh)
            else:
                self._write_lines(fresh)
            fresh.replace(self._out)
        except BaseException:
            remove(fresh)
            raise
        self.close()
        remove(self.partial)

    def close(self) -> None:
        """Keep the unfinished file for later."""
        if not self._handle.closed:
            self._handle.close()

    def _rows(self) -> Iterator[dict[str, Any]]:
        with self.partial.open(encoding="utf-8") as handle:
            next(handle)
            for line in handle:
                yield json.loads(line)

    def _more(self) -> dict[str, Any]:
        """Return the columns beside those of every answer that some answer has, with their types."""
        found = {name for row in self._rows() for name in MORE if name in row}
        return {name: kind for name, kind in MORE.items() if name in found}

    def _write_lines(self, path: Path) -> None:
        # A text that was refused because it is no Unicode is written all the same.
        with path.open("w", encoding="utf-8", errors=AS_ESCAPES, newline="") as handle:
            path.chmod(0o600)
            more = self._more()
            table = csv.DictWriter(handle, [*self._columns, *RESULT, *more])
            if self._out.suffix == ".csv":
                table.writeheader()
            for row in self._rows():
                if self._out.suffix == ".csv":
                    table.writerow(row | {name: json.dumps(row.get(name)) for name in more})
                else:
                    handle.write(json.dumps(row, ensure_ascii=False) + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    def _write_parquet(self, path: Path) -> None:
        schema = pa.schema({**{name: pa.string() for name in self._columns}, **RESULT, **self._more()})
        with pq.ParquetWriter(path, schema) as writer:
            path.chmod(0o600)
            rows: list[dict[str, Any]] = []
            for row in self._rows():
                rows.append(row | {name: _readable(row[name]) for name in self._columns})
                if len(rows) == CHUNK:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    rows.clear()
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _readable(text: str) -> str:
    return text.encode(errors=AS_ESCAPES).decode()


def partial_of(out: Path) -> Path:
    """Return the path of the unfinished file."""
    return out.with_name(f"{out.name}.partial")


def check_out(out: Path, *, resume: bool = False) -> None:
    """Check that answers can be written to a path, before any work starts.

    Raises:
        UserInputError: see `AnswerFile`.
    """
    if out.suffix not in SUFFIXES:
        raise UserInputError(f"--out: {out} has no known suffix", f"end its name in one of: {', '.join(SUFFIXES)}")
    if out.exists():
        raise UserInputError(f"--out: {out} exists", f"choose another file, or remove it: rm {out}")
    if not out.parent.is_dir():
        raise UserInputError(f"--out: the folder {out.parent} does not exist", f"make it: mkdir -p {out.parent}")
    exists = partial_of(out).exists()
    if exists and not resume:
        raise UserInputError(
            f"--out: {partial_of(out)} is left of unfinished work", f"go on with --resume, or: rm {partial_of(out)}"
        )
    if resume and not exists:
        raise UserInputError(f"--resume: {partial_of(out)} does not exist", "start without --resume")
