"""A tiny student runs privately between real processes over gRPC, and the run's folder contains what it should."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from mpcformer.cli import build_app
from mpcformer.engines.base import load_public_model
from mpcformer.errors import MPCFormerError, RangeError, UserInputError
from mpcformer.files import sha256_file
from mpcformer.modeling.tokenizer import Limits
from mpcformer.tasks import get_task
from parties.roles.data_owner import made_up_scores, own_scores
from parties.runs import local_run, report, simulation
from parties.runs.simulation import LocalRunOptions
from parties.settings.config import DataOwnerConfig, ModelOwnerConfig
from parties.settings.job import JobDescription
from parties.settings.public_files import export_public
from parties.stubs import parties_pb2 as pb
from tests.engines.test_refused_sentences import with_a_long_word
from tests.tiny import GOOD, save_parquet, save_student


def job_for(student: Path, data: Path, /, **changes: object) -> LocalRunOptions:
    """Return the options of a small run; `changes` may name fields of the job as well."""
    asked = {field.name: changes.pop(field.name) for field in fields(JobDescription) if field.name in changes}
    job = JobDescription(**({"task": "sst2", "batch_size": 5} | asked))  # type: ignore[arg-type]
    options = LocalRunOptions(student, local_run.teacher_of(student), job, data)
    return replace(options, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(student: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    job = job_for(student, data_dir)
    local_run.check(job, out)
    local_run.run(job, out)
    return out


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_private_equals_plaintext(finished: Path) -> None:
    values = results(finished)
    assert values["examples"] == 12
    assert values["label_agreement"] == 1.0
    assert 0 < values["max_abs_logit_error"] < 0.005, "exactly zero would mean that nothing was computed on shares"
    table = pq.read_table(finished / "predictions.parquet").to_pydict()
    private, student = np.array(table["private_logits"]), np.array(table["student_logits"])
    assert np.abs(private - student).max() == pytest.approx(values["max_abs_logit_error"])
    assert sorted(table["id"]) == list(range(12))


def test_results_have_the_promised_shape(finished: Path, student: Path) -> None:
    values = results(finished)
    promised = """task split examples batch_size engine student metrics label_agreement max_abs_logit_error
        online offline setup peak_rss_bytes network versions seeds threat_model"""
    assert not set(promised.split()) - set(values)
    assert set(values["student"]) == {"sha256", "gelu", "softmax", "precision", "strides", "layers", "hidden"}
    assert values["student"]["sha256"] == sha256_file(student / "model.safetensors")
    assert set(values["metrics"]) == {"teacher", "student", "private"}
    assert values["metrics"]["teacher"] is not None
    online = values["online"]
    assert set(online) >= {"seconds", "seconds_per_example", "rounds_per_batch", "bytes"}
    assert set(online["seconds_per_example"]) == {"median", "p95"}
    assert set(online["bytes"]) == {"model-owner->data-owner", "data-owner->model-owner"}
    assert 30 < online["rounds_per_batch"] < 1000
    assert values["offline"]["bytes"]["dealer->model-owner"] > 0
    assert values["offline"]["seconds"] > 0
    assert all(size > 50e6 for size in values["peak_rss_bytes"].values())
    assert "semi-honest" in values["threat_model"]["parties"]


def test_bytes_and_rounds_on_the_wire_are_what_the_dry_run_says(finished: Path, student: Path) -> None:
    """What an engine counts without running is what the channels carry, apart from a little for the frames."""
    from mpcformer.engines.base import BatchShape
    from mpcformer.engines.registry import estimate_batch
    from mpcformer.modeling import load_tokenizer
    from mpcformer.tasks import EVAL, encode, get_task, length_batches, load_examples

    values = results(finished)
    data = Path(json.loads((finished / "manifest.json").read_text())["job"]["data_dir"])
    encoded = encode(load_tokenizer(student), load_examples(get_task("sst2"), EVAL, data_dir=data), limits=Limits(32))
    lengths = [len(row.input_ids) for row in encoded]
    costs = [
        estimate_batch("lift", load_public_model(student), BatchShape(len(batch), max(lengths[i] for i in batch)))
        for batch in length_batches(lengths, 5)
    ]
    online, offline = values["online"], values["offline"]
    assert online["rounds_per_batch"] == costs[0].rounds
    for measured, counted in [
        (online["bytes"]["model-owner->data-owner"], sum(c.bytes_to_data_owner for c in costs)),
        (online["bytes"]["data-owner->model-owner"], sum(c.bytes_to_model_owner for c in costs)),
        (offline["bytes"]["dealer->model-owner"], sum(c.dealer_bytes for c in costs)),
    ]:
        assert counted <= measured < 1.1 * counted + 20_000


def test_manifest_lists_every_file(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    present = {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(manifest["sha256"]) == present
    for name, digest in manifest["sha256"].items():
        assert sha256_file(finished / name) == digest
    assert {f"logs/{party}.log" for party in ("dealer", "model-owner", "data-owner")} <= present


def test_logs_hold_no_secret(finished: Path) -> None:
    text = "".join(path.read_text() for path in (finished / "logs").iterdir())
    assert "joined" in text
    assert "transcript" in text
    assert not re.search("|".join(GOOD), text), "a word of the data owner's text"
    # The transcript's public prefix is hexadecimal; one in 800 reads as a number of 15 digits or more.
    text = re.sub(r"transcript [0-9a-f]{16}$", "", text, flags=re.MULTILINE)
    assert not re.search(r"[0-9a-f]{32}|\d{15,}", text), "a key or a ring element"


def test_the_data_owner_is_given_no_weight(student: Path, tmp_path: Path) -> None:
    public = export_public(student, tmp_path / "public")
    names = {path.name for path in public.iterdir()}
    assert {"config.json", "ranges.json", "tokenizer.json"} <= names
    assert not {name for name in names if name.endswith((".safetensors", ".bin", ".pt"))}
    assert sum(path.stat().st_size for path in public.iterdir()) < (student / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("task", "softmax", "gelu", "engine", "shape"),
    [
        ("stsb", "2quad", "quad", "lift", {}),
        pytest.param("mrpc", "2relu", "relu", "crypten", {}, marks=pytest.mark.slow),
        ("mrpc", "2quad-const", "quad", "lift", {"constant_norms": ["all"], "head_size": 5}),
    ],
)
def test_regression_pairs_and_other_forms(
    tmp_path: Path, task: str, softmax: str, gelu: str, engine: str, shape: dict
) -> None:
    data = save_parquet(tmp_path / task, task=task)
    folder = save_student(tmp_path / "student", data, task=task, softmax=softmax, gelu=gelu, **shape)
    job = job_for(folder, data, task=task, limit=6, engine=engine)
    local_run.check(job, tmp_path / "run")
    values = local_run.run(job, tmp_path / "run")
    assert values["label_agreement"] == 1.0
    assert set(values["metrics"]["private"]) == ({"pearson", "spearman"} if task == "stsb" else {"accuracy", "f1"})


def test_public_embeddings_need_the_model_owners_consent(
    student: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_for(student, data_dir, limit=3, embeddings="public_table")
    local_run.check(job, tmp_path / "run")
    values = local_run.run(job, tmp_path / "run")
    assert values["label_agreement"] == 1.0
    assert "word, position and token-type embeddings" in values["threat_model"]["leaks"]

    def without_consent(**fields: object) -> ModelOwnerConfig:
        return ModelOwnerConfig(**(fields | {"public_embeddings": False}))  # type: ignore[arg-type]

    monkeypatch.setattr(simulation, "ModelOwnerConfig", without_consent)
    with pytest.raises(MPCFormerError, match="model-owner: the job asks for public_table"):
        local_run.run(job, tmp_path / "refused")


def test_the_command(student: Path, data_dir: Path, tmp_path: Path) -> None:
    options = ["--student", student, "--data-dir", data_dir, "--limit", 3, "--out", tmp_path / "run"]
    result = CliRunner().invoke(build_app(), ["infer", *map(str, options)])
    assert result.exit_code == 0, result.output
    assert results(tmp_path / "run")["examples"] == 3


BAD_INPUT = [
    ({"task": "sst3"}, {}, "'sst3' is unknown"),
    ({"task": "stsb"}, {}, "has 2 outputs, task stsb needs 1"),
    ({"embeddings": "none"}, {}, "--embeddings: 'none' is unknown"),
    ({"engine": "spdz"}, {}, "--engine: 'spdz' is unknown"),
    ({"limit": 0}, {}, "--limit: 0 is below 1"),
    ({"batch_size": 0}, {}, "--batch-size: 0 is below 1"),
    ({"threads": 0}, {}, "--threads: 0 is below 1"),
    ({"deadline_s": -1.0}, {}, "--deadline-s: -1.0 is not positive"),
    ({"split": "test"}, {}, "has no split 'test'"),
    ({"data_dir": Path("nowhere")}, {}, "nowhere is not a folder"),
    ({"student": Path("nowhere")}, {}, "nowhere is not a folder"),
    ({"teacher": Path("nowhere")}, {}, "nowhere is not a folder"),
    ({"max_length": 4}, {}, "--max-length: 4 is outside"),
    ({"port": 80}, {}, "--port: 80 is outside"),
    ({}, {"softmax": "2relu"}, "--softmax 2relu"),
]


@pytest.mark.parametrize(("changes", "asserted", "message"), BAD_INPUT, ids=[b[2] for b in BAD_INPUT])
def test_bad_input_starts_nothing_and_leaves_nothing(
    student: Path, data_dir: Path, tmp_path: Path, changes: dict, asserted: dict, message: str
) -> None:
    with pytest.raises(UserInputError, match=re.escape(message)):
        local_run.check(job_for(student, data_dir, **changes), tmp_path / "run", **asserted)
    assert not list(tmp_path.iterdir())


def test_texts_longer_than_the_positions(student: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    pq.write_table(pa.table({"sentence": ["the " * 50], "label": [0]}), tmp_path / "validation.parquet")
    with pytest.raises(UserInputError, match="has more tokens than the model has positions, 32"):
        local_run.check(job_for(student, tmp_path), tmp_path / "run")
    local_run.check(job_for(student, tmp_path, max_length=16), tmp_path / "run")


def test_a_port_in_use_and_a_full_folder(student: Path, data_dir: Path, tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserInputError, match=f"--port: {port} is in use"):
            local_run.check(job_for(student, data_dir, port=port), tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").touch()
    with pytest.raises(UserInputError, match="is not empty"):
        local_run.check(job_for(student, data_dir), tmp_path / "run")


@pytest.fixture
def picky(tmp_path: Path, data_dir: Path) -> tuple[Path, Path]:
    """A student that refuses texts with unknown words, and data in which two of the texts have one."""
    folder = with_a_long_word(save_student(tmp_path / "picky", data_dir))
    texts = ["the day was fine", "a day of zinc", "a cold and grim stone", "zinc", "warm", "it was very dull"]
    data = tmp_path / "data" / "sst2"
    data.mkdir(parents=True)
    table = pa.table({"sentence": texts, "label": [1, 0, 0, 0, 1, 0]})
    pq.write_table(table, data / "validation-00000-of-00001.parquet")
    return folder, data


def test_refused_examples_are_listed_and_the_others_answered(picky: tuple[Path, Path], tmp_path: Path) -> None:
    values = local_run.run(job_for(*picky, batch_size=4), tmp_path / "run")
    assert values["refused"] == {"examples": 2, "ids": [1, 3]}
    assert values["label_agreement"] == 1.0
    assert values["max_abs_logit_error"] < 0.003
    assert "refused: 2 of 6 examples, ids 1, 3" in "".join(report.refused_text(values))
    rows = pq.read_table(tmp_path / "run" / "predictions.parquet").to_pylist()
    assert [row["refused"] for row in rows] == [False, True, False, True, False, False]
    assert [row["private_prediction"] is None for row in rows] == [row["refused"] for row in rows]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "2 of 6 examples, in which an activation left the range" in page


def test_where_all_are_refused_there_is_no_score(picky: tuple[Path, Path], tmp_path: Path) -> None:
    folder, data = picky
    path = data / "validation-00000-of-00001.parquet"
    pq.write_table(pa.table({"sentence": ["zinc", "a day of zinc"], "label": [1, 0]}), path)
    values = local_run.run(job_for(folder, data), tmp_path / "run")
    assert values["refused"]["examples"] == 2
    assert values["metrics"]["private"] == {}
    assert values["label_agreement"] is None


def test_a_job_may_say_to_stop_at_a_refusal(picky: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(MPCFormerError, match="data-owner: an activation left its range, and the job says") as caught:
        local_run.run(job_for(*picky, on_refusal="stop"), tmp_path / "run")
    assert caught.value.exit_code == RangeError.exit_code
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "run.failed" / "results.json").exists()
    log = (tmp_path / "run.failed" / "logs" / "data-owner.log").read_text()
    assert "example 1: an activation left the range" in log


def test_a_data_owner_may_withhold_its_answers(
    picky: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = simulation.Site.data_owner

    def withholding(site: simulation.Site, coordinator: str) -> DataOwnerConfig:
        return original(site, coordinator).model_copy(update={"tell": "scores", "out": tmp_path / "own"})

    monkeypatch.setattr(simulation.Site, "data_owner", withholding)
    options = job_for(*picky)
    (tmp_path / "logs").mkdir()
    found = simulation.simulate(options, tmp_path / "logs")
    assert found.scores is not None
    assert (found.scores.examples, found.scores.refused) == (6, 2)
    assert not found.predictions.logits
    (path,) = (tmp_path / "own").iterdir()
    rows = pq.read_table(path).to_pylist()
    assert [row["refused"] for row in rows] == [False, True, False, True, False, False]
    right = [
        row["answer"] == ("negative", "positive")[label] for row, label in zip(rows, [1, 0, 0, 0, 1, 0], strict=True)
    ]
    assert found.scores.metrics["accuracy"] == sum(right) / 4
    journal = (tmp_path / "logs" / "journal.jsonl").read_text()
    assert "logits" not in journal
    assert "labels" not in journal
    values = report.measured(options.job, found, None)
    assert values["answers_withheld"]
    assert values["metrics"]["private"] == {"accuracy": found.scores.metrics["accuracy"]}
    values |= {"network": {"profile": "x", "transport": "t"}}
    report.write(tmp_path, {}, values, found, {})
    assert not (tmp_path / "predictions.parquet").exists()
    assert "2 of 6 examples" in "".join(report.refused_text(values))


@pytest.mark.parametrize("task", ["sst2", "mrpc", "stsb", "cola"])
def test_scores_are_computed_whoever_was_refused(task: str) -> None:
    """The time of the scores is in the session's end, which the model owner and the dealer see."""
    chosen = get_task(task)
    made_up = made_up_scores(chosen)
    assert set(made_up) == set(chosen.metrics)
    for refused in ([True, True], [False, False]):
        logits = np.zeros((2, chosen.num_labels), dtype=np.float32)
        found = pb.Predictions(
            ids=[0, 1],
            rows=[0, 1],
            n_outputs=chosen.num_labels,
            logits=logits.reshape(-1).tolist(),
            refused=refused,
            labels=[0, 1],
            groups=["", ""],
        )
        scores = own_scores(chosen, found)
        assert scores.refused == sum(refused)
        assert bool(scores.metrics) is not refused[0]
