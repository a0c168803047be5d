"""Fixtures: one replay of glue at scale smoke, which many tests look at."""

from pathlib import Path

import pytest

from experiments.replay import run
from tests.replays import Counted, glue


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replay")


@pytest.fixture(scope="session")
def folder(shop: Path) -> Path:
    run(glue(shop))
    return shop / "glue"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)
