"""A gateway that serves several models of a model owner's shelf."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from mpcformer.errors import UserInputError
from parties.gateway.app import build
from parties.gateway.models import chosen, opened
from parties.gateway.token_file import Token
from parties.gateway.uploads import Uploads
from tests.ask.shelf_site import Shelf, shelf_of
from tests.ask.test_classifier import plaintext
from tests.gateway.conftest import TOKEN
from tests.tiny import save_student

TEXTS = ["the day was fine", "a grim stone"]
GIVEN: dict[str, Any] = {"max_length": None, "patience_s": 20.0, "ahead": 0}


@pytest.fixture(scope="module")
def news(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """A tiny student with weights of its own."""
    return save_student(tmp_path_factory.mktemp("news") / "student", data_dir, seed=1)


@pytest.fixture
def shelf(student: Path, news: Path, tmp_path: Path) -> Iterator[Shelf]:
    """Carla may ask both models, and Anna one of the two that her file names."""
    tables = [{"name": "films", "path": student, "max_sentences_per_day": 4}, {"name": "news", "path": news}]
    tables[1]["may_ask"] = ["carla"]
    with shelf_of(tmp_path, tables, {"films": student, "news": news}) as found:
        yield found


def test_each_model_has_its_address_and_its_budget(shelf: Shelf, student: Path, news: Path, tmp_path: Path) -> None:
    config = shelf.data_owners["carla"]
    with opened(chosen(config, None, None, None), config, None, GIVEN) as served:
        uploads = Uploads(tmp_path / "uploads", {model.name: (model.classify, None) for model in served})
        app = build(served, uploads, Token(TOKEN), 1 << 20)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with TestClient(app, base_url="http://127.0.0.1", headers=headers) as client:
            listed = {each["name"]: each for each in client.get("/models").json()}
            assert list(listed) == ["films", "news"]
            assert listed["films"]["sha256"] != listed["news"]["sha256"]
            assert client.get("/models/news").json() == listed["news"]
            for name, folder in (("films", student), ("news", news)):
                reply = client.post(f"/models/{name}", json={"inputs": TEXTS, "parameters": {"top_k": 1}})
                expected = plaintext(folder, TEXTS)
                assert [entry[0]["label"] for entry in reply.json()] == [each["label"] for each in expected]
                found = [entry[0]["score"] for entry in reply.json()]
                assert found == pytest.approx([each["score"] for each in expected], abs=0.002)
            assert client.post("/models/films", json={"inputs": TEXTS}).status_code == 200
            assert client.post("/models/films", json={"inputs": TEXTS}).status_code == 429
            assert client.post("/models/news", json={"inputs": TEXTS}).status_code == 200
            unnamed = client.post("/", json={"inputs": TEXTS})
            assert (unnamed.status_code, unnamed.json()["fix"]) == (404, "ask one of: films, news")
            assert client.post("/uploads?name=a.csv", content=b"text\nwarm\n").status_code == 404
            uploaded = client.post("/uploads?name=a.csv&model=news", content=b"text\nwarm\n")
            assert (uploaded.status_code, uploaded.json()["model"]) == (201, "news")
        uploads.close()


def test_which_models_are_served(shelf: Shelf) -> None:
    anna, carla = shelf.data_owners["anna"], shelf.data_owners["carla"]
    assert chosen(carla, None, None, None) == {"films": "films", "news": "news"}
    assert chosen(carla, ["news"], None, None) == {"news": "news"}
    assert chosen(carla, ["news"], "mine", None) == {"mine": "news"}
    for arguments, said in (
        ((carla, None, "mine", None), "--name: there are several models"),
        ((carla, ["other"], None, None), "'other' is not among models in the file"),
    ):
        with pytest.raises(UserInputError, match=said):
            chosen(*arguments)
    with ExitStack() as stack, pytest.raises(UserInputError, match="lets this data owner ask no 'news'"):
        stack.enter_context(opened(chosen(anna, None, None, None), anna, None, GIVEN))
    text = anna.read_text().split("[[models]]")[0]
    for more, name in (("", "public-films"), ('model = "films"\n', "films")):
        anna.write_text(f'public_model = "public-films"\n{more}{text}')
        assert list(chosen(anna, None, None, None)) == [name]
