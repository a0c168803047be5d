"""Files of texts: answered in order, stopped, going on where they stopped, and refused before any work."""

import csv
import io
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpcformer.errors import UserInputError
from parties.gateway.upload import N_LISTED, State, checked_name
from parties.gateway.uploads import MOST_UPLOADS, Uploads
from parties.session.data_side import BudgetError
from tests.gateway.conftest import MOST_UPLOAD_BYTES, Site

TEXTS = ["the day was fine", "zinc", "a grim stone", "warm", "", "lovely river"]


def as_csv(texts: list[str], column: str = "text") -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["id", column], *([i, text] for i, text in enumerate(texts))])
    return buffer.getvalue().encode()


def give(site: Site, content: bytes, name: str = "reviews.csv", **query: Any) -> dict[str, Any]:
    reply = site.client.post("/uploads", params={"name": name, **query}, content=content)
    assert reply.status_code == 201, reply.text
    found: dict[str, Any] = reply.json()
    assert reply.headers["location"] == f"/uploads/{found['id']}"
    return found


def until(site: Site, key: str, *states: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        found: dict[str, Any] = site.client.get(f"/uploads/{key}").json()
        if found["state"] in states:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def answered(site: Site, key: str) -> list[dict[str, str]]:
    until(site, key, "done")
    reply = site.client.get(f"/uploads/{key}/answers")
    assert reply.status_code == 200
    return list(csv.DictReader(io.StringIO(reply.text, newline="")))


def test_a_csv_comes_back_answered(site: Site) -> None:
    key = give(site, as_csv(TEXTS), name="my reviews.csv")["id"]
    rows = answered(site, key)
    assert [row["text"] for row in rows] == TEXTS
    assert [row["refused"] for row in rows] == ["True" if text == "zinc" else "False" for text in TEXTS]
    assert [row["label"] == "" for row in rows] == [text == "zinc" for text in TEXTS]
    facts = site.client.get(f"/uploads/{key}").json()
    assert (facts["rows"], facts["answered"], facts["refused"]) == (6, 6, 1)
    (refused,) = facts["first_refused"]
    assert refused["row"] == 1
    assert "left the range" in refused["reason"]
    assert "other words" in refused["fix"]
    reply = site.client.get(f"/uploads/{key}/answers")
    assert reply.headers["content-disposition"] == "attachment; filename*=UTF-8''my_reviews-answered.csv"
    assert site.client.get("/uploads").json()[0] == facts
    folder = site.uploads.get(key).folder
    assert folder.parent.stat().st_mode & 0o077 == folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir() if path.name != "upload.json")


def test_pairs_and_other_formats(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"one": TEXTS[2:], "two": TEXTS[2:]}), path)
    key = give(site, path.read_bytes(), "pairs.parquet", text_column=["one", "two"])["id"]
    until(site, key, "done")
    reply = site.client.get(f"/uploads/{key}/answers")
    table = pq.read_table(io.BytesIO(reply.content))
    assert table.column_names[:2] == ["one", "two"]
    assert table.num_rows == 4
    key = give(site, b'{"text": "warm"}\n{"text": "zinc"}\n', "two.jsonl")["id"]
    until(site, key, "done")
    lines = site.client.get(f"/uploads/{key}/answers").text.splitlines()
    assert [json.loads(line)["refused"] for line in lines] == [False, True]
    assert len(answered(site, give(site, b"warm\ncold\n", "lines.txt")["id"])) == 2


def test_stopped_and_on_again(site: Site) -> None:
    texts = [f"{word} day" for word in TEXTS if word != "zinc"] * 40
    key = give(site, as_csv(texts))["id"]
    while not until(site, key, "working", "waiting")["answered"]:
        time.sleep(0.02)
    assert site.client.get(f"/uploads/{key}/answers").status_code == 409
    assert site.client.delete(f"/uploads/{key}").status_code == 409
    assert site.client.post(f"/uploads/{key}/stop").json()["state"] in ("stopping", "stopped")
    stopped = until(site, key, "stopped")
    assert 0 < stopped["answered"] < len(texts)
    assert site.client.post(f"/uploads/{key}/go-on").json()["state"] in ("waiting", "working")
    rows = answered(site, key)
    assert [row["text"] for row in rows] == texts
    assert all(row["label"] for row in rows)
    assert site.client.post(f"/uploads/{key}/go-on").status_code == 409
    assert site.client.delete(f"/uploads/{key}").status_code == 204
    assert site.client.get(f"/uploads/{key}").status_code == 404


