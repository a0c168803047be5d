"""What a process loads before it works: seconds of every run, of every party and of every refused command."""

import subprocess
import sys

import pytest

SCORES = {"sklearn", "scipy.stats", "pandas"}
MODELS = {"mpcformer.modeling.model", "transformers.modeling_utils", "datasets"}


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        ("parties.dealer", {*SCORES, *MODELS, "transformers", "crypten"}),
        ("parties.data_owner", {*SCORES, *MODELS}),
        ("parties.evaluate", {*SCORES, *MODELS}),
    ],
)
def test_nothing_is_loaded_that_is_not_needed(module: str, unneeded: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert module in loaded.stdout.split()
    assert not unneeded & set(loaded.stdout.split())


def test_a_models_classes_are_there_when_somebody_asks() -> None:
    code = "import mpcformer.modeling as m; print(m.MPCFormerForSequenceClassification.__name__); m.Nothing"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "MPCFormerForSequenceClassification"
    assert "module 'mpcformer.modeling' has no attribute 'Nothing'" in done.stderr
