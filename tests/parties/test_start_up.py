"""A process loads only what it needs: imports cost seconds in every run, every party and every refused command."""

import subprocess
import sys
from pathlib import Path

import pytest

import distill

ROOT = Path(distill.__file__).parents[1]
SCORES = {"sklearn", "scipy.stats", "pandas"}
MODELS = {"mpcformer.modeling.model", "transformers.modeling_utils", "datasets"}


def modules_after(*arguments: str) -> set[str]:
    """Return the modules that a new Python process has loaded at its end; its last line lists them."""
    done = subprocess.run(
        [sys.executable, *arguments], check=True, capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        ("parties.roles.dealer", {*SCORES, *MODELS, "transformers", "crypten"}),
        ("parties.roles.data_owner", {*SCORES, *MODELS, "crypten"}),
        ("parties.roles.model_owner", {*SCORES, *MODELS, "crypten"}),
        ("parties.runs.local_run", {*SCORES, *MODELS}),
    ],
)
def test_nothing_is_loaded_that_is_not_needed(module: str, unneeded: set[str]) -> None:
    loaded = modules_after("-c", f"import sys, {module}; print(*sys.modules)")
    assert module in loaded
    assert not unneeded & loaded


def test_the_default_engine_never_loads_the_reference_engine(student: Path, data_dir: Path, tmp_path: Path) -> None:
    """All parties run a whole job in one process, so this covers every line that either owner executes."""
    loaded = modules_after("-m", "tests.parties.one_process", str(student), str(data_dir), str(tmp_path))
    assert {"parties.roles.model_owner", "parties.roles.data_owner", "parties.roles.dealer"} <= loaded
    assert "crypten" not in loaded


def test_help_and_refused_commands_load_neither_torch_nor_transformers() -> None:
    """One process runs them all; it fails at the first one that loads what it does not need."""
    code = """
import sys
from mpcformer.cli import main
for line in sys.argv[1:]:
    sys.argv = ["mpcformer", *line.split()]
    try:
        main()
    except SystemExit as end:
        assert line.endswith("--help") == (not end.code), (line, end.code)
    assert not {"torch", "transformers", "pyarrow", "crypten"} & set(sys.modules), line
"""
    names = (
        "demo",
        "teacher",
        "distill-general",
        "distill",
        "infer",
        "export",
        "party",
        "coordinate",
        "bench",
        "doctor",
    )
    lines = ["--help", *(f"{name} --help" for name in (*names, "estimate", "replay", "certs init", "certs renew"))]
    lines += [
        "infer",
        "infer --student nowhere",
        "infer --gelu cubic",
        "infer --task sst-2",
        "infer --engine spdz",
        "infer --device tpu",
        "infer --network fast",
        "distill --softmax 3quad",
        "distill --from nothing",
        "distill --precision fp8",
        "bench --model bart",
        "replay glue --scale huge",
        "party --config nowhere.toml",
        "export --student nowhere --out public",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *lines], check=False, capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


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
