"""Whatever a file holds that a party reads, the party answers or names what is wrong, soon and in little room.

The quick profile is in the default suite. The whole count: pytest -m slow tests/faults/test_fuzzed_files.py
"""

import csv
import io
import json
import resource
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mpcformer.engines.base import BatchShape, load_public_model
from mpcformer.engines.registry import create_engine
from mpcformer.errors import MPCFormerError
from mpcformer.modeling import load_student, load_tokenizer
from mpcformer.modeling.tokenizer import Limits, TextTokenizer
from mpcformer.tasks import OwnData
from mpcformer.tasks.own import best_names, load_own, own_task
from parties.ask.answers import AnswerFile
from parties.roles import data_owner
from parties.roles.journal import Journal
from parties.roles.model_owner import ModelOwner
from parties.session.budget import Account, Budget
from parties.settings.config_file import load_any, to_toml
from parties.settings.job import JobDescription
from parties.settings.public_files import export_public
from parties.stubs import parties_pb2 as pb
from parties.wire import identity
from parties.wire.tls import make_certificates
from tests import fuzz
from tests.faults.cast import PARTIES, Cast
from tests.modeling.test_shapes import data_owner as data_owner_config
from tests.modeling.test_shapes import model_owner

LIMIT_S, LIMIT_BYTES = 5.0, 500 << 20
FEW, ALL, LONGEST = 8, 90, 4000
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@dataclass(frozen=True)
class Target:
    """A file that a party reads.

    Args:
        path: the file; it is changed.
        kind: json, lines, tensors, or anything else for bytes.
        read: reads it, as a party does.
    """

    path: Path
    kind: str
    read: Callable[[], object]


def plan(folder: Path) -> None:
    """Read public files and plan a batch, as a data owner does before it has a session."""
    public = load_public_model(folder)
    create_engine("lift", rank=1, public=public, channel=None, weights=None).plan(BatchShape(1, 4))


def tokenise(folder: Path) -> None:
    limits = Limits.of(load_public_model(folder).config)
    TextTokenizer(folder, 8, limits).ids("the day was fine", "very")
    load_tokenizer(folder)(["the day was fine"], return_token_type_ids=True)


def own(path: Path) -> None:
    data = OwnData(path)
    load_own(data, own_task(best_names(data, ("negative", "positive"))), labelled=False)


def targets(folder: Path, student: Path, data_dir: Path) -> dict[str, Target]:
    """Return every file that a party reads, each in a folder of its own."""
    found: dict[str, Target] = {}

    def copy(name: str, source: Path) -> Path:
        return Path(shutil.copytree(source, folder / name))

    public = export_public(student, folder / "public")
    for name, kind in STUDENT_FILES.items():
        place = copy(f"model owner {name}", student)
        found[f"model owner's {name}"] = Target(place / name, kind, lambda place=place: ModelOwner(model_owner(place)))
        place = copy(f"export {name}", student)
        found[f"student's {name}"] = Target(place / name, kind, lambda place=place: load_student(place))
    for name in ("config.json", "ranges.json", "student.json"):
        place = copy(f"data owner {name}", public)
        found[f"data owner's {name}"] = Target(
            place / name, "json", lambda place=place: (data_owner.check(data_owner_config(place)), plan(place))
        )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        place = copy(f"tokenizer {name}", public)
        found[name] = Target(place / name, "json", lambda place=place: tokenise(place))
    files = make_certificates(folder / "tls", list(PARTIES))
    cast = Cast(folder, student=student, public=public, data_dir=data_dir, tls=files, job=JobDescription("sst2"))
    for name in PARTIES:
        path = folder / f"{name}.toml"
        path.write_text(to_toml(cast.configs[name]))
        found[path.name] = Target(path, "bytes", lambda path=path: load_any(path))
    cast.end()
    for name in ("certificate", "key", "authority"):
        path = getattr(files["dealer"], name)
        found[f"dealer's {name}"] = Target(path, "bytes", lambda: identity.check_own(files["dealer"], "dealer"))
    (folder / "run").mkdir()
    journal = Journal(folder / "run" / "journal.jsonl", {"task": "sst2"})
    for number in range(3):
        batch = pb.Batch(batch=number, report=pb.BatchReport(batch_size=1), predictions=pb.Predictions(rows=[number]))
        journal.add(batch, batch)
    journal.close()
    path = folder / "run" / "journal.jsonl"
    found["journal"] = Target(path, "lines", lambda path=path: Journal(path, {"task": "sst2"}, resume=True).close())
    out = folder / "answers.jsonl"
    answers = AnswerFile(out, ["text"], {"model": "m"})
    answers.add(["a"], {"label": "x", "score": 1.0})
    answers.add(["b"], {"label": "x", "score": 1.0})
    answers.close()

    def resumed() -> None:
        AnswerFile(out, ["text"], {"model": "m"}, resume=True).close()

    found["answers"] = Target(answers.partial, "lines", resumed)
    budget = folder / "budget.json"
    account = Account("data-owner", (10, None), weights="ab", student="films")
    Budget(budget).charge(account, 3)
    found["budget"] = Target(budget, "json", lambda: Budget(budget).charge(account, 1))
    rows = pq.read_table(next(data_dir.glob("validation*"))).to_pylist()
    (folder / "texts.parquet").write_bytes(next(data_dir.glob("validation*")).read_bytes())
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "texts.json").write_text(json.dumps(rows))
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    (folder / "texts.csv").write_text(table.getvalue())
    for name, kind in (("parquet", "bytes"), ("jsonl", "lines"), ("json", "json"), ("csv", "bytes")):
        path = folder / f"texts.{name}"
        found[path.name] = Target(path, kind, lambda path=path: own(path))
    return found


STUDENT_FILES = {"config.json": "json", "ranges.json": "json", "model.safetensors": "tensors"}
NAMES = [
    *(f"model owner's {name}" for name in STUDENT_FILES),
    *(f"student's {name}" for name in STUDENT_FILES),
    *(f"data owner's {name}" for name in ("config.json", "ranges.json", "student.json")),
    *("tokenizer.json", "tokenizer_config.json", *(f"{name}.toml" for name in PARTIES)),
    *(f"dealer's {name}" for name in ("certificate", "key", "authority")),
    *("journal", "answers", "budget", *(f"texts.{name}" for name in ("parquet", "jsonl", "json", "csv"))),
]


@pytest.fixture(scope="module")
def all_targets(tmp_path_factory: pytest.TempPathFactory, student: Path, data_dir: Path) -> dict[str, Target]:
    return targets(tmp_path_factory.mktemp("fuzz"), student, data_dir)


def rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.timeout(900)
@pytest.mark.parametrize("times", [FEW, pytest.param(ALL, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_a_mutated_file_is_read_or_refused(all_targets: dict[str, Target], name: str, times: int) -> None:
    target = all_targets[name]
    good, mode = target.path.read_bytes(), target.path.stat().st_mode
    target.read()

    @settings(max_examples=times, derandomize=True, database=None, suppress_health_check=QUIET, phases=[Phase.generate])
    @given(st.data())
    def check(data: st.DataObject) -> None:
        content = data.draw(fuzz.any_of(target.kind, good))
        target.path.write_bytes(content)
        before, started = rss(), time.monotonic()
        said = "an answer"
        try:
            target.read()
        except MPCFormerError as error:
            said = str(error)
        assert 0 < len(said) < LONGEST, "it quotes the whole file"
        assert time.monotonic() - started < LIMIT_S
        assert rss() - before < LIMIT_BYTES

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check()
    finally:
        target.path.write_bytes(good)
        target.path.chmod(mode)
