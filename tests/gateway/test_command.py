"""The command's arguments: what is wrong is said before anything starts."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mpcformer.cli import build_app
from mpcformer.errors import MPCFormerError
from parties.gateway import command
from tests.gateway.test_gate import TOKEN


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--student", "{picky}", "--config", "{file}"], "give either --student or --config"),
        (["--student", "{nowhere}"], "--student: .*nowhere does not exist"),
        (["--student", "{picky}", "--port", "65536"], "--port: 65536 is outside"),
        (["--student", "{picky}", "--port", "-1"], "--port: -1 is outside"),
        (["--student", "{picky}", "--model", "a"], "--model: there is no --config"),
        (["--student", "{picky}", "--name", "a/b"], "--name: 'a/b' cannot be part of an address"),
        (["--student", "{picky}", "--max-upload", "0"], "--max-upload: 0 is below 1"),
        (["--student", "{picky}", "--token-file", "{file}"], "--token-file: .* can be read or written by other users"),
        (["--student", "{picky}", "--batch-size", "0"], "batch_size: 0 is outside"),
        (["--config", "{file}"], r"--config: .*Expected '='"),
    ],
)
def test_wrong_arguments(
    picky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(command, "keep_freed_memory", lambda: True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text(TOKEN)
    (tmp_path / "file").chmod(0o644)
    names = {"picky": str(picky), "file": str(tmp_path / "file"), "nowhere": str(tmp_path / "nowhere")}
    result = CliRunner().invoke(build_app(), ["gateway", "--port", "0", *(each.format(**names) for each in arguments)])
    assert isinstance(result.exception, MPCFormerError), result.output
    with pytest.raises(MPCFormerError, match=message):
        raise result.exception
    assert result.exception.remedy
    assert TOKEN not in str(result.exception)
