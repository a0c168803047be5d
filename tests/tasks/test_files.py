"""A text file of any format gives the same texts, in a stream; whatever is wrong in it is named, never shown."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpcformer.errors import UserInputError
from mpcformer.tasks import TextFile, tables
from mpcformer.tasks.tables import open_table

TEXTS = ["a plain one", 'with, a comma and "quotes"', "two\nlines", "Ünïcode \N{GRINNING FACE}", ""]
NAMED = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["ham", "spam"])})


def rows(texts: list[Any]) -> list[dict[str, Any]]:
    return [{"text": text, "label": n % 2} for n, text in enumerate(texts)]


def csv_text(texts: list[str], separator: str = ",") -> str:
    cells = ['"' + text.replace('"', '""') + '"' for text in texts]
    return "\n".join([f"text{separator}label", *(f"{cell}{separator}{n % 2}" for n, cell in enumerate(cells))])


def write_csv(folder: Path, texts: list[str]) -> Path:
    (folder / "f.csv").write_text(csv_text(texts))
    return folder / "f.csv"


def write_csv_of_a_spreadsheet(folder: Path, texts: list[str]) -> Path:
    (folder / "f.csv").write_text(csv_text(texts, ";"), encoding="utf-8-sig")
    return folder / "f.csv"


def write_tsv(folder: Path, texts: list[str]) -> Path:
    (folder / "f.tsv").write_text(csv_text(texts, "\t"))
    return folder / "f.tsv"


def write_jsonl(folder: Path, texts: list[str]) -> Path:
    (folder / "f.jsonl").write_text("\n".join(map(json.dumps, rows(texts))) + "\n\n")
    return folder / "f.jsonl"


def write_json_lines_called_json(folder: Path, texts: list[str]) -> Path:
    return write_jsonl(folder, texts).rename(folder / "f.json")


def write_json(folder: Path, texts: list[str]) -> Path:
    (folder / "f.json").write_text(json.dumps(rows(texts), indent=1))
    return folder / "f.json"


def write_json_columns(folder: Path, texts: list[str]) -> Path:
    (folder / "f.json").write_text(json.dumps({"text": texts, "label": [n % 2 for n in range(len(texts))]}))
    return folder / "f.json"


def write_parquet(folder: Path, texts: list[str]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows(texts)), folder / "f.parquet")
    return folder / "f.parquet"


def write_parquet_folder(folder: Path, texts: list[str]) -> Path:
    inner = folder / "f"
    inner.mkdir()
    for n, part in enumerate((texts[:2], texts[2:])):
        pq.write_table(pa.Table.from_pylist(rows(part)), inner / f"part-{n}.parquet")
    return inner


def write_saved(folder: Path, texts: list[str]) -> Path:
    datasets.Dataset.from_list(rows(texts), features=NAMED).save_to_disk(str(folder / "f"))
    return folder / "f"


WRITERS: list[Callable[[Path, list[str]], Path]] = [
    write_csv,
    write_csv_of_a_spreadsheet,
    write_tsv,
    write_jsonl,
    write_json_lines_called_json,
    write_json,
    write_json_columns,
    write_parquet,
    write_parquet_folder,
    write_saved,
]


@pytest.mark.parametrize("write", WRITERS, ids=[w.__name__ for w in WRITERS])
def test_every_format_gives_the_same_texts(tmp_path: Path, write: Callable[[Path, list[str]], Path]) -> None:
    file = TextFile.open(write(tmp_path, TEXTS))
    assert (file.columns, file.guessed) == (("text",), True)
    assert file.n_rows in (None, len(TEXTS))
    assert list(file) == [(text,) for text in TEXTS]
    assert list(file) == [(text,) for text in TEXTS], "a second pass reads the file anew"
    assert "plain" not in repr(file)


def test_lines_of_text(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_bytes("one\r\n\ntwo \N{LINE SEPARATOR} still two".encode())
    assert list(TextFile.open(path)) == [("one",), ("",), ("two \N{LINE SEPARATOR} still two",)]


@pytest.mark.parametrize("write", [write_parquet, write_saved])
def test_rows_are_counted_where_it_is_cheap(tmp_path: Path, write: Callable[[Path, list[str]], Path]) -> None:
    assert TextFile.open(write(tmp_path, TEXTS)).n_rows == len(TEXTS)


def test_a_large_file_is_not_read_at_once(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, ["text"] * 100)
    with path.open("a") as handle:
        handle.write("no json\n")
    stream = iter(TextFile.open(path))
    assert [next(stream) for _ in range(100)] == [("text",)] * 100, "what comes before the fault is there"
    with pytest.raises(UserInputError, match="row 100: it is not JSON"):
        next(stream)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("sentence1 sentence2 label idx", "sentence1 sentence2"),
        ("id Premise Hypothesis", "Premise Hypothesis"),
        ("question sentence label", "question sentence"),
        ("question1 question2", "question1 question2"),
        ("label Review stars", "Review"),
        ("content title", "content"),
        ("id label utterance", "utterance"),
    ],
)
def test_columns_are_guessed_by_their_names(tmp_path: Path, columns: str, expected: str) -> None:
    pq.write_table(pa.table({name: ["x"] for name in columns.split()}), tmp_path / "f.parquet")
    file = TextFile.open(tmp_path / "f.parquet")
    assert (file.columns, file.guessed) == (tuple(expected.split()), True)


def test_named_columns_are_taken(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x"], "b": ["y"], "a": ["z"]}), tmp_path / "f.parquet")
    file = TextFile.open(tmp_path / "f.parquet", ["a", "b"])
    assert (file.columns, file.guessed, list(file)) == (("a", "b"), False, [("z", "y")])


def bad(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


SECRET = "somebody's secret"
BAD = [
    ("f.doc", "x", "is no table of a known format", "save_to_disk"),
    ("f.csv", "", "is empty", "header"),
    ("f.csv", "text,text\na,b\n", "two columns are named 'text'", "name of its own"),
    ("f.csv", f"text,n\n{SECRET},1\n{SECRET},and more,2\n", "row 1: it has 3 cells, and the header 2", "double quotes"),
    ("f.csv", 'text\n"a" b"\n', "line 2", "double quotes"),
    ("f.csv", "a,b\n1,2\n", "has no column with a usual name; it has a, b", "name the column"),
    ("f.csv", b"text\n\xff\xfe\n", "is not UTF-8 text", "UTF-8"),
    ("f.jsonl", "\n", "is empty", "JSON object"),
    ("f.jsonl", f'{{"text": "a"}}\n"{SECRET}"\n', "row 1: it is a str, not an object", "objects"),
    ("f.jsonl", '{"text": "a"}\n{"txt": "b"}\n', "row 1, column 'text': the text is null", "fill it in"),
    ("f.jsonl", '{"text": 5}\n', "row 0, column 'text': the text is int, not str", "another column"),
    ("f.jsonl", '{"text": "\\ud83d"}\n', "row 0, column 'text': the text holds half of a surrogate", "UTF-8"),
    ("f.json", "[]", "holds no list of rows", "list of objects"),
    ("f.json", "[1", "is not JSON", "jsonl"),
    ("f.parquet", SECRET, "cannot be read as parquet", "restore"),
]


@pytest.mark.parametrize(("name", "content", "what", "remedy"), BAD, ids=[b[2] for b in BAD])
def test_bad_files(tmp_path: Path, name: str, content: str | bytes, what: str, remedy: str) -> None:
    path = bad(tmp_path, name, content)
    with pytest.raises(UserInputError, match=what) as caught:
        list(TextFile.open(path))
    assert str(path) in caught.value.what
    assert remedy in caught.value.remedy
    assert SECRET not in str(caught.value)


def test_the_second_text_of_a_pair_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sentence1": ["a", "b"], "sentence2": ["c", None]}), tmp_path / "f.parquet")
    with pytest.raises(UserInputError, match="row 1, column 'sentence2': the text is null"):
        list(TextFile.open(tmp_path / "f.parquet"))


def test_bad_columns(tmp_path: Path) -> None:
    path = write_csv(tmp_path, ["a"])
    with pytest.raises(UserInputError, match="has no column 'txt'; it has text, label"):
        TextFile.open(path, ["txt"])
    with pytest.raises(UserInputError, match="3 columns were given"):
        TextFile.open(path, ["text", "label", "text"])


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="does not exist"):
        TextFile.open(tmp_path / "nowhere")
    with pytest.raises(UserInputError, match="holds no parquet file"):
        TextFile.open(tmp_path)
    for split in ("train", "validation"):
        pq.write_table(pa.table({"text": ["x"]}), tmp_path / f"{split}-0.parquet")
    with pytest.raises(UserInputError, match="several splits: train, validation"):
        TextFile.open(tmp_path)
    both = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows(["x"]))})
    both.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserInputError, match="several splits: train"):
        TextFile.open(tmp_path / "saved")


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_the_names_of_classes_are_found(tmp_path: Path, kind: str) -> None:
    saved = datasets.Dataset.from_list(rows(["a", "b"]), features=NAMED)
    path = tmp_path / ("f.parquet" if kind == "parquet" else "f")
    saved.to_parquet(str(path)) if kind == "parquet" else saved.save_to_disk(str(path))
    assert open_table(path).class_names == {"label": ("ham", "spam")}


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
def test_a_small_parquet_file_cannot_fill_the_memory(tmp_path: Path, kind: Any) -> None:
    """A few hundred bytes hold a text of 1 MiB and say 1,000 times that it is there again."""
    path = tmp_path / "bomb.parquet"
    text = "a" * (1 << 20)
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), pa.array([text], kind))
    with pq.ParquetWriter(path, pa.schema([("text", kind)]), compression="zstd") as writer:
        writer.write_table(pa.table({"text": repeated.cast(kind)}))
    del repeated
    assert path.stat().st_size < 2000
    before = pa.total_allocated_bytes()
    for n, (value,) in enumerate(open_table(path).rows(["text"]), 1):
        assert len(value) == len(text)
        if n == 1:
            first = value
            assert pa.total_allocated_bytes() - before < 20 << 20
        assert value is first
    assert n == 200


def test_too_long_a_text_is_named_and_not_shown(tmp_path: Path) -> None:
    for path in (tmp_path / "long.parquet", tmp_path / "long.csv"):
        texts = ["short", "b" * ((1 << 20) + 1)]
        if path.suffix == ".csv":
            path.write_text("text\n" + "\n".join(texts) + "\n")
        else:
            pq.write_table(pa.table({"text": texts}), path)
        with pytest.raises(UserInputError, match=r"row 1, column 'text': the text has 1048577 characters") as caught:
            list(TextFile.open(path))
        assert "bbb" not in str(caught.value)


def test_too_large_a_row_group_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MOST_GROUP_BYTES", 10_000)
    path = tmp_path / "groups.parquet"
    texts = [f"text {n}" for n in range(10)] + [f"text {n} " * 300 for n in range(10)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=10)
    with pytest.raises(UserInputError, match=r"row 10, column 'text': the row group that begins here") as caught:
        list(TextFile.open(path))
    assert "fewer rows" in caught.value.remedy


@pytest.mark.parametrize("values", [[1, None], [["a"], []], [{"a": "b"}, None], [True, False], [0.5, None]])
def test_parquet_columns_that_hold_no_text_are_read_too(tmp_path: Path, values: list[Any]) -> None:
    pq.write_table(pa.table({"tags": values}), tmp_path / "tags.parquet")
    assert list(open_table(tmp_path / "tags.parquet").rows(["tags"])) == [(value,) for value in values]
