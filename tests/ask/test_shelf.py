"""A shelf of models: who may ask which, within which budget, and what a session notices of a student's replacement."""

import gc
import re
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import mpcformer
from mpcformer.cli import build_app
from mpcformer.errors import PartyError, UserInputError
from mpcformer.files import sha256_file
from parties import diagnosis
from parties.ask.models import models
from parties.roles.coordinator import Coordinator
from parties.roles.journal import Journal
from parties.roles.service import SessionHost
from parties.roles.start_party import _take_part
from parties.session import orderer
from parties.settings import metrics
from parties.settings.config import PeerAddress
from parties.settings.config_file import load_party
from parties.settings.public_files import export_public
from parties.stubs import parties_pb2 as pb
from tests.ask.shelf_site import Shelf, shelf_of
from tests.ask.test_classifier import plaintext, same
from tests.tiny import save_student

TEXTS = ["the day was fine", "a grim stone", "warm river"]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait long for more evidence of who is to blame: all parties are in this process."""
    monkeypatch.setattr(orderer, "GRACE_S", 0.2)


@pytest.fixture(scope="module")
def students(student: Path, tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> dict[str, Path]:
    """Three tiny students with other weights each."""
    folder = tmp_path_factory.mktemp("students")
    made = {f"{name}": save_student(folder / name, data_dir, seed=seed) for name, seed in (("news", 1), ("later", 2))}
    return {"films": student} | made


@pytest.fixture
def shelf(students: dict[str, Path], tmp_path: Path) -> Iterator[Shelf]:
    """Anna may ask films, Ben news, and Carla both."""
    for name in ("films", "news"):
        shutil.copytree(students[name], tmp_path / "shelf" / name)
    tables = [
        {"name": "films", "path": tmp_path / "shelf" / "films", "may_ask": ["anna", "carla"]},
        {"name": "news", "path": tmp_path / "shelf" / "news", "may_ask": ["ben", "carla"], "max_sentences_per_day": 3},
    ]
    public = {name: students[name] for name in ("films", "news")}
    with shelf_of(tmp_path, tables, public) as found:
        yield found


def asked(shelf: Shelf, data_owner: str, model: str | None, texts: list[str] = TEXTS) -> list[Any]:
    with mpcformer.connect(shelf.data_owners[data_owner], model=model, ahead=0) as classify:
        return list(classify(texts, details=True))


def films_left(data_owner: str) -> dict[str, float]:
    """Return what the metrics say is left today of a data owner's budgets for the student films, by its label."""
    samples = (sample for family in metrics.budget_left.collect() for sample in family.samples)
    labels = {"data_owner": data_owner, "period": "day"}
    found = {each.labels["student"]: each.value for each in samples if labels.items() <= each.labels.items()}
    return {student: left for student, left in found.items() if student.startswith("films")}


def refusal(shelf: Shelf, data_owner: str, model: str) -> tuple[str, str]:
    """Return the words in which a question is refused, where the data owner has no public files of its own to match."""
    path = shelf.folder / "asking.toml"
    text = shelf.data_owners[data_owner].read_text()
    path.write_text(text.replace('name = "films"', f'name = "{model}"') if model not in ("films", "news") else text)
    with pytest.raises(PartyError) as caught:
        mpcformer.connect(path, model=model, ahead=0).open()
    assert f"model-owner serves {data_owner} no such model" in caught.value.what
    return caught.value.what, caught.value.remedy


def test_each_data_owner_sees_and_asks_its_own_alone(shelf: Shelf, students: dict[str, Path]) -> None:
    seen = {name: {each["name"]: each for each in models(path)} for name, path in shelf.data_owners.items()}
    assert {name: set(found) for name, found in seen.items()} == {
        "anna": {"films"},
        "ben": {"news"},
        "carla": {"films", "news"},
    }
    assert {each["public_files"] for each in seen["carla"].values()} == {"match"}
    assert seen["carla"]["news"]["about"]["labels"] == "negative, positive"
    assert [seen["carla"][name]["left_today"] for name in ("films", "news")] == [1000, 3]
    # Anna's file has the public files of two models, of which she may ask one.
    same(asked(shelf, "anna", "films"), plaintext(students["films"], TEXTS))
    with mpcformer.connect(shelf.data_owners["carla"], model="news", ahead=0) as classify:
        same(list(classify(TEXTS)), plaintext(students["news"], TEXTS))
        with pytest.raises(mpcformer.BudgetError):
            classify(TEXTS[0])
    same(asked(shelf, "ben", "news"), plaintext(students["news"], TEXTS))
    assert len(asked(shelf, "carla", "films")) == 3, "each model has a budget of its own"
    (left,) = (each["left_today"] for each in models(shelf.data_owners["carla"]) if each["name"] == "films")
    assert left == 997
    assert refusal(shelf, "anna", "news") == refusal(shelf, "anna", "no-such"), "nobody learns which names exist"


