"""The texts of a file: which columns they are in, and a stream of them that checks every one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from mpcformer.errors import UserInputError
from mpcformer.tasks.tables import Table, open_table

# What columns of text are called, the likelier first. Both columns of a pair must be there.
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
SINGLES = ("text", "sentence", "review", "content", "comment", "message", "document", "tweet", "body", "question")
# What columns of labels and of row numbers are called. Such a column holds no text.
LABELS = ("label", "labels", "gold_label", "target", "class", "category")
NUMBERS = ("", "id", "idx", "index", "guid", "unnamed: 0", "__index_level_0__")
# In characters; no model has positions for so long a text.
LONGEST_TEXT = 1 << 20


@dataclass(frozen=True)
class TextFile:
    """The texts of a file of one of `mpcformer.tasks.tables.FORMATS`. Iterating reads the file anew, in chunks.

    Attributes:
        path: the file or folder.
        columns: the names of the one or two columns of text.
        guessed: whether the columns were guessed by their names.
        n_rows: the number of rows, or None where it is not known without reading them.
        table: the opened file.
    """

    path: Path
    columns: tuple[str, ...]
    guessed: bool
    n_rows: int | None
    table: Table = field(repr=False)

    @classmethod
    def open(cls, path: Path, columns: Sequence[str] | None = None) -> Self:
        """Open a file; nothing but its beginning is read.

        Args:
            path: the file or folder.
            columns: the names of the one or two columns of text; None or none at all: they are guessed.

        Raises:
            UserInputError: the file is no table, a column is missing, or nothing can be guessed.
        """
        table = open_table(path)
        asked = tuple(columns or guess_text_columns(table))
        if len(asked) > 2:
            raise UserInputError(
                f"--text-column: {len(asked)} columns were given", "give one, or two for pairs of texts"
            )
        for column in asked:
            if column not in table.columns:
                raise UserInputError(
                    f"--text-column: {path} has no column {column!r}; it has {', '.join(table.columns)}",
                    "give the name of a column that is there",
                )
        return cls(path, asked, not columns, table.n_rows, table)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        """Yield the one or two texts of each row.

        Raises:
            UserInputError: a cell holds no text; the error names row, column and what was found.
        """
        for index, row in enumerate(self.table.rows(self.columns)):
            yield checked_texts(str(self.path), index, self.columns, row)


def checked_texts(source: str, index: int, columns: Sequence[str], row: Sequence[Any]) -> tuple[str, ...]:
    """Return a row's texts.

    Args:
        source: the file or data set, for the error.
        index: the row's number, from 0.
        columns: the names of the columns.
        row: their values.

    Raises:
        UserInputError: a value is no text; the error names the row, the column and what was found.
    """
    for column, value in zip(columns, row, strict=True):
        if not isinstance(value, str):
            found = "null" if value is None else f"{type(value).__name__}, not str"
            remedy = "fill it in, or remove the row" if value is None else "give text, or name another column of text"
            raise UserInputError(f"{source}, row {index}, column {column!r}: the text is {found}", remedy)
        if len(value) > LONGEST_TEXT:
            raise UserInputError(
                f"{source}, row {index}, column {column!r}: the text has {len(value)} characters, more than"
                f" {LONGEST_TEXT}",
                "shorten it, or remove the row",
            )
        if not value.isascii() and not is_unicode(value):
            raise UserInputError(
                f"{source}, row {index}, column {column!r}: the text holds half of a surrogate pair, which is no"
                " character",
                "write the character as UTF-8",
            )
    return tuple(row)


def guess_text_columns(table: Table) -> tuple[str, ...]:
    """Return the one or two columns that hold the texts, by their names.

    Raises:
        UserInputError: no name is known, and more or fewer than one column might be it.
    """
    known = {name.lower(): name for name in table.columns}
    for pair in PAIRS:
        if all(name in known for name in pair):
            return tuple(known[name] for name in pair)
    for name in SINGLES:
        if name in known:
            return (known[name],)
    others = [column for name, column in known.items() if name not in (*LABELS, *NUMBERS)]
    if len(others) != 1:
        raise UserInputError(
            f"--text-column: {table.path} has no column with a usual name; it has {', '.join(table.columns)}",
            "name the column of text, or the two of a pair, or call it text",
        )
    return (others[0],)


def guess_label_column(table: Table, text_columns: Sequence[str] = ()) -> str | None:
    """Return the column that holds the labels, by its name, or None if there is none."""
    known = {name.lower(): name for name in table.columns if name not in text_columns}
    return next((known[name] for name in LABELS if name in known), None)


def is_unicode(text: str) -> bool:
    """Return whether all of a text is characters: it may hold halves of surrogate pairs where it was no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
