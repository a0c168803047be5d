"""Replays of glue at scale smoke that share one folder of models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.kinds import models
from experiments.replay import ReplayOptions
from parties.runs import local_run


def glue(shop: Path, name: str = "glue", **changes: Any) -> ReplayOptions:
    return ReplayOptions("glue", scale="smoke", out=shop / name, models=shop / "models", **changes)


class Counted:
    """A counter of the trainings and the private runs that a replay starts."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.trained: list[Path] = []
        self.private: list[Path] = []
        for name in ("train_teacher", "distill_general", "distill_student"):
            patch.setattr(models, name, self._counting(getattr(models, name), self.trained))
        patch.setattr(local_run, "run", self._counting(local_run.run, self.private))

    @staticmethod
    def _counting(work: Callable[..., Any], into: list[Path]) -> Callable[..., Any]:
        def counted(asked: Any, out: Path, **how: Any) -> Any:
            into.append(out)
            return work(asked, out, **how)

        return counted
