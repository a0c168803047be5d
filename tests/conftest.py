"""Shared fixtures. Tests run on one thread: the machine has two cores and the parties are many."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from transformers.utils import logging as hf_logging

from mpcformer.console import console, err_console
from parties.runs import simulation
from tests.forked import ForkedProcesses
from tests.tiny import save_parquet, save_student

# The machines that run this are shared: how long an example takes says nothing.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")

SHARED_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    torch.set_num_threads(1)
    hf_logging.disable_progress_bar()


@pytest.fixture(autouse=True, scope="session")
def _forked() -> Iterator[None]:
    """Simulations of this process fork their parties; see tests/forked.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "Processes", ForkedProcesses)
        yield


@pytest.fixture(autouse=True, scope="session")
def _as_wide_as_asked() -> Iterator[None]:
    """A worker of pytest-xdist has COLUMNS and LINES, which rich keeps from then on, whatever a test asks for."""
    with pytest.MonkeyPatch.context() as patch:
        for each, name in itertools.product((console, err_console), ("_width", "_height")):
            patch.setattr(each, name, None)
        yield


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up sst2 folder."""
    return save_parquet(tmp_path_factory.mktemp("data") / "sst2")


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """A tiny Quad + 2Quad student of the made-up task."""
    return save_student(tmp_path_factory.mktemp("models") / "student", data_dir)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real GLUE data, or a skip."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data is not on this machine ({SHARED_DATA.name} beside the checkout)")
    return SHARED_DATA
