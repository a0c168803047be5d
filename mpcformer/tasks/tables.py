"""Read a table of any common format, row by row: CSV, JSON, lines of text, parquet, and what `datasets` saves.

A table is opened before it is read: its columns and the names of its classes are known then, and a file that is no
table is refused. Rows are read in chunks, so a table may be larger than the memory. Errors name the file and the row,
and never show what a cell holds.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mpcformer.errors import UserInputError, os_remedy

FORMATS = ".csv, .tsv, .json, .jsonl, .txt, .parquet, a folder of parquet files, or a folder of datasets.save_to_disk"
CHUNK = 1024
# How much a column of a parquet file may hold between two places where reading can begin, uncompressed.
MOST_GROUP_BYTES = 512 << 20
# The column that the lines of a text file are.
LINE = "text"
# A folder of parquet files with one of these among several splits is a data set in the hub's layout.
SPLITS = {"train", "test", "validation", "valid", "dev"}
Rows = Iterator[tuple[Any, ...]]
ClassNames = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Table:
    """A table that was opened.

    Args:
        path: the file or folder.
        columns: the names of its columns.
        read: returns an iterator over the rows of some columns.
        n_rows: the number of rows, where it is known without reading them.
        class_names: for each column of classes that the file names, their names.
    """

    path: Path
    columns: tuple[str, ...]
    read: Callable[[Sequence[str]], Rows] = field(repr=False)
    n_rows: int | None = None
    class_names: ClassNames = field(default_factory=dict)

    def rows(self, columns: Sequence[str]) -> Rows:
        """Yield the values of these columns, row by row.

        Raises:
            UserInputError: a column is missing, or the file is damaged; the error names the row.
        """
        for column in columns:
            if column not in self.columns:
                raise UserInputError(
                    f"{self.path}: column {column!r} is missing; the columns are {', '.join(self.columns)}",
                    "name a column that is there",
                )
        return self.read(columns)


def open_table(path: Path) -> Table:
    """Open a table of one of `FORMATS`.

    Raises:
        UserInputError: it does not exist, is of another format, or is damaged.
    """
    if not path.exists():
        raise UserInputError(f"{path} does not exist", "check the path")
    if path.is_dir():
        return _folder(path)
    kind = path.suffix.lower()
    openers: dict[str, Callable[[Path], Table]] = {
        ".csv": _delimited,
        ".tsv": _delimited,
        ".json": _json,
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".txt": _lines,
        ".parquet": lambda file: parquet_table([file], file),
    }
    if kind not in openers:
        raise UserInputError(f"{path} is no table of a known format", f"give one of: {FORMATS}")
    return openers[kind](path)


def parquet_table(files: Sequence[Path], path: Path) -> Table:
    """Open parquet files that have the same columns, as one table; `path` is what errors name.

    Raises:
        UserInputError: a file cannot be read, or lacks a column of the first one.
    """
    schemas, n_rows = [], 0
    for file in files:
        with _parquet_errors(file):
            schemas.append(pq.read_schema(file))
            n_rows += pq.read_metadata(file).num_rows
    columns = tuple(schemas[0].names)
    for file, schema in zip(files, schemas, strict=True):
        if missing := [name for name in columns if name not in schema.names]:
            raise UserInputError(f"{file}: column {missing[0]!r} is missing, which {files[0]} has", "restore the files")

    def read(asked: Sequence[str]) -> Rows:
        for file, schema in zip(files, schemas, strict=True):
            # A text that is repeated is kept once, as in the file. Otherwise a few hundred bytes could fill the memory.
            flat = [name for name in asked if not pa.types.is_nested(schema.field(name).type)]
            with _parquet_errors(file), pq.ParquetFile(file, read_dictionary=flat) as handle:
                _check_groups(handle.metadata, file, asked)
                for batch in handle.iter_batches(CHUNK, columns=list(asked)):
                    yield from zip(*(_values(batch.column(name)) for name in asked), strict=True)

    return Table(path, columns, read, n_rows, _named_classes(schemas[0]))


def _values(column: Any) -> list[Any]:
    """Return the values of a column; those that are kept once are the same object."""
    if not isinstance(column, pa.DictionaryArray):
        return list(column.to_pylist())
    used = column.indices.unique().drop_null()
    values = dict(zip(used.to_pylist(), column.dictionary.take(used).to_pylist(), strict=True))
    return [values.get(index) for index in column.indices.to_pylist()]


def _check_groups(metadata: Any, file: Path, columns: Sequence[str]) -> None:
    """Refuse row groups that would fill the memory.

    Raises:
        UserInputError: a column holds too much; the error names the first row of the group.
    """
    row = 0
    for group in (metadata.row_group(index) for index in range(metadata.num_row_groups)):
        for column in (group.column(index) for index in range(group.num_columns)):
            name = column.path_in_schema.split(".")[0]
            if name in columns and column.total_uncompressed_size > MOST_GROUP_BYTES:
                raise UserInputError(
                    f"{file}, row {row}, column {name!r}: the row group that begins here holds more than"
                    f" {MOST_GROUP_BYTES >> 20} MiB",
                    "write the file with fewer rows in each row group",
                )
        row += group.num_rows


@contextmanager
def _parquet_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        kind = type(error).__name__
        raise UserInputError(f"{file} cannot be read as parquet ({kind})", "restore the file") from None


def _named_classes(schema: Any) -> ClassNames:
    """Return the names of classes that `datasets` noted in a file's metadata, by column."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        found = {column: feature["names"] for column, feature in features.items() if "names" in feature}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}  # the file was not written by `datasets`, and names no classes
    return {column: tuple(map(str, names)) for column, names in found.items() if isinstance(names, list)}