def test_one_model_needs_no_name_and_several_do(shelf: Shelf) -> None:
    with pytest.raises(UserInputError, match="model: carla's file names several") as caught:
        asked(shelf, "carla", None)
    assert caught.value.remedy == "choose one of: films, news"
    with pytest.raises(UserInputError, match="'other' is not among models in the file"):
        asked(shelf, "carla", "other")
    for name, model in (("ben", "news"), ("carla", "films")):
        path = shelf.data_owners[name]
        text = path.read_text().split("[[models]]")[0]
        path.write_text(f'public_model = "public-{model}"\n{text}')
    assert len(asked(shelf, "ben", None)) == 3
    with pytest.raises(PartyError, match="carla may ask several models, and the job names none"):
        asked(shelf, "carla", None)
    assert len(asked(shelf, "carla", "films")) == 3


def test_a_session_keeps_a_student_that_is_replaced_on_the_disk_and_on_the_shelf(
    shelf: Shelf, students: dict[str, Path]
) -> None:
    folder, carla = shelf.folder / "shelf" / "films", shelf.data_owners["carla"]
    before = weakref.ref(shelf.owner._shelf.pick("films", "carla").student)
    old, new = plaintext(students["films"], TEXTS), plaintext(students["later"], TEXTS)
    assert [answer["score"] for answer in old] != pytest.approx([answer["score"] for answer in new], abs=0.01)
    with mpcformer.connect(carla, model="films", ahead=0) as classify:
        same(list(classify(TEXTS)), old)
        for path in students["later"].iterdir():
            shutil.copyfile(path, folder / path.name)  # into the very files that were loaded
        same(list(classify(TEXTS)), old)
        assert shelf.reload()
        same(list(classify(TEXTS)), old)
        # The others have the new one, with a budget of its own, and are told if their files are of the old one.
        (offered,) = models(shelf.data_owners["anna"])
        assert offered["public_files"] == "of other weights"
        assert offered["left_today"] == 1000
        with pytest.raises(PartyError, match="disagree on: student") as caught:
            asked(shelf, "anna", "films")
        assert "public files of this very student" in caught.value.remedy
        shutil.rmtree(shelf.folder / "public-films")
        export_public(students["later"], shelf.folder / "public-films")
        same(asked(shelf, "anna", "films"), new)
        same(list(classify(TEXTS)), old)
        assert before() is not None
        assert films_left("carla") == {"films (gone)": 1000 - 4 * 3}
    deadline = time.monotonic() + 20
    while before() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.1)
    assert before() is None, "the last session of the old student has ended"
    assert films_left("carla") == {}
    # The old one comes back, and with it what was asked of it.
    for path in students["films"].iterdir():
        shutil.copyfile(path, folder / path.name)
    assert shelf.reload()
    assert [each["left_today"] for each in models(carla) if each["name"] == "films"] == [1000 - 4 * 3]


def test_students_are_added_and_withdrawn_while_sessions_run(shelf: Shelf, students: dict[str, Path]) -> None:
    expected = plaintext(students["films"], TEXTS)
    with mpcformer.connect(shelf.data_owners["anna"], model="films", ahead=0) as classify:
        same(list(classify(TEXTS)), expected)
        news = {"name": "news", "path": students["news"], "may_ask": ["carla"]}
        assert shelf.reload([news, {"name": "later", "path": students["later"], "max_sentences_per_day": 2}])
        offered = {name: {each["name"] for each in models(path)} for name, path in shelf.data_owners.items()}
        assert offered == {"anna": {"later"}, "ben": {"later"}, "carla": {"news", "later"}}
        withdrawn = refusal(shelf, "anna", "films")
        assert withdrawn == refusal(shelf, "anna", "news") == refusal(shelf, "anna", "no-such")
        same(list(classify(TEXTS)), expected)
    # A limit that is lowered holds in sessions that run, too.
    with mpcformer.connect(shelf.data_owners["carla"], model="news", ahead=0) as classify:
        assert len(list(classify(TEXTS))) == 3
        assert shelf.reload([news | {"max_sentences_per_day": 4}])
        with pytest.raises(mpcformer.BudgetError):
            classify(TEXTS)
        assert len(list(classify(TEXTS[:1]))) == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[[students]]", "[students", "Expected"),
        ('name = "news"', 'name = "films"', "students: the name films is listed twice"),
        ('name = "news"', 'name = "../news"', "students.1.name"),
        ('name = "news"', 'name = "news"\nranges = 3', "students.1.ranges"),
        ("shelf/news", "nowhere", "students: news: .*nowhere"),
        ("shelf/news", "damaged", "students: news: .*ranges"),
        ("shelf/news", "public-news", "students: news: .*safetensors"),
        ("may_ask = [", 'may_ask = ["zoe",', "students: films: may_ask: zoe is not in data_owners"),
        ("max_sentences_per_day = 3", "max_sentences_per_day = 0", "students.1.max_sentences_per_day"),
        ('id = "model-owner"', 'id = "another"', "is not the file of the model owner 'model-owner' any more"),
    ],
)
def test_a_broken_file_changes_nothing_and_is_named(
    shelf: Shelf, students: dict[str, Path], caplog: pytest.LogCaptureFixture, old: str, new: str, said: str
) -> None:
    shutil.copytree(students["later"], shelf.folder / "damaged")
    (shelf.folder / "damaged" / "ranges.json").write_text("{}")
    before, text = shelf.owner._shelf._served, shelf.file.read_text()
    assert old in text
    # The other student is another one now, but is not taken up alone.
    shelf.file.write_text(text.replace("shelf/films", "shelf/later").replace(old, new))
    shutil.copytree(students["later"], shelf.folder / "shelf" / "later")
    assert not shelf.reload()
    assert re.search(said, caplog.text), caplog.text
    assert str(shelf.file) in caplog.text
    assert shelf.owner._shelf._served is before
    assert {each["name"] for each in models(shelf.data_owners["carla"])} == {"films", "news"}


