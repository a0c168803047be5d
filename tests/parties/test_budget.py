"""Tests of the budget of sentences: counted across restarts, processes and kills."""

import datetime
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from mpcformer.errors import UserInputError
from parties.session.budget import Budget

NOON = datetime.datetime(2026, 11, 28, 12, 0, tzinfo=datetime.UTC)


def test_so_many_a_day_for_each_data_owner(tmp_path: Path) -> None:
    now = [NOON]
    budget = Budget(tmp_path / "budget.json", 10, lambda: now[0])
    assert budget.charge("a", 6) == 0
    assert budget.charge("a", 5) == 12 * 3600  # four are left, so five are not granted
    assert budget.charge("a", 4) == 0
    assert budget.charge("a", 1) == 12 * 3600
    assert budget.charge("b", 10) == 0
    assert Budget(tmp_path / "budget.json", 10, lambda: now[0]).charge("a", 1) == 12 * 3600  # after a restart
    now[0] = NOON + datetime.timedelta(hours=11, minutes=59, seconds=59)
    assert budget.charge("a", 1) == 1
    now[0] = NOON + datetime.timedelta(hours=12)
    assert budget.charge("a", 10) == 0
    now[0] = NOON  # a clock that was set back opens no new budget
    assert budget.charge("a", 1) > 0


def test_without_a_budget_nothing_is_counted(tmp_path: Path) -> None:
    assert Budget(None, None).charge("a", 1 << 40) == 0
    assert Budget(tmp_path / "budget.json", None).charge("a", 1) == 0
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "[]", '{"date": 5}', '{"date": "2026-11-28", "sentences": {"a": "x"}}'])
def test_a_damaged_file_is_not_a_new_budget(tmp_path: Path, content: str) -> None:
    path = tmp_path / "budget.json"
    path.write_text(content)
    with pytest.raises(UserInputError, match=r"budget_file: .*budget\.json is not a file of counts"):
        Budget(path, 5)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserInputError, match=r"budget_file: .*file"):
        Budget(tmp_path / "file" / "budget.json", 5)


def _ask_for_ever(path: Path, granted: Path) -> None:
    budget = Budget(path, 1000)
    with granted.open("a") as log:
        while True:
            if budget.charge("a", 1) == 0:
                log.write("x")
                log.flush()


def test_two_processes_that_are_killed_never_grant_more(tmp_path: Path) -> None:
    path, context = tmp_path / "budget.json", multiprocessing.get_context("fork")
    logs = [tmp_path / "first", tmp_path / "second"]
    for _ in range(3):
        processes = [context.Process(target=_ask_for_ever, args=(path, log), daemon=True) for log in logs]
        for process in processes:
            process.start()
        time.sleep(0.4)
        for process in processes:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
    granted = sum(len(log.read_text()) for log in logs)
    counted = sum(json.loads(path.read_text())["sentences"].values())
    assert 0 < granted <= counted <= 1000
