"""Tests of the file of answers: formats, interruptions, and what is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mpcformer.errors import UserInputError
from parties.ask.answers import AnswerFile, partial_of

ANSWERED = {"label": "positive", "score": 0.75}
REFUSED = {"label": None, "score": None, "refused": True, "reason": "too long"}
WORK = {"model": "m"}


def written(out: Path, **more: Any) -> None:
    answers = AnswerFile(out, ["sentence"], WORK, **more)
    for text, answer in (('Good, "very"\nmuch.', ANSWERED), ("é", REFUSED)):
        answers.add([text], answer)
    answers.finish()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"answers{suffix}"
    written(out)
    if suffix == ".csv":
        rows = list(csv.DictReader(out.open(newline="")))
        assert rows[0] == {
            "sentence": 'Good, "very"\nmuch.',
            "label": "positive",
            "score": "0.75",
            "refused": "False",
            "reason": "",
        }
        assert (rows[1]["label"], rows[1]["reason"]) == ("", "too long")
    else:
        rows = (
            [json.loads(line) for line in out.read_text().splitlines()]
            if suffix == ".jsonl"
            else pq.read_table(out).to_pylist()
        )
        assert rows == [
            {"sentence": 'Good, "very"\nmuch.', **ANSWERED, "refused": False, "reason": None},
            {"sentence": "é", **REFUSED},
        ]
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert out.stat().st_mode & 0o077 == 0


def test_what_is_answered_is_kept_and_the_work_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    first = AnswerFile(out, ["text"], WORK)
    for i in range(3):
        first.add([f"text {i}"], ANSWERED)
    with pytest.raises(UserInputError, match="another process writes"):
        AnswerFile(out, ["text"], WORK, resume=True)
    first.close()
    assert not out.exists()
    with pytest.raises(UserInputError, match="left of unfinished work"):
        AnswerFile(out, ["text"], WORK)
    with partial_of(out).open("a") as handle:
        handle.write('{"text": "text 3", "la')  # killed while it was written
    with pytest.raises(UserInputError, match="belongs to other work"):
        AnswerFile(out, ["text"], {"model": "another"}, resume=True)
    second = AnswerFile(out, ["text"], WORK, resume=True)
    assert (second.n_rows, second.n_refused) == (3, 0)
    second.add(["text 3"], REFUSED)
    second.finish()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["text"] for row in rows] == [f"text {i}" for i in range(4)]
    assert [row["refused"] for row in rows] == [False, False, False, True]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_text_that_is_no_unicode_is_written_too(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"answers{suffix}"
    answers = AnswerFile(out, ["text"], WORK)
    answers.add([b"caf\xff".decode(errors="surrogateescape")], REFUSED)
    answers.finish()
    if suffix == ".parquet":
        assert pq.read_table(out).to_pylist()[0]["text"] == r"caf\udcff"
    else:
        assert r"caf\udcff" in out.read_text()


def test_a_kill_before_the_first_line(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    partial_of(out).touch()
    answers = AnswerFile(out, ["text"], WORK, resume=True)
    answers.add(["first"], ANSWERED)
    answers.finish()
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == ["first"]


def test_a_column_of_text_with_the_name_of_an_answers(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="the answers have a column 'reason' of their own"):
        AnswerFile(tmp_path / "answers.csv", ["text", "reason"], WORK)
    assert not list(tmp_path.iterdir())


def test_damage_is_named(tmp_path: Path) -> None:
    out = tmp_path / "answers.csv"
    AnswerFile(out, ["text"], WORK).close()
    partial_of(out).write_text(partial_of(out).read_text() + "not json\n")
    with pytest.raises(UserInputError, match=r"answers\.csv\.partial is damaged"):
        AnswerFile(out, ["text"], WORK, resume=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("answers.xlsx", r"no known suffix\n.*\.csv, \.jsonl, \.parquet"),
        ("there.csv", "exists"),
        ("nowhere/answers.csv", "folder .*nowhere does not exist"),
    ],
)
def test_wrong_names(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "there.csv").touch()
    with pytest.raises(UserInputError, match=message):
        AnswerFile(tmp_path / name, ["text"], WORK)
    with pytest.raises(UserInputError, match="does not exist"):
        AnswerFile(tmp_path / "new.csv", ["text"], WORK, resume=True)
