"""The files in parties/deploy agree with the TOML files, with the commands, and with each other.

No container runs here: the tests do not try how a runtime treats these files.
"""

import copy
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from mpcformer import __version__
from mpcformer.cli import build_app
from parties.settings.config import (
    AnyConfig,
    CoordinatorConfig,
    DataOwnerConfig,
    DealerConfig,
    ModelOwnerConfig,
    PeerAddress,
)
from parties.settings.config_file import load_any

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "parties" / "deploy"
FILES = DEPLOY / "two-machines"
SERVICES, ONCE = ("dealer", "model-owner"), ("coordinator", "data-owner")
IDS = (*SERVICES, *ONCE)
INSIDE = Path("/etc/mpcformer")
IMAGE = f"mpcformer:{__version__}"
# How long a service waits at its end for each session that does not end, one after the other.
LAST_WAIT_S, SERVER_STOP_S = 5, 1
# What a party must be able to write: the folder of the model owner's budget_file.
WRITABLE = INSIDE / "budget"
# The command that asks a service whether it takes sessions.
READY = ["mpcformer", "party", "--ready", "--config"]


def config(party: str) -> AnyConfig:
    return load_any(FILES / f"{party}.toml")


def paths(party: str) -> set[Path]:
    """Return the paths that the file of a party names, relative to that file."""
    settings = config(party)
    assert settings.tls
    named = [settings.tls.authority, settings.tls.certificate, settings.tls.key]
    named += [settings.student, settings.budget_file.parent] if isinstance(settings, ModelOwnerConfig) else []
    named += [settings.public_model, settings.data_dir] if isinstance(settings, DataOwnerConfig) else []
    return {path.relative_to(FILES) for path in named if path} | {Path(f"{party}.toml")}


def port(party: str) -> int | None:
    listen = getattr(config(party), "listen", None)
    return int(listen.rpartition(":")[2]) if listen else None


def hosts() -> dict[str, str]:
    """Return the host name under which each party is called, and check the ports."""
    found = {}
    for settings in map(config, IDS):
        for peer in (value for _, value in settings if isinstance(value, PeerAddress)):
            host, _, number = peer.address.rpartition(":")
            assert int(number) == port(peer.id)
            assert found.setdefault(peer.id, host) == host
    return found


def callers() -> dict[str, set[str]]:
    """Return who calls whom by the files; the calls of the owners follow from their lists."""
    called: dict[str, set[str]] = {"coordinator": set(), "dealer": set(), "model-owner": set()}
    for party, settings in ((party, config(party)) for party in IDS):
        if isinstance(settings, CoordinatorConfig):
            called[settings.dealer.id].add(party)
            called[settings.model_owner.id].add(party)
        elif isinstance(settings, DealerConfig):
            called[party] |= {*settings.model_owners, *settings.data_owners}
        elif isinstance(settings, ModelOwnerConfig):
            called[party] |= set(settings.data_owners)
        else:
            called[settings.coordinator.id].add(party)
    return called


