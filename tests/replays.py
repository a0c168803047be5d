"""Replays of glue at scale smoke in one folder, which share their models."""

from pathlib import Path
from typing import Any

import pytest

from experiments import models
from experiments.replay import ReplayOptions
from parties import evaluate


def glue(shop: Path, name: str = "glue", **changes: Any) -> ReplayOptions:
    return ReplayOptions("glue", scale="smoke", out=shop / name, models=shop / "models", **changes)


class Counted:
    """Trainings and private runs, counted."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.trained: list[Path] = []
        self.private: list[Path] = []
        teacher, student, private = models.train_teacher, models.distill_student, evaluate.run
        patch.setattr(models, "train_teacher", lambda r, out, **k: (self.trained.append(out), teacher(r, out, **k))[1])
        patch.setattr(
            models, "distill_student", lambda r, out, **k: (self.trained.append(out), student(r, out, **k))[1]
        )
        patch.setattr(evaluate, "run", lambda j, out, **k: (self.private.append(out), private(j, out, **k))[1])