def left_by_a_kill(site: Site, folder: Path, texts: list[str], n_done: int) -> Path:
    """Make a folder of uploads as a gateway leaves it that was killed while it wrote an answer; return the upload's."""
    whole = give(site, as_csv(texts))["id"]
    until(site, whole, "done")
    source = site.uploads.get(whole)
    left = folder / source.id
    folder.mkdir()
    shutil.copytree(source.folder, left)
    rows = list(csv.DictReader(source.out.open(newline="")))
    source_out = left / source.out.name
    work = {"source": source.digest, "model": site.model.classify.model, "max_length": None}
    lines = [json.dumps({"work": work, "columns": ["text"]})]
    for row in rows[:n_done]:
        refused = row["refused"] == "True"
        answer = {"text": row["text"], "label": None if refused else row["label"], "score": 0.25, "refused": refused}
        lines.append(json.dumps(answer | {"reason": row["reason"] or None}))
    source_out.unlink()
    (left / "answers.csv.partial").write_text("\n".join(lines) + '\n{"text": "wa')
    return left


def test_what_a_killed_gateway_leaves_goes_on(site: Site, tmp_path: Path) -> None:
    left = left_by_a_kill(site, tmp_path / "uploads", TEXTS, 3)
    (tmp_path / "uploads" / "new-0123456789abcdef").mkdir()
    uploads = Uploads(tmp_path / "uploads", {"picky": (site.model.classify, None)})
    try:
        (upload,) = uploads.listed()
        assert (upload.state, upload.n_done, upload.n_refused) == (State.STOPPED, 3, 1)
        assert upload.refused[0][0] == 1
        assert [path.name for path in (tmp_path / "uploads").iterdir()] == [left.name]
        uploads.go_on(upload)
        deadline = time.monotonic() + 60
        while upload.state != State.DONE:
            assert upload.error is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        assert uploads.close() == 0
    rows = list(csv.DictReader(upload.out.open(newline="")))
    assert [row["text"] for row in rows] == TEXTS
    assert [row["score"] for row in rows[:3]] == ["0.25", "0.25", "0.25"], "the answers that were kept are kept"
    again = Uploads(tmp_path / "uploads", {})
    (upload,) = again.listed()
    assert (upload.state, upload.n_done, upload.n_refused) == (State.DONE, 6, 1)
    again.close()


def test_another_model_does_not_go_on(site: Site, tmp_path: Path) -> None:
    left_by_a_kill(site, tmp_path / "uploads", TEXTS, 3)
    for models in ({"other": (site.model.classify, None)}, {"picky": (site.model.classify, 12)}):
        uploads = Uploads(tmp_path / "uploads", models)
        (upload,) = uploads.listed()
        uploads.go_on(upload)
        while upload.state != State.FAILED:
            time.sleep(0.01)
        assert upload.error is not None
        assert str(tmp_path) not in str(upload.error)
        assert "start" in upload.error.remedy
        assert uploads.close() == 1
    assert len((upload.folder / "answers.csv.partial").read_text().splitlines()) == 5, "nothing is lost"


