"""Parties started one by one from the example files, as docs/deployment.md describes it, but on one machine."""

import json
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mpcformer.cli import build_app
from mpcformer.errors import UserInputError
from parties.settings.config_file import load_coordinator, load_party
from tests.ports import free_port

EXAMPLES = Path(__file__).parents[2] / "parties" / "deploy" / "two-machines"
PARTIES = ("dealer", "model-owner", "data-owner")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from mpcformer.cli import main; main()", *map(str, arguments)]


@pytest.fixture
def site(student: Path, data_dir: Path, tmp_path: Path) -> Path:
    """Return a folder with the examples, adapted to this machine, and certificates, public model and data."""
    ports = {port: free_port() for port in ("7000", "7001", "7002")}
    for source in EXAMPLES.glob("*.toml"):
        text = source.read_text()
        for host in ("0.0.0.0", "coordinator.example", "dealer.example", "models.example"):
            for port, free in ports.items():
                text = text.replace(f"{host}:{port}", f"127.0.0.1:{free}")
        (tmp_path / source.name).write_text(text.replace("limit = 64 ", "limit = 6 "))
    names = [argument for name in ("coordinator", *PARTIES) for argument in ("--party", name)]
    assert CliRunner().invoke(build_app(), ["certs", "init", *names, "--out", str(tmp_path / "certs")]).exit_code == 0
    made = CliRunner().invoke(build_app(), ["export", "--student", str(student), "--out", str(tmp_path / "public")])
    assert made.exit_code == 0, made.output
    assert not list((tmp_path / "public").glob("*.safetensors")), "no weight leaves its owner"
    (tmp_path / "student").symlink_to(student)
    shutil.copytree(data_dir, tmp_path / "data" / "sst2")
    return tmp_path


def start(site: Path, *names: str) -> dict[str, "subprocess.Popen[str]"]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return {
        name: subprocess.Popen(command("party", "--config", site / f"{name}.toml"), **pipes)  # type: ignore[call-overload]
        for name in names
    }


def test_parties_started_one_by_one_run_a_job(site: Path) -> None:
    parties = start(site, *PARTIES)  # The parties start before the coordinator: the order does not matter.
    arguments = command("coordinate", "--config", site / "coordinator.toml", "--out", site / "run")
    coordinator = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    for service in ("dealer", "model-owner"):
        assert parties[service].poll() is None, "a service goes on"
        parties[service].terminate()
    said = {name: process.communicate(timeout=30)[0] for name, process in parties.items()}
    assert coordinator.returncode == 0, (coordinator.stderr, said)
    assert {process.returncode for process in parties.values()} == {0}, said
    values = json.loads((site / "run" / "results.json").read_text())
    assert values["examples"] == 6
    assert values["metrics"]["private"]["accuracy"] >= 0
    assert values["student"] is None, "the coordinator has no student"
    assert {"threat_model", "online", "offline", "peak_rss_bytes"} <= set(values)
    assert (site / "run" / "manifest.json").is_file()
    assert not (site / "run.partial").exists()
    assert all(f"transcript {values['transcript'][:16]}" in said[owner] for owner in ("model-owner", "data-owner"))
    assert "private" in coordinator.stdout
    assert_names_only_what_is_there(site / "run", coordinator.stdout)


def assert_names_only_what_is_there(folder: Path, said: str) -> None:
    """Check that the terminal, the report and the manifest name exactly the files that a coordinator's run left."""
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert present == {"results.json", "predictions.parquet", "report.html", "journal.jsonl", "manifest.json"}
    assert f"Everything is in {folder} (results.json, predictions.parquet)." in said.splitlines()
    assert set(json.loads((folder / "manifest.json").read_text())["sha256"]) == present - {"manifest.json"}
    named = set(re.findall(r"[\w-]+\.(?:json|jsonl|parquet|html|log)\b|logs/", (folder / "report.html").read_text()))
    assert named == {"results.json", "predictions.parquet", "manifest.json"}


def test_a_party_with_another_authoritys_certificate_is_kept_out(site: Path) -> None:
    names = [argument for name in ("coordinator", *PARTIES) for argument in ("--party", name)]
    assert CliRunner().invoke(build_app(), ["certs", "init", *names, "--out", str(site / "others")]).exit_code == 0
    for name, old, new in (
        ("dealer", "certs/", "others/"),
        ("coordinator", "join_timeout_s = 600", "join_timeout_s = 8"),
    ):
        path = site / f"{name}.toml"
        path.write_text(path.read_text().replace(old, new))
    parties = start(site, "dealer")
    arguments = command("coordinate", "--config", site / "coordinator.toml", "--out", site / "run")
    coordinator = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    parties["dealer"].terminate()
    assert "begins" not in parties["dealer"].communicate(timeout=30)[0]
    assert coordinator.returncode == 3
    assert re.search(r"dealer: no answer at 127\.0\.0\.1:\d+ for 8 s", coordinator.stderr)
    assert not list(site.glob("run*"))


def test_keys_are_for_their_owner_alone_and_ids_are_checked(site: Path, tmp_path: Path) -> None:
    for key in (site / "certs").glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert (site / "certs" / "authority.key").is_file(), "renewal needs it"
    for arguments, message in (
        (["--party", "a", "--out", str(site / "certs")], "is not empty"),
        (["--party", "../a", "--out", str(tmp_path / "x")], "is not a possible id"),
        (["--party", "a", "--party", "a", "--out", str(tmp_path / "x")], "given twice"),
        (["--party", "\u00e9", "--out", str(tmp_path / "x")], "is not a possible id"),
        (["--party", "authority", "--out", str(tmp_path / "x")], "is not a possible id"),
        (["--party", "a", "--days", "0", "--out", str(tmp_path / "x")], "--days: 0"),
    ):
        result = CliRunner().invoke(build_app(), ["certs", "init", *arguments])
        assert isinstance(result.exception, UserInputError)
        assert message in str(result.exception)
    assert not (tmp_path / "x").exists()


def test_the_examples_are_whole() -> None:
    assert load_coordinator(EXAMPLES / "coordinator.toml").job.task == "sst2"
    for name in PARTIES:
        assert load_party(EXAMPLES / f"{name}.toml").role == name
