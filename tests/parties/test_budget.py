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
from parties.session.budget import NEVER, Budget
from parties.session.data_side import BudgetError
from parties.settings import metrics

NOON = datetime.datetime(2026, 11, 28, 12, 0, tzinfo=datetime.UTC)


def test_so_many_a_day_for_each_data_owner(tmp_path: Path) -> None:
    now = [NOON]
    budget = Budget(tmp_path / "budget.json", 10, None, lambda: now[0])
    assert budget.charge("a", 6) == 0
    assert budget.charge("a", 5) == 12 * 3600  # four are left, so five are not granted
    assert budget.charge("a", 4) == 0
    assert budget.charge("a", 1) == 12 * 3600
    assert budget.charge("b", 10) == 0
    assert Budget(tmp_path / "budget.json", 10, None, lambda: now[0]).charge("a", 1) == 12 * 3600  # after a restart
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


def test_so_many_in_all_whatever_the_day(tmp_path: Path) -> None:
    now = [NOON]
    budget = Budget(tmp_path / "budget.json", 10, 25, lambda: now[0])
    for day in range(3):
        now[0] = NOON + datetime.timedelta(days=day)
        assert budget.charge("a", 10 if day < 2 else 5) == 0
    assert budget.charge("a", 1) == NEVER
    assert budget.charge("b", 10) == 0
    assert budget.charge("b", 1) == 12 * 3600, "another data owner has a budget of its own"
    now[0] = NOON + datetime.timedelta(days=1000)
    assert Budget(tmp_path / "budget.json", 10, 25, lambda: now[0]).charge("a", 1) == NEVER
    assert budget.charge("b", 11) == NEVER, "no day allows so many at once"
    assert Budget(tmp_path / "budget.json", None, 26, lambda: now[0]).charge("a", 1) == 0


def test_a_file_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    path = tmp_path / "budget.json"
    path.write_text('{"date": "2026-11-28", "sentences": {"a": 7}}')
    budget = Budget(path, 10, 12, lambda: NOON)
    assert budget.charge("a", 3) == 0
    assert budget.charge("a", 1) == 12 * 3600
    assert json.loads(path.read_text())["in_all"] == {"a": 10}


def test_the_error_says_when_there_is_more() -> None:
    today, never = BudgetError("m", 3 * 3600 + 61), BudgetError("m", NEVER)
    assert "ask again in 3 h 2 min" in today.remedy
    assert (today.seconds, never.seconds) == (3 * 3600 + 61, None)
    assert "no day brings a larger one" in never.what
    assert "max_sentences" in never.remedy


def test_what_is_left_is_a_metric(tmp_path: Path) -> None:
    def value(name: str, **labels: str) -> float:
        return metrics.REGISTRY.get_sample_value(name, {"data_owner": "measured"} | labels) or 0.0

    budget = Budget(tmp_path / "budget.json", 10, 100)
    assert budget.charge("measured", 7) == 0
    assert budget.charge("measured", 4) > 0
    assert value("mpcformer_budget_spent_total") == 7
    assert value("mpcformer_budget_refused_total") == 4
    assert value("mpcformer_budget_left", period="day") == 3
    assert value("mpcformer_budget_left", period="all") == 93


def _ask(path: Path, granted: Path, n: int) -> None:
    budget = Budget(path, 1000, 1000)
    with granted.open("a") as log:
        for _ in range(n):
            if budget.charge("a", 1) == 0:
                log.write("x")
                log.flush()


@pytest.mark.slow
def test_of_100000_questions_over_restarts_and_kills_1000_are_answered(tmp_path: Path) -> None:
    path, log, context = tmp_path / "budget.json", tmp_path / "log", multiprocessing.get_context("fork")
    for killed in range(20):
        process = context.Process(target=_ask, args=(path, log, 5000), daemon=True)
        process.start()
        if killed % 4 == 0:
            time.sleep(0.1)
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    _ask(path, log, 25_000)  # in place of those that were killed
    counts = json.loads(path.read_text())
    assert counts["sentences"] == counts["in_all"] == {"a": 1000}
    # A kill between the count and the answer loses the data owner one question.
    assert 995 <= len(log.read_text()) <= 1000


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