def check_command(words: list[str]) -> None:
    """Assert that this is a command of this release with its options, on one of the example files."""
    commands = typer.main.get_command(build_app()).commands  # type: ignore[attr-defined]
    name, *rest = words
    assert name in commands
    options = {option for parameter in commands[name].params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= options
    named = Path(rest[rest.index("--config") + 1])
    assert named.parent == INSIDE
    assert (FILES / named.name).is_file()


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def objects() -> list[dict[str, Any]]:
    files = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    return [item for path in files for item in yaml.safe_load_all(path.read_text())]


def named(objects: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item for item in objects if item["kind"] == kind}


@pytest.mark.parametrize("party", IDS)
def test_compose_runs_the_example_files(compose: dict[str, Any], party: str) -> None:
    service = compose["services"][party]
    assert service["image"] == IMAGE
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["ulimits"] == {"core": 0, "nofile": 65536}
    ready = ["CMD", *READY, str(INSIDE / f"{party}.toml")]
    assert service.get("healthcheck", {}).get("test") == (ready if party in SERVICES else None)
    check_command(service["command"])
    mounted = {}
    for volume in service["volumes"]:
        source, target, *mode = re.sub(r"\$\{SITE[^}]*\}", "SITE", volume).split(":")
        mounted[Path(target)] = source
        if Path(target).is_relative_to(INSIDE):
            assert mode == ["rw" if Path(target) == WRITABLE else "ro"]
    inside = {target.relative_to(INSIDE): source for target, source in mounted.items() if target.is_relative_to(INSIDE)}
    assert set(inside) == paths(party), "all that the file names, and nothing else"
    for target, source in inside.items():
        assert source == (f"./two-machines/{party}.toml" if target.suffix == ".toml" else f"SITE/{target}")
    assert service.get("ports", []) == ([f"{port(party)}:{port(party)}"] if port(party) else [])
    aliases = service["networks"]["parties"]["aliases"] if isinstance(service["networks"], dict) else []
    assert aliases == ([hosts()[party]] if party in hosts() else [])
    assert set(compose["services"]) == set(IDS)


@pytest.mark.parametrize("party", IDS)
def test_the_cluster_runs_the_example_files(objects: list[dict[str, Any]], party: str) -> None:
    work = named(objects, "StatefulSet" if party in SERVICES else "Job")[party]
    template = work["spec"]["template"]
    pod, labels = template["spec"], template["metadata"]["labels"]
    (container,) = pod["containers"]
    assert container["image"] == IMAGE
    check_command(container["args"])
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    inside: set[Path] = set()
    for mount in container["volumeMounts"]:
        target, volume = Path(mount["mountPath"]), volumes.pop(mount["name"])
        if not target.is_relative_to(INSIDE):
            continue
        assert mount["readOnly"] is (target != WRITABLE)
        if "secret" in volume:
            assert volume["secret"] == {"secretName": f"{party}-certs", "defaultMode": 0o440}
            inside |= {path for path in paths(party) if path.parent == target.relative_to(INSIDE)}
        else:
            inside.add(target.relative_to(INSIDE))
            assert "configMap" not in volume or volume["configMap"]["name"] == f"{party}-config"
            assert mount.get("subPath", target.name) == target.name
    assert not volumes, "a volume that nobody mounts"
    assert inside == paths(party)
    assert [p["containerPort"] for p in container.get("ports", [])] == ([port(party)] if port(party) else [])
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["resources"]["limits"]["memory"]
    assert labels["app.kubernetes.io/component"] == party
    if party in SERVICES:
        probe = container["readinessProbe"]["exec"]["command"]
        assert probe == [*READY, str(INSIDE / f"{party}.toml")]
        check_command(probe[1:])
        assert work["spec"]["selector"]["matchLabels"] == labels
        assert work["spec"]["replicas"] == 1


def test_the_clusters_names_are_those_in_the_files(objects: list[dict[str, Any]]) -> None:
    services = named(objects, "Service")
    for party, host in hosts().items():
        # SERVICE.NAMESPACE is a host name inside a cluster.
        name, _, namespace = host.partition(".")
        service = services.pop(name)
        assert service["metadata"]["namespace"] == namespace
        assert service["spec"]["selector"]["app.kubernetes.io/component"] == party
        assert [item["port"] for item in service["spec"]["ports"]] == [port(party)]
    assert set(services) == {named(objects, "StatefulSet")[party]["spec"]["serviceName"] for party in SERVICES}
    assert {item["metadata"]["namespace"] for item in objects} == {namespace}


def test_each_replica_has_the_name_that_data_owners_list(objects: list[dict[str, Any]], tmp_path: Path) -> None:
    """The commented lines of the data owner's file name the second replicas; the plain ones, the first."""
    lines = (FILES / "data-owner.toml").read_text().splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("# [[replicas]]"))
    lines[begin : begin + 3] = [line.removeprefix("# ") for line in lines[begin : begin + 3]]
    (tmp_path / "data-owner.toml").write_text("\n".join(lines))
    settings = load_any(tmp_path / "data-owner.toml")
    assert isinstance(settings, DataOwnerConfig)
    (second,) = settings.replicas
    services = named(objects, "Service")
    for peer, first in ((second.dealer, settings.dealer), (second.model_owner, settings.model_owner)):
        assert first
        assert peer.id == first.id, "replicas share an id and a certificate"
        replicas = named(objects, "StatefulSet")[peer.id]
        every = services[replicas["spec"]["serviceName"]]
        assert every["spec"]["clusterIP"] == "None", "each replica has a name of its own"
        assert "publishNotReadyAddresses" not in every["spec"], "one that is not ready has no name"
        pod, name, namespace = peer.address.partition(":")[0].split(".")
        assert (pod, name, namespace) == (f"{peer.id}-1", every["metadata"]["name"], every["metadata"]["namespace"])
        alone = services[first.address.partition(".")[0]]["spec"]["selector"]
        assert alone == every["spec"]["selector"] | {"statefulset.kubernetes.io/pod-name": f"{peer.id}-0"}
        assert every["spec"]["selector"] == replicas["spec"]["selector"]["matchLabels"]


def test_the_cluster_would_take_the_files(objects: list[dict[str, Any]]) -> None:
    """By the schemas of an older release and of the newest that the package knows. No unknown key passes."""
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="no schemas of Kubernetes here: make extras, which installs kubernetes-validate"
    )
    for version in ("1.34", kubernetes_validate.latest_version()):
        for item in objects:
            kubernetes_validate.validate(item, version, strict=True)
        wrong = copy.deepcopy(named(objects, "StatefulSet")["dealer"])
        wrong["spec"]["servicename"] = wrong["spec"].pop("serviceName")
        with pytest.raises(kubernetes_validate.ValidationError, match="servicename"):
            kubernetes_validate.validate(wrong, version, strict=True)


