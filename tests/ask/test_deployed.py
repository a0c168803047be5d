"""Tests of asking the parties of a deployment: who may order, and how much."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

import mpcformer
from mpcformer.cli import build_app
from mpcformer.errors import PartyError, UserInputError
from parties.ask.models import models
from parties.gateway.app import build
from parties.gateway.served import ServedModel
from parties.gateway.token_file import Token
from parties.gateway.uploads import Uploads
from parties.roles import reload
from parties.settings.config import DataOwnerConfig, PeerAddress
from parties.settings.config_file import to_toml
from parties.settings.job import JobDescription
from parties.settings.public_files import export_public
from parties.wire.tls import make_certificates
from tests.faults.cast import PARTIES, Cast

JOB = JobDescription(task="sst2")
ASKING = {"may_order": ["data-owner"], "coordinators": []}


@pytest.fixture
def deployed(picky: Path, data_dir: Path, tmp_path: Path) -> Iterator[Any]:
    """Start dealer and model owner with changes to their files; give the path of the data owner's file."""
    casts = []

    def start(dealer: dict[str, Any] = ASKING, model_owner: dict[str, Any] = ASKING) -> tuple[Cast, Path]:
        cast = Cast(
            tmp_path,
            student=picky,
            public=export_public(picky, tmp_path / "public"),
            data_dir=data_dir,
            tls=make_certificates(tmp_path / "tls", list(PARTIES)),
            job=JOB,
            changes={"dealer": dealer, "model-owner": model_owner},
        )
        casts.append(cast)
        cast.start("dealer", "model-owner", once=False)
        config = DataOwnerConfig(
            role="data-owner",
            id="data-owner",
            tls=cast.configs["data-owner"].tls,
            dealer=PeerAddress(id="dealer", address=cast.relays["owners->dealer"].address),
            model_owner=PeerAddress(id="model-owner", address=cast.relays["data-owner->model-owner"].address),
            public_model=tmp_path / "public",
            join_timeout_s=60.0,
        )
        path = tmp_path / "asking.toml"
        path.write_text(to_toml(config))
        return cast, path

    yield start
    for cast in casts:
        cast.end()


def test_a_data_owner_asks_without_a_coordinator(deployed: Any, tmp_path: Path) -> None:
    cast, path = deployed()
    with mpcformer.connect(path, ahead=0) as classify:
        (first,) = list(classify("the day was fine"))
        assert first["label"] in classify.labels
        assert next(iter(classify("zinc")))["refused"]
    result = CliRunner().invoke(build_app(), ["ask", "--config", str(path), "the day was fine"])
    assert result.exit_code == 0, result.output
    assert result.stdout.split("\t")[0] == first["label"]
    logs = cast.said("dealer") + cast.said("model-owner")
    assert "session of data-owner begins" in logs
    assert not [word for word in ("fine", "zinc", "positive", "negative") if word in logs]


def test_the_gateway_asks_a_deployment_within_its_budget(deployed: Any, tmp_path: Path) -> None:
    cast, path = deployed(model_owner=ASKING | {"max_sentences_per_day": 2})
    with pytest.raises(UserInputError, match="patience_s: 0 is outside"):
        mpcformer.connect(path, patience_s=0)
    with mpcformer.connect(path, ahead=0, patience_s=5) as classify:
        model = ServedModel("picky", classify, is_local=False)
        uploads = Uploads(tmp_path / "uploads", {"picky": (classify, None)})
        headers = {"Authorization": "Bearer 0123456789abcdef"}
        app = build([model], uploads, Token("0123456789abcdef"), 1 << 20)
        with TestClient(app, base_url="http://127.0.0.1", headers=headers) as client:
            assert client.get("/models").json()[0]["parties"] == {"dealer": "dealer", "model-owner": "model-owner"}
            assert client.post("/", json={"inputs": ["warm", "cold"]}).status_code == 200
            used_up = client.post("/", json={"inputs": "warm"})
            assert used_up.status_code == 429
            assert 0 < int(used_up.headers["retry-after"]) <= 86_400
            assert "model-owner: the budget of sentences for today is used up" in used_up.json()["error"]
            cast.processes["model-owner"].kill()
            began = time.monotonic()
            lost = client.post("/", json={"inputs": "warm"})
            assert time.monotonic() - began < 15, "the file says 60 s"
            assert (lost.status_code, lost.headers["retry-after"]) == (503, "1")
            assert lost.json()["error"].startswith("model-owner: ")
        uploads.close()


def test_who_may_not_order_is_refused_by_name(deployed: Any) -> None:
    _, path = deployed(model_owner={"coordinators": ["coordinator"]})
    with pytest.raises(PartyError, match=r"model-owner: it refused the session: .*names \['data-owner'\]"):
        mpcformer.connect(path).open()


