"""Fixtures for all tests. Torch uses one thread, because a test may start many parties on a machine with two cores."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from transformers.utils import logging as hf_logging

from mpcformer.console import console, err_console
from parties.ask import command
from parties.program_process import process
from parties.runs import local_services, simulation
from tests.forked import ForkedPart, ForkedProcesses
from tests.tiny import save_parquet, save_student

# Tests run on shared machines, where the time that an example takes has no meaning.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")

SHARED_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    torch.set_num_threads(1)
    hf_logging.disable_progress_bar()


@pytest.fixture(autouse=True, scope="session")
def _forked() -> Iterator[None]:
    """Simulations in this process fork their parties; see tests/forked.py."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (simulation, local_services):
            patch.setattr(module, "Processes", ForkedProcesses)
        patch.setattr(process, "Popen", ForkedPart)
        yield


@pytest.fixture(autouse=True, scope="session")
def _memory_goes_back() -> Iterator[None]:
    """Commands run in this process here, and it lives longer than theirs: it gives freed memory back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "keep_freed_memory", lambda: True)
        yield


@pytest.fixture(autouse=True, scope="session")
def _as_wide_as_asked() -> Iterator[None]:
    """Let tests choose the terminal's size: pytest-xdist sets COLUMNS and LINES, and rich would keep these values."""
    with pytest.MonkeyPatch.context() as patch:
        for each, name in itertools.product((console, err_console), ("_width", "_height")):
            patch.setattr(each, name, None)
        yield


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a made-up sst2 data set."""
    return save_parquet(tmp_path_factory.mktemp("data") / "sst2")


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """A tiny student with Quad and 2Quad for the made-up data set."""
    return save_student(tmp_path_factory.mktemp("models") / "student", data_dir)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real GLUE data; tests are skipped if it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data is not on this machine ({SHARED_DATA.name} beside the checkout)")
    return SHARED_DATA
