"""The list of engines: names, the default engine's former name, and what adding an engine takes."""

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from mpcformer.engines import registry
from mpcformer.engines.base import load_public_model
from mpcformer.engines.lift.engine import LiftEngine
from mpcformer.engines.registry import DEFAULT_ENGINE, EngineEntry, create_engine, engine_names, resolve
from mpcformer.errors import UserInputError
from parties.settings.job import JobDescription


def job(engine: str) -> JobDescription:
    """Return a job as a configuration file states it."""
    return TypeAdapter(JobDescription).validate_python({"task": "sst2", "engine": engine})


class MadeUpEngine(LiftEngine):
    name = "made-up"


def test_each_engine_carries_the_name_that_it_is_listed_under(student: Path) -> None:
    assert engine_names()[0] == DEFAULT_ENGINE == "lift"
    for name in engine_names():
        assert create_engine(name, rank=1, public=load_public_model(student), channel=None, weights=None).name == name


def test_the_former_name_works_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert resolve("lift") == "lift"
    assert capsys.readouterr().err == ""
    assert resolve("mpcformer") == "lift"
    assert "the engine mpcformer is now called lift" in capsys.readouterr().err
    assert job("mpcformer") == job("lift")


def test_an_unknown_engine_is_refused_by_name() -> None:
    with pytest.raises(UserInputError, match="engine 'spdz' is unknown"):
        resolve("spdz")
    with pytest.raises(ValueError, match="engine 'spdz' is unknown; choose one of: lift, crypten"):
        job("spdz")


def test_an_engine_is_added_by_one_line(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.ENGINES, "made-up", EngineEntry(__name__, "MadeUpEngine", "a copy, for this test"))
    engine = create_engine("made-up", rank=1, public=load_public_model(student), channel=None, weights=None)
    assert isinstance(engine, MadeUpEngine)
    assert engine_names()[-1] == "made-up"
    assert job("made-up").engine == "made-up"