def test_a_budget_is_kept_across_sessions_and_restarts(deployed: Any, tmp_path: Path) -> None:
    budget = {"max_sentences_per_day": 4, "budget_file": tmp_path / "budget.json"}
    cast, path = deployed(model_owner=ASKING | budget)
    used_up = r"model-owner: the budget of sentences for today is used up\n.*ask again in \d+ h \d+ min"
    with mpcformer.connect(path, ahead=0) as classify:
        assert len(list(classify(["warm", "cold", "fine"]))) == 3  # one batch of four, of which three are asked about
        with pytest.raises(mpcformer.BudgetError, match=used_up):
            classify(["warm", "cold", "fine"])
        assert len(list(classify("warm"))) == 1  # the session goes on, and one was left
        with pytest.raises(mpcformer.BudgetError, match=used_up) as caught:
            classify("warm")
        assert caught.value.exit_code == 8
    model_owner = cast.processes["model-owner"]
    model_owner.kill()
    model_owner.join()
    cast.start("model-owner", once=False)
    with mpcformer.connect(path, ahead=0) as classify, pytest.raises(mpcformer.BudgetError, match=used_up):
        classify("warm")


def test_a_data_owner_orders_for_itself_alone(deployed: Any) -> None:
    _, path = deployed(
        dealer=ASKING | {"data_owners": ["data-owner", "other"]},
        model_owner=ASKING | {"data_owners": ["data-owner", "other"]},
    )
    from parties.session import own_session

    class ForAnother(own_session.Orderer):
        def new_job(self, **more: Any) -> Any:
            job = super().new_job(**more)
            job.data_owner = "other"
            return job

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_session, "Orderer", ForAnother)
        with pytest.raises(PartyError, match="data-owner may order sessions for itself alone, not for 'other'"):
            mpcformer.connect(path).open()


def test_the_file_of_another_party_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data-owner.toml"
    keys = 'role = "data-owner"\nid = "d"\npublic_model = "p"\nmodel_owners = ["m"]\ndealers = ["d2"]\n'
    keys += '[insecure]\nplaintext = true\n[coordinator]\nid = "c"\naddress = "127.0.0.1:7000"\n'
    path.write_text(keys)
    with pytest.raises(UserInputError, match="is not the file of a data owner that orders its own sessions"):
        mpcformer.connect(path)


def test_an_idle_session_makes_room_for_others_and_the_next_question_opens_another(deployed: Any) -> None:
    cast, path = deployed(model_owner=ASKING | {"max_idle_s": 8.0})
    with mpcformer.connect(path, ahead=0) as classify:
        first = list(classify("warm"))
        deadline = time.monotonic() + 60
        while "sent nothing for 8 s" not in cast.said("model-owner") and time.monotonic() < deadline:
            time.sleep(0.2)
        assert "data-owner: sent nothing for 8 s" in cast.said("model-owner")
        time.sleep(0.5)
        second = list(classify("warm"))
    assert [answer["label"] for answer in second] == [answer["label"] for answer in first]


def test_a_signal_lets_the_model_owner_read_its_file_again(deployed: Any, student: Path, tmp_path: Path) -> None:
    cast, path = deployed()
    process, file = cast.processes["model-owner"], tmp_path / "model-owner.toml"
    (before,) = models(path)
    assert (before["name"], before["public_files"]) == ("student", "match")
    good = file.read_text()

    def signalled(text: str, said: str) -> None:
        n_before = cast.said("model-owner").count(said)
        file.write_text(text)
        os.kill(process.pid, signal.SIGHUP)
        deadline = time.monotonic() + 20
        while cast.said("model-owner").count(said) == n_before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert cast.said("model-owner").count(said) == n_before + 1

    signalled(good + "[students", "nothing is taken up of ")
    assert models(path) == [before]
    signalled(good.replace(str(cast.configs["model-owner"].student), str(student)), "model-owner.toml was read again")
    (after,) = models(path)
    assert (after["name"], after["public_files"]) == ("student", "of other weights")
    signalled(good, "model-owner.toml was read again")
    assert models(path) == [before]
    process.terminate()
    assert cast.wait("model-owner", 20) == 0


def test_a_terminal_that_closes_ends_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGHUP also says that the terminal is gone in which a service was started."""
    before, stop = signal.getsignal(signal.SIGHUP), threading.Event()
    try:
        monkeypatch.setattr(reload, "_has_terminal", lambda: True)
        reload.Reloading(tmp_path / "none.toml", stop)
        signal.raise_signal(signal.SIGHUP)
        assert not stop.is_set()
        monkeypatch.setattr(reload, "_has_terminal", lambda: False)
        signal.raise_signal(signal.SIGHUP)
        assert stop.is_set()
        stop.clear()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        monkeypatch.setattr(reload, "_has_terminal", lambda: True)
        reload.Reloading(tmp_path / "none.toml", stop)
        monkeypatch.setattr(reload, "_has_terminal", lambda: False)
        signal.raise_signal(signal.SIGHUP)
        assert not stop.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)