def test_the_network_lets_through_who_calls_whom_and_nothing_else(objects: list[dict[str, Any]]) -> None:
    policies = named(objects, "NetworkPolicy")
    everybody = policies.pop("nothing-else")["spec"]
    assert everybody["podSelector"] == {}
    assert everybody["policyTypes"] == ["Ingress", "Egress"]
    assert {item["port"] for rule in everybody["egress"] for item in rule["ports"]} == {53}
    into: set[tuple[str, str, int]] = set()
    out_of: set[tuple[str, str, int]] = set()

    def parties(peers: list[dict[str, Any]]) -> list[str]:
        return [peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in peers]

    for policy in (item["spec"] for item in policies.values()):
        (party,) = parties([policy])
        assert policy["policyTypes"] == [kind for kind in ("Ingress", "Egress") if kind.lower() in policy]
        for rule in policy.get("ingress", []):
            into |= {(caller, party, item["port"]) for caller in parties(rule["from"]) for item in rule["ports"]}
        for rule in policy.get("egress", []):
            out_of |= {(party, called, item["port"]) for called in parties(rule["to"]) for item in rule["ports"]}
    expected = {(caller, called, port(called)) for called, who in callers().items() for caller in who}
    assert into == out_of == expected


def test_the_config_maps_are_made_from_the_files(objects: list[dict[str, Any]]) -> None:
    kustomization = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
    for party in IDS:
        generator = next(g for g in kustomization["configMapGenerator"] if g["name"] == f"{party}-config")
        assert generator["files"] == [f"two-machines/{party}.toml"]
    assert {DEPLOY / name for name in kustomization["resources"]} | {DEPLOY / "kubernetes" / "jobs.yaml"} == set(
        (DEPLOY / "kubernetes").glob("*.yaml")
    )
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl to build it with")
    built = subprocess.run(["kubectl", "kustomize", DEPLOY], capture_output=True, text=True, timeout=60, check=False)
    assert built.returncode == 0, built.stderr
    maps = named(list(yaml.safe_load_all(built.stdout)), "ConfigMap")
    for party in IDS:
        assert maps[f"{party}-config"]["data"] == {f"{party}.toml": (FILES / f"{party}.toml").read_text()}


@pytest.mark.parametrize("party", SERVICES)
def test_everybody_waits_longer_than_the_sessions_may(
    compose: dict[str, Any], objects: list[dict[str, Any]], party: str
) -> None:
    settings = config(party)
    assert isinstance(settings, DealerConfig | ModelOwnerConfig)
    needed = settings.grace_s + LAST_WAIT_S * settings.max_sessions + SERVER_STOP_S
    unit = (DEPLOY / "systemd" / f"mpcformer-{party}.service").read_text()
    assert int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[0]) > needed
    assert int(compose["services"][party]["stop_grace_period"].removesuffix("s")) > needed
    pod = named(objects, "StatefulSet")[party]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > needed


@pytest.mark.parametrize("party", SERVICES)
def test_the_units_are_sound_and_hardened(party: str, tmp_path: Path) -> None:
    unit = (DEPLOY / "systemd" / f"mpcformer-{party}.service").read_text()
    (start,) = re.findall(r"^ExecStart=(\S+) (.*)$", unit, re.MULTILINE)
    assert Path(start[0]).name == "mpcformer"
    check_command(start[1].split())
    assert {
        "LimitCORE=0",
        "LimitNOFILE=65536",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "Restart=on-failure",
    } <= set(unit.split("\n"))
    assert f"User=mpcformer-{party}" in unit
    assert (f"ReadWritePaths={WRITABLE}" in unit) == (party == "model-owner")
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze to verify it with")
    here = tmp_path / f"mpcformer-{party}.service"
    here.write_text(unit.replace(start[0], "/bin/true"))  # `verify` demands that the program exists.
    for options in (["verify", "--man=no"], ["security", "--offline=true", "--no-pager", "--threshold=20"]):
        said = subprocess.run(
            ["systemd-analyze", *options, here], capture_output=True, text=True, timeout=60, check=False
        )
        if "unrecognized option" in said.stderr:
            continue  # This is an older systemd.
        assert said.returncode == 0, said
        assert here.name not in said.stderr, said.stderr


def test_the_guides_way_from_nothing_is_ten_commands_that_exist() -> None:
    guide = (ROOT / "docs" / "deployment.md").read_text()
    section = guide[guide.index("## Two machines from nothing") : guide.index("## Services")]
    commands = [line.strip() for line in section.splitlines() if line.startswith("    ") and "    #" not in line]
    assert len(commands) <= 10
    known = typer.main.get_command(build_app()).commands  # type: ignore[attr-defined]
    for command in commands:
        if command.startswith("mpcformer "):
            assert command.split()[1] in known
        for name in re.findall(r"--config (\S+)", command):
            assert (FILES / name).is_file()
    for host in hosts().values():
        assert host in section


def test_the_image_holds_the_release_and_no_secret() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    lines = text.replace("\\\n", "").splitlines()
    torch = next(
        d for d in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"] if "torch=" in d
    )
    assert torch in text, "the torch that the release was tested with"
    for step in ("--no-deps --require-hashes -r requirements.txt", "--no-deps --no-build-isolation --editable ."):
        assert step in text
        assert step in (ROOT / "Makefile").read_text(), "as make setup does it"
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(copied)
    assert {"**/*.pem", "**/*.key"} <= set(rules)
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]
    assert 'ENTRYPOINT ["mpcformer"]' in lines
    assert not re.search(r"^(ARG|ADD)\b", text, re.MULTILINE)
