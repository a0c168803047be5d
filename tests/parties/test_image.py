"""The image's file system, built from the Dockerfile's steps, runs the parties of compose.yaml in namespaces.

This takes root, Debian's package debootstrap and minutes. With MPCFORMER_IMAGE=DIR the image in that folder is used,
which scripts/image.py made. The quick tests are of what the two scripts read and refuse.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath

import pyarrow.parquet as pq
import pytest
import yaml

from parties.runs import local_run
from parties.runs.simulation import LocalRunOptions
from parties.settings.config_file import load_coordinator
from parties.settings.public_files import export_public
from parties.wire.tls import make_certificates
from scripts import containers as script
from scripts import image
from scripts.containers import COMPOSE, Containers
from scripts.image import DOCKERFILE, ROOT, Build, ScriptError, ignored, instructions

IDS = ("dealer", "model-owner", "data-owner", "coordinator")
SERVICES = ("dealer", "model-owner")
UID = 10001
TOLERANCE = 0.01


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All packages of a release, in the versions of its lock."""
    folder = tmp_path_factory.mktemp("wheels")
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder)]
    for what in ([d for d in dependencies if d.startswith("torch=")], ["--no-deps", "--require-hashes", "-r"]):
        which = what if what[0] != "--no-deps" else [*what, str(ROOT / "requirements.txt")]
        subprocess.run([*download, *which], check=True, timeout=900)
    return folder


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the image."""
    if reason := image.missing(("debootstrap", "debootstrap"), ("ip", "iproute2")):
        pytest.skip(reason)
    if given := os.environ.get("MPCFORMER_IMAGE"):
        return Path(given)
    out = tmp_path_factory.mktemp("image")
    image.build(DOCKERFILE, ROOT, request.getfixturevalue("wheels"), out)
    return out


@pytest.fixture
def site(student: Path, data_dir: Path, tmp_path: Path) -> Path:
    """The folder that the head of compose.yaml describes; only the image's user can read the keys."""
    folder = tmp_path / "site"
    make_certificates(folder / "certs", list(IDS))
    export_public(student, folder / "public")
    shutil.copytree(student, folder / "student")
    shutil.copytree(data_dir, folder / "data" / "sst2")
    (folder / "budget").mkdir()
    for path in (folder, *folder.rglob("*")):
        os.chown(path, UID, UID)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_images_parties_do_a_job_in_namespaces(
    built: Path, site: Path, student: Path, data_dir: Path, tmp_path: Path
) -> None:
    services = script.read(COMPOSE, {"SITE": str(site)})
    assert {service.name for service in services} == set(IDS)
    with Containers(built, services, tmp_path / "out") as running:
        for name in SERVICES:
            running.start(name)
        for name in SERVICES:
            running.wait_healthy(name)
        for name in ("coordinator", "data-owner"):
            running.start(name)
        for name in SERVICES:
            _is_shut_in(running, name)
        for name in ("coordinator", "data-owner"):
            assert running.wait(name, 300) == 0, running.log(name).read_text()
        # As the first process of its container each service must take SIGTERM by itself.
        assert {name: running.stop(name) for name in SERVICES} == dict.fromkeys(SERVICES, 0)
    done = tmp_path / "out" / "volumes" / "runs" / "first"
    assert done.stat().st_uid == UID
    found = pq.read_table(done / "predictions.parquet").to_pydict()
    (counted,) = json.loads((site / "budget" / "budget.json").read_text())["students"].values()
    assert counted["in_all"] == {"data-owner": len(found["id"])}
    job = load_coordinator(COMPOSE.parent / "two-machines" / "coordinator.toml").job
    local_run.run(LocalRunOptions(student, None, job, data_dir), tmp_path / "here")
    here = pq.read_table(tmp_path / "here" / "predictions.parquet").to_pydict()
    assert found["id"] == here["id"]
    assert found["private_prediction"] == here["private_prediction"]
    for ours, theirs in zip(found["private_logits"], here["private_logits"], strict=True):
        assert ours == pytest.approx(theirs, abs=TOLERANCE)