def test_the_dealer_is_told_who_takes_part_and_not_what_is_asked(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, admit = [], SessionHost._admit

    def noting(host: SessionHost, job: pb.Job, *more: Any) -> str:
        jobs.append((host._role, job))
        return admit(host, job, *more)

    monkeypatch.setattr(SessionHost, "_admit", noting)
    asked(shelf, "carla", "films")
    told = {role: {field.name for field, _ in job.ListFields()} for role, job in jobs}
    assert told["dealer"] == {"session_id", "dealer", "model_owner", "data_owner", "release"}
    assert told["model-owner"] > {*told["dealer"], "model", "engine", "task"}


def evaluated(shelf: Shelf, data_dir: Path, model: str) -> tuple[str, int]:
    """Let a coordinator evaluate a model with Carla's texts; return the model's digest and the number of answers."""
    order = shelf.coordinator.model_copy(update={"job": replace(shelf.coordinator.job, model=model)})
    journal = Journal(shelf.folder / f"journal-{model}.jsonl", {})
    coordinator = Coordinator(order, journal=journal)
    carla = load_party(shelf.data_owners["carla"])
    peer = PeerAddress(id="coordinator", address=coordinator.address)
    own = {"coordinator": peer, "data_dir": data_dir, "model_owners": ["model-owner"], "dealers": ["dealer"]}
    thread = threading.Thread(target=_take_part, args=(carla.model_copy(update=own),))
    thread.start()
    try:
        results = coordinator.run_job()
        return journal.student, len(results.predictions.ids)
    finally:
        thread.join(20)
        coordinator.stop()


def test_a_coordinator_names_the_model_of_an_evaluation(
    shelf: Shelf, students: dict[str, Path], data_dir: Path
) -> None:
    for name in ("films", "news"):
        assert evaluated(shelf, data_dir, name) == (sha256_file(students[name] / "model.safetensors"), 2)
    left = {each["name"]: each["left_today"] for each in models(shelf.data_owners["carla"])}
    assert left == {"films": 998, "news": 1}
    with pytest.raises(PartyError, match="model-owner serves carla no such model"):
        evaluated(shelf, data_dir, "other")


def test_the_doctor_compares_each_model(shelf: Shelf, students: dict[str, Path]) -> None:
    def rows(path: Path) -> dict[str, Any]:
        return {row.check: row for row in diagnosis.diagnose(path)}

    own = rows(shelf.file)
    assert "2 layers" in own["student films"].found
    assert not own["student news"].status
    found = rows(shelf.data_owners["carla"])
    assert not [row for row in found.values() if row.status], found
    assert found["model-owner: student films"].found.endswith("as in public_model")
    assert "2 layers" in found["public_model news"].found
    found = rows(shelf.data_owners["anna"])
    assert [name for name, row in found.items() if row.status] == ["model-owner: student news"]
    assert found["model-owner: student news"].found == "it lets us ask no student of this name"
    text = shelf.data_owners["carla"].read_text().split("[[models]]")[0]
    shelf.data_owners["carla"].write_text(f'public_model = "public-films"\n{text}')
    found = rows(shelf.data_owners["carla"])
    assert found["model-owner: student"].found == "it lets us ask several: films, news"


def test_what_needs_a_restart_is_named(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    shelf.file.write_text(shelf.file.read_text().replace("max_sessions = 8", "max_sessions = 9"))
    assert shelf.reload()
    assert "max_sessions: changed too, but only a restart takes that up" in caplog.text


def test_the_command_lists_and_picks(shelf: Shelf) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(build_app(), ["ask", "--config", str(shelf.data_owners["carla"]), *arguments])

    listed = run("--list-models")
    assert listed.exit_code == 0, listed.output
    head, *rows = [line.split("\t") for line in listed.stdout.splitlines()]
    assert head[:2] == ["name", "answers"]
    public = ["logits", "negative, positive", "2", "32", "quad + 2quad"]
    assert [row[:-1] for row in rows] == [
        ["films", *public, "1000", "20000", "match"],
        ["news", *public, "3", "20000", "match"],
    ]
    answered = run("--model", "news", TEXTS[0])
    assert answered.exit_code == 0, answered.output
    assert answered.stdout.split("\t")[0] in ("negative", "positive")
    for arguments in (["--model", "news"], ["--list-models"]):
        wrong = CliRunner().invoke(build_app(), ["ask", *arguments, "a text"])
        assert isinstance(wrong.exception, UserInputError)
        assert f"{arguments[0]}: there is no --config" in wrong.exception.what
