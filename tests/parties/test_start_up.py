"""What a process loads before it works: seconds of every run, of every party and of every refused command."""

import subprocess
import sys
from pathlib import Path

import pytest

import distill

SCORES = {"sklearn", "scipy.stats", "pandas"}
MODELS = {"mpcformer.modeling.model", "transformers.modeling_utils", "datasets"}


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        ("parties.roles.dealer", {*SCORES, *MODELS, "transformers", "crypten"}),
        ("parties.roles.data_owner", {*SCORES, *MODELS}),
        ("parties.runs.local_run", {*SCORES, *MODELS}),
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


def test_the_lines_of_a_model_card_load_the_student_in_a_new_process(student: Path) -> None:
    card = (Path(distill.__file__).parent / "templates" / "model_card.md.j2").read_text().splitlines()
    (last,) = (i for i, line in enumerate(card) if "AutoModelForSequenceClassification.from_pretrained" in line)
    lines = [line.strip().replace('"FOLDER"', repr(str(student))) for line in card[last - 2 : last + 1]]
    code = "\n".join([*lines, "print(type(model).__name__)"])
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "MPCFormerForSequenceClassification"