def _is_shut_in(running: Containers, name: str) -> None:
    """Check what a service's container lets a process do that got into it."""

    def said(*words: str) -> str:
        done = running.execute(name, words)
        return (done.stdout + done.stderr).strip()

    assert said("id", "-u") == str(UID)
    status = dict(line.split(":\t", 1) for line in said("cat", "/proc/self/status").splitlines() if ":\t" in line)
    assert {status[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Groups"].strip()) == ("1", "")
    for folder in ("/etc/mpcformer", "/opt/mpcformer", "/runs", "/usr/bin"):
        assert "Read-only file system" in said("touch", f"{folder}/new")
    assert said("touch", "/tmp/new") == ""
    assert set(said("ls", "/etc/mpcformer/certs").split()) == {f"{name}.pem", f"{name}.key", "authority.pem"}
    assert said("ls", "/sys/class/net").split() == ["eth0", "lo"]
    for other, address in running.addresses.items():
        for host in running.services[other].names:
            assert said("getent", "hosts", host).split()[0] == address
    outside = "import socket; socket.create_connection(('192.0.2.1', 53), 5)"
    assert "Network is unreachable" in said("python3", "-c", outside)
    processes = said("sh", "-c", "cat /proc/[0-9]*/comm").split()
    assert processes[0] == "mpcformer", "it is the first process, and sees no other container's"
    assert "prlimit" not in processes
    most = min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    assert said("sh", "-c", "ulimit -c; ulimit -n").split() == ["0", str(most)]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("ADD a b", "ADD is an instruction that this script does not know"),
        ("HEALTHCHECK CMD true", "HEALTHCHECK is an instruction"),
        ("ARG X=1", "ARG is an instruction"),
        ("FROM python:3.12-slim", "FROM python:3.12-slim has no stand-in"),
        ("FROM python:3.11-slim AS first", "has no stand-in"),
        ("COPY --from=first a b", "options and patterns"),
        ("COPY *.py b", "options and patterns"),
        ("COPY nowhere b", "no such file"),
        ("RUN --mount=type=cache true", "only a line for the shell"),
        ('RUN ["true"]', "only a line for the shell"),
        ("ENV PATH=/x:$PATH", "without variables"),
        ("USER nobody", "only UID:GID"),
        ("ENTRYPOINT mpcformer", "form with brackets"),
        ("RUN <<EOF", "here-document"),
    ],
)
def test_what_the_builder_does_not_know_it_refuses(line: str, match: str, tmp_path: Path) -> None:
    made = Build(tmp_path / "root", tmp_path, [], tmp_path)
    with pytest.raises(ScriptError, match=match):
        made.steps(line)


def test_the_dockerfile_has_only_instructions_that_the_builder_knows() -> None:
    steps = list(instructions(DOCKERFILE.read_text()))
    assert steps[0][0] == "FROM"
    assert {word for word, _ in steps} <= {"FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT"}
    assert any(rest.count("&&") == 4 for word, rest in steps if word == "RUN"), "lines that go on are joined"


def test_files_are_copied_but_for_the_ignored_ones(tmp_path: Path) -> None:
    rules = ["*", "!taken", "!one.txt", "**/__pycache__", "**/*.key"]
    kept = ("one.txt", "taken/a.py", "taken/deep/b.py")
    out = ("two.txt", "taken/secret.key", "taken/deep/other.key", "taken/__pycache__/a.pyc", "taken/d/__pycache__/x/y")
    for name in kept:
        assert not ignored(PurePosixPath(name), rules)
    for name in out:
        assert ignored(PurePosixPath(name), rules)
    for name in (*kept, *out):
        (tmp_path / "context" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "context" / name).write_text(name)
    made = Build(tmp_path / "root", tmp_path / "context", rules, tmp_path)
    made.step("WORKDIR", "/work")
    made.step("COPY", "one.txt two.txt ./")
    made.step("COPY", "taken renamed")
    found = {str(path.relative_to(tmp_path / "root")) for path in (tmp_path / "root").rglob("*") if path.is_file()}
    assert found == {"work/one.txt", "work/renamed/a.py", "work/renamed/deep/b.py"}


def _changed(folder: Path, service: str, **settings: object) -> Path:
    values = yaml.safe_load(COMPOSE.read_text())
    values["services"][service] |= settings
    (folder / "compose.yaml").write_text(yaml.safe_dump(values))
    return folder / "compose.yaml"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"privileged": True}, "dealer has privileged, which this script does not know"),
        ({"read_only": False}, "dealer has read_only False; only True"),
        ({"cap_drop": ["CHOWN"]}, "dealer has cap_drop"),
        ({"security_opt": []}, "dealer has security_opt"),
        ({"networks": ["a", "b"]}, "dealer is in 2 networks"),
        ({"healthcheck": {"test": ["CMD-SHELL", "true"]}}, "begins with 'CMD-SHELL'"),
    ],
)
def test_a_setting_that_is_not_carried_out_is_refused(settings: dict[str, object], match: str, tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=match):
        script.read(_changed(tmp_path, "dealer", **settings), {"SITE": "/site"})


def test_the_compose_file_supplies_names_commands_and_volumes(tmp_path: Path) -> None:
    found = {service.name: service for service in script.read(COMPOSE, {"SITE": "/site"})}
    values = yaml.safe_load(COMPOSE.read_text())["services"]
    for name, service in found.items():
        assert list(service.command) == values[name]["command"]
        assert [volume.target for volume in service.volumes] == [v.split(":")[-2] for v in _short(values[name])]
        assert service.stays == (name in SERVICES)
    assert found["model-owner"].names == ("model-owner", "models.example")
    assert found["model-owner"].grace_s == 60
    assert found["data-owner"].names == ("data-owner",)
    with pytest.raises(ScriptError, match=r"SITE has no value: folder with certs"):
        script.read(COMPOSE, {})
    changed = script.read(_changed(tmp_path, "dealer", command=["other"]), {"SITE": "/site"})
    assert {service.name: service.command for service in changed}["dealer"] == ("other",)


def _short(service: dict[str, list[str]]) -> list[str]:
    return [v if v.endswith((":ro", ":rw")) else f"{v}:rw" for v in service["volumes"]]


def test_who_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ScriptError, match="run this as root"):
        image.build(DOCKERFILE, ROOT, tmp_path, tmp_path / "out")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "debootstrap" else f"/usr/bin/{name}")
    with pytest.raises(ScriptError, match="debootstrap is not installed: apt-get install debootstrap"):
        image.build(DOCKERFILE, ROOT, tmp_path, tmp_path / "out")
