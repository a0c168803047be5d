"""Tests of `mpcformer ask`: arguments, lines, files, and what is refused."""

import io
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from mpcformer.cli import build_app
from mpcformer.errors import SOME_REFUSED, MPCFormerError, RangeError, UserInputError
from parties.ask import command


def ask(*arguments: object, lines: str | bytes | None = None) -> tuple[int, str, str]:
    """Run the command and return exit status, output and errors."""
    result = CliRunner().invoke(build_app(), ["ask", *map(str, arguments)], input=lines)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_texts_as_arguments(picky: Path) -> None:
    status, out, _ = ask("--student", picky, "--details", "the day was fine", "zinc")
    assert status == SOME_REFUSED
    first, second = out.splitlines()
    label, score, text, cost = first.split("\t")
    assert (label in ("negative", "positive"), text) == (True, "the day was fine")
    assert 0.5 <= float(score) <= 1
    assert "s online" in cost
    assert "rounds" in cost
    assert second.startswith("refused\t-\tzinc\t(an activation of this text left the range")


def test_without_a_student_the_one_of_the_package_is_asked() -> None:
    status, out, errors = ask("a wonderful film", "a terrible film")
    assert status == 0
    assert [line.split("\t")[0] for line in out.splitlines()] == ["positive", "negative"]
    first, *others = errors.splitlines()
    assert first == command.SMALL_STUDENT
    assert not any("--student" in line for line in others)


def test_nothing_is_said_of_another_student_if_one_is_given(picky: Path) -> None:
    assert command.SMALL_STUDENT not in ask("--student", picky, "warm")[2]


def test_lines_of_standard_input(picky: Path) -> None:
    status, out, _ = ask("--student", picky, lines="warm\r\n\ngrim stone\n")
    assert status == 0
    assert [line.split("\t")[2] for line in out.splitlines()] == ["warm", "", "grim stone"]
    status, out, _ = ask("--student", picky, lines=b"warm\n\xff\xfe\n")
    assert status == SOME_REFUSED
    assert "was not read as UTF-8" in out


def test_a_file_of_pairs_and_an_interruption(picky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{first} day" for first in ("warm", "cold", "fine", "grim", "dull", "lovely")]
    pq.write_table(pa.table({"one": texts, "two": texts[::-1], "n": range(6)}), tmp_path / "in.parquet")
    columns = "--text-column", "one", "--text-column", "two"
    arguments = ("--student", picky, "--file", tmp_path / "in.parquet", *columns, "--batch-size", "1")
    ask(*arguments, "--out", tmp_path / "whole.jsonl")
    whole = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    assert [row["one"] for row in whole] == texts

    from parties.ask.answers import AnswerFile

    add, count = AnswerFile.add, 0

    def interrupted(*given: object) -> None:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        add(*given)  # type: ignore[arg-type]

    out = tmp_path / "cut.jsonl"
    monkeypatch.setattr(AnswerFile, "add", interrupted)
    ask(*arguments, "--out", out)
    assert not out.exists()
    assert len((tmp_path / "cut.jsonl.partial").read_text().splitlines()) == 4
    with pytest.raises(UserInputError, match="left of unfinished work"):
        ask(*arguments, "--out", out)
    with pytest.raises(UserInputError, match="belongs to other work"):
        ask(*arguments, "--max-length", "20", "--out", out, "--resume")
    ask(*arguments, "--out", out, "--resume")
    again = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["two"] for row in again] == texts[::-1]
    assert [row["label"] for row in again] == [row["label"] for row in whole]
    assert [row["score"] for row in again] == pytest.approx([row["score"] for row in whole], abs=0.002)


def test_stopping_at_a_refusal(picky: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("warm\nzinc\ncold\n")
    out = tmp_path / "out.csv"
    with pytest.raises(RangeError, match=r"row 1: .*left the range") as caught:
        ask("--student", picky, "--file", path, "--out", out, "--on-refusal", "stop")
    assert "--on-refusal skip" in caught.value.remedy
    assert len(out.read_text().splitlines()) == 4, "the texts after the refused one were asked all the same"
    with pytest.raises(RangeError, match="text 1: "):
        ask("--student", picky, "--on-refusal", "stop", "warm", "zinc")
    status, _, errors = ask("--student", picky, "--file", path, "--out", tmp_path / "skipped.csv")
    assert status == SOME_REFUSED
    assert "3 answers are in" in errors


def test_the_prompt(picky: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    typed = iter(["warm", "zinc", ""])
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    command.ask(student=picky)
    told = capsys.readouterr()
    assert "An empty line ends." in told.out
    assert " s)" in told.out
    assert "refused: an activation" in told.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--student", "{student}", "--config", "{file}", "x"], "give either --student or --config"),
        (["--student", "{nowhere}", "x"], "--student: .*nowhere does not exist"),
        (["--student", "{student}", "--file", "{file}", "x"], "--file: texts were given as arguments too"),
        (["--student", "{student}", "--text-column", "a", "x"], "--text-column: there is no --file"),
        (["--student", "{student}", "--resume", "x"], "--resume: it needs --out and --file"),
        (["--student", "{student}", "--out", "{nowhere}.doc", "x"], "no known suffix"),
        (["--student", "{student}", "--file", "{nowhere}.txt"], "nowhere"),
        (["--student", "{student}", "--on-refusal", "cry", "x"], "--on-refusal: 'cry' is unknown"),
        (["--student", "{student}", "--max-length", "99", "x"], "max_length: 99 is outside"),
        (["--config", "{file}", "x"], "role is missing"),
    ],
)
def test_wrong_arguments(picky: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "file.toml").write_text('id = "x"\n')
    names = {"student": str(picky), "file": str(tmp_path / "file.toml"), "nowhere": str(tmp_path / "nowhere")}
    with pytest.raises(MPCFormerError, match=message):
        ask(*(each.format(**names) for each in arguments))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.toml"]


def test_a_row_without_a_text_is_named_before_any_work(picky: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "warm"}\n{"text": null}\n')
    with pytest.raises(UserInputError, match="row 1, column 'text': the text is null"):
        ask("--student", picky, "--file", path, "--out", tmp_path / "out.csv")
    assert [each.name for each in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(("is_terminal", "ahead"), [(True, command.AHEAD), (False, 0)])
def test_only_the_prompt_holds_batches_ready(
    picky: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool, ahead: int
) -> None:
    given: dict[str, object] = {}

    def record(*_: object, **options: object) -> None:
        given.update(options)
        raise UserInputError("enough was seen")

    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr("parties.ask.local.local", record)
    with pytest.raises(UserInputError, match="enough was seen"):
        command.ask(student=picky)
    assert given["ahead"] == ahead
