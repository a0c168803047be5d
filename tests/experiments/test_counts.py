"""Test experiments of kind `counts`: their rows equal the output of `mpcformer estimate` and their record."""

from pathlib import Path
from typing import Any

import pytest

from experiments import estimate
from experiments.replay import ReplayOptions, run
from experiments.spec.spec import find
from mpcformer.engines.registry import ENGINES
from mpcformer.errors import UserInputError

RECORD = find("counts").parent / "results" / "counts-smoke.json"


def test_rows_are_what_estimate_says(tmp_path: Path) -> None:
    values = run(ReplayOptions("counts", scale="smoke", out=tmp_path / "out", models=tmp_path, check=RECORD))
    rows = {(row["key"]["model"], row["key"]["engine"]): row["values"] for row in values["rows"]}
    assert len(rows) == 4
    costs = estimate.run("minilm", None, 16, 1, ENGINES, None, softmax="2quad-const", constant_norms="all")
    for engine, cost in costs.items():
        assert rows["MiniLM, quad + 2quad-const, all norms constant", engine] == {
            "rounds": cost.rounds,
            "batch_online_bytes": cost.online_bytes,
            "batch_dealer_bytes": cost.dealer_bytes,
            "setup_bytes": cost.setup_bytes,
        }


@pytest.mark.parametrize(
    ("norms", "changes", "message"),
    [('["all"]', {"data_dir": Path("x")}, "--data-dir: x"), ('["layer.0.middle"]', {}, r"layer\.0\.middle")],
)
def test_refused_before_anything_is_counted(norms: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "counts.toml"
    path.write_text(find("counts").read_text().replace('["all"]', norms))
    with pytest.raises(UserInputError, match=message):
        run(ReplayOptions(str(path), scale="smoke", out=tmp_path / "out", models=tmp_path, **changes))
    assert not (tmp_path / "out").exists()