def _folder(path: Path) -> Table:
    if (path / "dataset_dict.json").is_file():
        inner = sorted(folder.name for folder in path.iterdir() if (folder / "state.json").is_file())
        raise UserInputError(f"{path} holds several splits: {', '.join(inner)}", "give the folder of one of them")
    if (path / "state.json").is_file():
        return _saved_to_disk(path)
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise UserInputError(
            f"{path} holds no parquet file, and is no folder of datasets.save_to_disk", f"give {FORMATS}"
        )
    splits = sorted({file.stem.split("-")[0] for file in files})
    if len(splits) > 1 and SPLITS & set(splits):
        raise UserInputError(f"{path} holds several splits: {', '.join(splits)}", "give the file of one of them")
    return parquet_table(files, path)


def _saved_to_disk(path: Path) -> Table:
    import datasets  # loads within seconds, which no other format should wait for

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises errors of several others
        kind = type(error).__name__
        raise UserInputError(f"{path} cannot be read by datasets ({kind})", "restore the folder") from None

    def read(asked: Sequence[str]) -> Rows:
        for batch in saved.select_columns(sorted(set(asked))).iter(CHUNK):
            yield from zip(*(batch[name] for name in asked), strict=True)

    named = {name: tuple(kind.names) for name, kind in saved.features.items() if hasattr(kind, "names")}
    return Table(path, tuple(saved.column_names), read, len(saved), named)


@contextmanager
def _text_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError:
        raise UserInputError(f"{path} is not UTF-8 text", "save it as UTF-8") from None
    except OSError as error:
        raise UserInputError(
            f"{path} cannot be read: {error.strerror}", os_remedy(error, "check the file and its rights")
        ) from None


