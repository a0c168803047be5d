"""What somebody learns who asks again and again: nothing the model owner, and the data owner no more than its budget.

In the first attack both owners see by which places within bins a text is refused or answered. The one argument whose
places explain all verdicts is the one that left its range. In the second attack a data owner averages the coins of
rounding away over very many questions, and no file that says nothing of budgets stops it.
"""

import datetime
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mpcformer.channel import memory_pair
from mpcformer.engines.base import BatchInputs, PublicModel, load_public_model
from mpcformer.modeling import Ranges, load_student
from parties.session.budget import NEVER, Account, Budget
from parties.settings.config import ModelOwnerConfig, TlsFiles
from tests.attacks.test_verdict_oracle import View
from tests.pair import run_outcomes
from tests.tiny import save_student

TEXT = torch.tensor([[2, 7, 14, 9, 3]])
N_ASKED = 24
# Of the questions that a measured attack needs, the default budget allows at most a hundredth.
MEASURED, SMALL_MODELS = 4_000_000, 100


def at_the_edge(folder: Path) -> PublicModel:
    """Return public ranges in which the longest row of TEXT is refused about every second time."""
    public, student = load_public_model(folder), load_student(folder)
    seen = Ranges()
    student.observer = seen.observe
    with torch.no_grad():
        student(TEXT, torch.ones_like(TEXT))
    bounds = dict(public.ranges.bounds)
    for name, (low, high) in seen.bounds.items():
        if name in bounds:
            bounds[name] = min(low, bounds[name][0]), max(high, bounds[name][1])
    # The guard never marks up to 1.5 times the calibrated variance, and always from 3 times on.
    bounds["layer.0.output.variance"] = (
        bounds["layer.0.output.variance"][0],
        seen.bounds["layer.0.output.variance"][1] / 2.1,
    )
    return PublicModel(public.config, replace(public.ranges, bounds=bounds))


def test_the_model_owner_cannot_match_places_with_verdicts(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_student(tmp_path / "student", data_dir, softmax="2quad-const", constant_norms=["all"])
    public = at_the_edge(folder)
    verdicts, shapes = [], []
    for _ in range(N_ASKED):
        ends = memory_pair(20)
        inputs = BatchInputs(torch.ones_like(TEXT), TEXT, torch.zeros_like(TEXT))
        with monkeypatch.context() as patch:
            view = View(patch, ends[0])
            told, learnt, *_ = run_outcomes(folder, inputs, engine="lift", public=public, ends=ends)
        verdicts.append(bool(learnt.known()[0].any()))
        shapes.append(view.shapes())
        assert (told.refused, told.logits) == (None, None), "there is no verdict that its places could explain"
    assert 0 < sum(verdicts) < N_ASKED, "with equal odds, the data owner misses one of both once in 2^23 times"
    assert all(shape == shapes[0] for shape in shapes)


def test_a_model_owner_has_a_budget_whose_file_says_nothing_of_it(tmp_path: Path) -> None:
    tls = TlsFiles(authority=Path("a"), certificate=Path("c"), key=Path("k"))
    said: dict[str, Any] = {"coordinators": ["c"], "data_owners": ["o"], "dealers": ["d"], "student": Path("s")}
    config = ModelOwnerConfig(role="model-owner", id="m", tls=tls, **said)
    now = [datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)]
    per_day, in_all = config.limits
    assert per_day is not None
    assert in_all is not None
    assert in_all <= MEASURED // SMALL_MODELS
    budget = Budget(tmp_path / "budget.json", lambda: now[0])
    (entry,) = config.shelf()
    account = Account("o", entry.limits, weights="ab", student=entry.name)
    answered = 0
    for _ in range(2 * in_all // per_day):
        while budget.charge(account, 100) == 0:
            answered += 100
        now[0] += datetime.timedelta(days=1)
    assert answered == in_all
    assert budget.charge(account, 1) == NEVER
