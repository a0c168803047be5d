"""Each command that is given the wrong kind of model says which it found, and how to get the right one."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mpcformer.cli import build_app
from mpcformer.errors import UserInputError
from parties.roles.start_party import run_party
from tests.tiny import save_bert

PLAIN = "{bert} holds a plain bert model, not a distilled student"
STUDENT = "{student} holds a distilled student, not a teacher"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("plain") / "bert")


@pytest.mark.parametrize(
    ("line", "message", "remedy"),
    [
        ("infer --student {bert} --out {out}", PLAIN, "mpcformer distill --teacher {bert}"),
        ("infer --student {bert} --task sst2 --out {out}", PLAIN, "mpcformer distill --teacher {bert}"),
        ("export --student {bert} --out {out}", PLAIN, "mpcformer distill --teacher {bert}"),
        ("bench --model {bert}", PLAIN, "mpcformer distill --teacher {bert}"),
        ("estimate --model {bert} --seq-len 8", PLAIN, "mpcformer distill --teacher {bert}"),
        ("infer --student {student} --teacher {student} --out {out}", f"--teacher: {STUDENT}", "mpcformer teacher"),
        ("distill --teacher {student} --task sst2 --out {out}", f"--teacher: {STUDENT}", "mpcformer teacher"),
        ("teacher --model {student} --task sst2 --out {out}", f"--model: {STUDENT}", "mpcformer teacher"),
        ("distill-general --model {student} --task sst2 --out {out}", f"--model: {STUDENT}", "mpcformer teacher"),
        ("infer --student {empty} --out {out}", "{empty} is not a checkpoint: config.json", "save_pretrained"),
        ("infer --student {empty} --task sst2 --out {out}", "{empty} is not a checkpoint: config.json", "save_pre"),
        ("infer --student {out} --out {out}", "--student: {out} does not exist", "check the path"),
        ("infer --student {out} --task sst2 --out {out}", "--student: {out} does not exist", "check the path"),
        ("export --student {out} --out {out}", "--student: {out} does not exist", "check the path"),
        ("distill --teacher {file} --task sst2 --out {out}", "--teacher: {file} is not a folder", "check the path"),
        ("bench --model {empty}", "{empty} is not a checkpoint: config.json", "save_pretrained"),
        ("estimate --model {empty}", "{empty} is not a checkpoint: config.json", "save_pretrained"),
        ("bench --model {out}", "--model: '{out}' is unknown", "bert-base"),
    ],
)
def test_the_wrong_kind_of_model(
    line: str, message: str, remedy: str, bert: Path, student: Path, tmp_path: Path
) -> None:
    empty, out = tmp_path / "empty", tmp_path / "out"
    empty.mkdir()
    (tmp_path / "file").touch()
    places = {"file": tmp_path / "file", "bert": bert, "student": student, "empty": empty, "out": out}
    with pytest.raises(UserInputError) as caught:
        CliRunner().invoke(build_app(), [word.format(**places) for word in line.split()], catch_exceptions=False)
    assert message.format(**places) in caught.value.what
    assert remedy.format(**places) in caught.value.remedy
    assert not out.exists()


def test_a_model_owner_with_a_plain_bert(bert: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "model-owner.toml"
    config.write_text(f"""
        role = "model-owner"
        id = "m"
        student = "{bert}"
        coordinators = ["c"]
        data_owners = ["d"]
        dealers = ["t"]
        insecure = {{ plaintext = true }}
    """)
    assert run_party(config, once=True) == 2
    said = capfd.readouterr().err
    assert PLAIN.format(bert=bert) in said
    assert f"fix: distil it first: mpcformer distill --teacher {bert}" in said