def test_a_damaged_upload_does_not_keep_the_others_away(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = left_by_a_kill(site, tmp_path / "uploads", TEXTS, 3)
    for name, facts in (("00" * 8, "{"), ("11" * 8, "{}"), ("22" * 8, "[]")):
        (left.parent / name).mkdir()
        (left.parent / name / "upload.json").write_text(facts)
    uploads = Uploads(left.parent, {})
    assert [upload.id for upload in uploads.listed()] == [left.name]
    assert caplog.text.count("fix:") == 3
    uploads.close()


def test_a_budget_that_is_used_up_stops_and_tells(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def used_up(*_: object, **__: object) -> Iterator[dict[str, Any]]:
        yield {"label": "positive", "score": 0.75}
        raise BudgetError("model-owner", 3600)

    monkeypatch.setattr(site.model.classify, "answers", used_up)
    key = give(site, as_csv(TEXTS))["id"]
    failed = until(site, key, "failed")
    assert failed["answered"] == 1
    assert "used up" in failed["error"]
    assert "ask again in 1 h" in failed["fix"]
    monkeypatch.undo()
    site.client.post(f"/uploads/{key}/go-on")
    rows = answered(site, key)
    assert (len(rows), rows[0]["score"]) == (6, "0.75")


def test_an_error_that_nobody_foresaw_quotes_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*_: object, **__: object) -> Iterator[dict[str, Any]]:
        raise ValueError("the-secret-text")
        yield

    monkeypatch.setattr(site.model.classify, "answers", breaks)
    failed = until(site, give(site, as_csv(TEXTS))["id"], "failed")
    assert "unexpected ValueError" in failed["error"]
    assert "the-secret-text" not in json.dumps(failed) + caplog.text


def test_only_the_first_refused_rows_are_listed(site: Site) -> None:
    facts = until(site, give(site, as_csv(["zinc"] * (N_LISTED + 5)))["id"], "done")
    assert facts["refused"] == N_LISTED + 5
    assert [each["row"] for each in facts["first_refused"]] == list(range(N_LISTED))


@pytest.mark.parametrize(
    ("name", "content", "query", "status", "message"),
    [
        ("", b"x", {}, 400, "no suffix"),
        ("reviews", b"x", {}, 400, "no suffix"),
        ("reviews.docx", b"x", {}, 400, "'.docx' is of no known format"),
        ("reviews.json", b"[]", {}, 400, "'.json' is of no known format"),
        ("reviews.csv", b"", {}, 400, "reviews.csv is empty"),
        ("reviews.csv", b"text\n", {}, 400, "reviews.csv has no text"),
        ("reviews.csv", b"a,b\n1,2\n", {}, 400, "no column with a usual name"),
        ("reviews.csv", b"a,b\n1,2\n", {"text_column": "c"}, 400, "text_column: reviews.csv has no column 'c'"),
        ("reviews.csv", b"text,b\n1\n", {}, 400, "reviews.csv, row 0: it has 1 cells"),
        ("reviews.csv", b"text\n\xff\n", {}, 400, "reviews.csv is not UTF-8"),
        ("reviews.csv", b"label\n1\n", {"text_column": "label"}, 400, "column 'label' of their own"),
        ("reviews.jsonl", b'{"text": null}\n', {}, 400, "row 0, column 'text': the text is null"),
        ("reviews.parquet", b"PAR1", {}, 400, "cannot be read as parquet"),
        ("reviews.csv", b"text\nx\n", {"model": "other"}, 404, "no model of this name"),
        ("reviews.csv", b"text\nx\n", {"column": "text"}, 400, "the parameter 'column' is unknown"),
        ("reviews.csv", b"x" * (MOST_UPLOAD_BYTES + 1), {}, 413, "larger than 1 MiB"),
    ],
)
def test_wrong_files_are_refused_and_leave_nothing(
    site: Site, name: str, content: bytes, query: dict[str, str], status: int, message: str
) -> None:
    before = sorted(path.name for path in site.uploads.folder.iterdir())
    reply = site.client.post("/uploads", params={"name": name, **query}, content=content)
    assert reply.status_code == status, reply.text
    told = reply.json()
    assert message in told["error"]
    assert told["fix"]
    assert str(site.uploads.folder) not in reply.text
    assert sorted(path.name for path in site.uploads.folder.iterdir()) == before


def test_a_file_of_unknown_length_is_limited_too(site: Site) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"text\n"
        for _ in range(9):
            yield b"x" * (1 << 17)

    reply = site.client.post("/uploads", params={"name": "long.csv"}, content=chunks())
    assert reply.status_code == 413


def test_columns_to_choose_from_are_told(site: Site) -> None:
    reply = site.client.post("/uploads", params={"name": "a.csv"}, content=b"first,second\nwarm,cold\n")
    assert reply.json()["columns"] == ["first", "second"]
    key = give(site, b"first,second\nwarm,cold\n", text_column="second")["id"]
    assert [row["second"] for row in answered(site, key)] == ["cold"]


def test_too_many_uploads(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.uploads, "_found", dict.fromkeys(map(str, range(MOST_UPLOADS))))
    reply = site.client.post("/uploads", params={"name": "a.csv"}, content=b"text\nwarm\n")
    assert reply.status_code == 409
    assert "remove" in reply.json()["fix"]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("reviews.csv", "reviews.csv"),
        ("/etc/passwd.txt", "passwd.txt"),
        (r"C:\texts\my file (2).CSV", "my_file_2_.CSV"),
        ("../../up.csv", "up.csv"),
        (".hidden.csv", "hidden.csv"),
        ("-o.csv", "o.csv"),
        ("answers.csv", "texts_answers.csv"),
        ("answers.csv.partial.csv", "texts_answers.csv.partial.csv"),
        ("grün.csv", "grün.csv"),
        ("a\nb.csv", "a_b.csv"),
        ("x" * 300 + ".csv", "x" * 96 + ".csv"),
    ],
)
def test_names_are_harmless(name: str, kept: str) -> None:
    assert checked_name(name) == kept


def test_a_long_name_in_any_script_is_cut(site: Site) -> None:
    for letter in ("a", "\u00e4", "\u6587", "\U00020000"):
        kept = give(site, b"text\nwarm\n", name=letter * 100 + ".csv")["name"]
        assert kept.endswith(letter + ".csv")
        assert 90 < len(kept.encode()) <= 100


def test_names_without_a_letter() -> None:
    for name in ("..", "/", ".csv", "a/b/"):
        with pytest.raises(UserInputError, match="name"):
            checked_name(name)