def _delimited(path: Path) -> Table:
    """Open a file with a header line and cells between commas, tabs (.tsv), or semicolons if the header has them."""
    csv.field_size_limit(sys.maxsize)  # the default refuses texts of more than 128 KiB
    with _text_errors(path), path.open(newline="", encoding="utf-8-sig") as handle:
        first = handle.readline()
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ";" if ";" in first and "," not in first else ","

    def cells() -> Iterator[list[str]]:
        with _text_errors(path), path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle, delimiter=delimiter, strict=True)
            try:
                yield from (row for row in reader if row)  # a blank line is no row
            except csv.Error as error:
                raise UserInputError(
                    f"{path}, line {reader.line_num}: {error}", "put cells with quotes in them between double quotes"
                ) from None

    columns = next(cells(), None)
    if columns is None:
        raise UserInputError(f"{path} is empty", "give a file with a header line and a row for each text")
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise UserInputError(f"{path}: two columns are named {twice[0]!r}", "give each column a name of its own")
    places = {name: place for place, name in enumerate(columns)}

    def read(asked: Sequence[str]) -> Rows:
        rows = cells()
        next(rows)
        for index, row in enumerate(rows):
            if len(row) != len(columns):
                raise UserInputError(
                    f"{path}, row {index}: it has {len(row)} cells, and the header {len(columns)}",
                    f"put texts that contain {delimiter!r} between double quotes",
                )
            yield tuple(row[places[name]] for name in asked)

    return Table(path, tuple(columns), read)


def _lines(path: Path) -> Table:
    def read(asked: Sequence[str]) -> Rows:
        with _text_errors(path), path.open(encoding="utf-8-sig") as handle:
            for line in handle:
                yield (line.rstrip("\n"),) * len(asked)

    return Table(path, (LINE,), read)


def _json_lines(path: Path) -> Table:
    def records() -> Iterator[dict[str, Any]]:
        with _text_errors(path), path.open(encoding="utf-8-sig") as handle:
            for index, line in enumerate(line for line in handle if line.strip()):
                yield _record(path, index, line)

    first = next(records(), None)
    if first is None:
        raise UserInputError(f"{path} is empty", "give a file with a JSON object in each line")
    return Table(path, tuple(first), lambda asked: (tuple(map(record.get, asked)) for record in records()))


def _record(path: Path, index: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise UserInputError(f"{path}, row {index}: it is not JSON", "give a JSON object in each line") from None
    return _checked_record(path, index, record)


def _checked_record(path: Path, index: int, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise UserInputError(
            f"{path}, row {index}: it is a {type(record).__name__}, not an object",
            'give objects such as {"text": "..."}',
        )
    return record


def _json(path: Path) -> Table:
    """Open a list of objects, an object of equally long lists, or, as many files with this ending are, JSON lines."""
    with _text_errors(path), path.open(encoding="utf-8-sig") as handle:
        first = next((line for line in handle if line.strip()), "")
    try:
        is_lines = isinstance(value := json.loads(first), dict) and not _are_columns(value)
    except (ValueError, RecursionError):
        is_lines = False
    if is_lines or not first:
        return _json_lines(path)
    try:
        with _text_errors(path):
            value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        raise UserInputError(f"{path} is not JSON", "restore the file; JSON lines end in .jsonl") from None
    if isinstance(value, dict) and _are_columns(value):
        return Table(path, tuple(value), lambda asked: zip(*map(value.__getitem__, asked), strict=True), _length(value))
    if not isinstance(value, list) or not value:
        raise UserInputError(f"{path} holds no list of rows", 'give a list of objects such as [{"text": "..."}]')
    records = [_checked_record(path, index, record) for index, record in enumerate(value)]
    columns = tuple(dict.fromkeys(chain.from_iterable(records)))
    return Table(path, columns, lambda asked: (tuple(map(r.get, asked)) for r in records), len(records))


def _are_columns(value: dict[str, Any]) -> bool:
    """Return whether a JSON object is a table by columns: lists of one length."""
    columns = list(value.values())
    return bool(columns) and all(isinstance(c, list) for c in columns) and len({len(c) for c in columns}) == 1


def _length(columns: dict[str, list[Any]]) -> int:
    return len(next(iter(columns.values())))
