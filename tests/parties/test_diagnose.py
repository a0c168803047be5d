"""mpcformer doctor --config names what keeps two parties apart: real servers, each of which is wrong in one way."""

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from mpcformer.cli import build_app
from mpcformer.doctor import Finding
from mpcformer.errors import PartyError, UserInputError
from parties import diagnosis
from parties.diagnosis import own, probe
from parties.roles.coordinator import Coordinator
from parties.roles.journal import Journal
from parties.roles.model_owner import ModelOwner
from parties.roles.service import SessionHost
from parties.settings.config import (
    AnyConfig,
    CoordinatorConfig,
    DataOwnerConfig,
    DealerConfig,
    Insecure,
    ModelOwnerConfig,
    PeerAddress,
    Plaintext,
    TlsFiles,
)
from parties.settings.config_file import to_toml
from parties.settings.job import JobDescription
from parties.settings.public_files import export_public
from parties.stubs import parties_pb2 as pb
from parties.wire import diagnose_reply, tls
from parties.wire.frames import start_server

IDS = ["coordinator", "dealer", "model-owner", "data-owner"]
PAST = timedelta(minutes=-1)
MODEL = pb.ModelClaim(student="ab" * 32, facts=b"f" * 32, name="student")


def one_model(caller: str) -> list[pb.ModelClaim]:
    return [MODEL]


@dataclass
class Site:
    """The certificates, configurations and servers of a test, all in this process."""

    folder: Path
    servers: list[grpc.Server] = field(default_factory=list)
    hosts: list[SessionHost] = field(default_factory=list)
    tls: dict[str, TlsFiles] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tls = tls.make_certificates(self.folder / "certs", IDS, keep_authority=True)

    def common(self, name: str, **changes: Any) -> dict[str, Any]:
        return {"id": name, "tls": self.tls[name]} | changes

    def dealer(self, **changes: Any) -> DealerConfig:
        lists = {"coordinators": ["coordinator"], "model_owners": ["model-owner"], "data_owners": ["data-owner"]}
        return DealerConfig(**self.common("dealer", role="dealer", **(lists | changes)))

    def model_owner(self, student: Path, **changes: Any) -> ModelOwnerConfig:
        lists = {"coordinators": ["coordinator"], "data_owners": ["data-owner"], "dealers": ["dealer"]}
        values = (
            lists | {"student": student, "max_sentences_per_day": "unlimited", "max_sentences": "unlimited"} | changes
        )
        return ModelOwnerConfig(**self.common("model-owner", role="model-owner", **values))

    def coordinator(self, dealer: str, model_owner: str) -> CoordinatorConfig:
        return CoordinatorConfig(
            **self.common("coordinator", listen="127.0.0.1:0"),
            dealer=PeerAddress(id="dealer", address=dealer),
            model_owner=PeerAddress(id="model-owner", address=model_owner),
            data_owner="data-owner",
            job=JobDescription(task="sst2"),
        )

    def data_owner(self, coordinator: str, public: Path, data: Path | None = None, **changes: Any) -> DataOwnerConfig:
        values = {"role": "data-owner", "dealers": ["dealer"], "model_owners": ["model-owner"]} | changes
        peer = PeerAddress(id="coordinator", address=coordinator)
        return DataOwnerConfig(
            **self.common("data-owner", **values), coordinator=peer, public_model=public, data_dir=data
        )

    def serve(
        self, config: DealerConfig | ModelOwnerConfig, models: Callable[[str], list[pb.ModelClaim]] = lambda caller: []
    ) -> str:
        host = SessionHost(config, config.role, lambda job, membership: None, models=models)
        server, address = start_server(host.add_to, config.listen, config.credentials)
        self.servers.append(server)
        self.hosts.append(host)
        return address

    def diagnose(self, config: AnyConfig) -> dict[str, Finding]:
        path = self.folder / f"{config.id}.toml"
        path.write_text(to_toml(config))
        return {row.check: row for row in diagnosis.diagnose(path)}

    def seen(self, dealer: str) -> dict[str, Finding]:
        """Return what the coordinator's doctor finds about a dealer at this address."""
        rows = self.diagnose(self.coordinator(dealer, closed_port()))
        assert rows["model-owner: address"].status == 3
        return {name.removeprefix("dealer: "): row for name, row in rows.items() if name.startswith("dealer: ")}


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def wrongs(rows: dict[str, Finding]) -> set[str]:
    return {name for name, row in rows.items() if row.status}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    for server in site.servers:
        server.stop(None)


def only(rows: dict[str, Finding], check: str, *texts: str) -> None:
    """Assert that only this check failed, and that it states what was found and a remedy."""
    assert wrongs(rows) == {check}, rows
    for text in texts:
        assert text in rows[check].found
    assert rows[check].remedy


def test_all_well_as_the_coordinator_sees_it(site: Site, tmp_path: Path) -> None:
    dealer = site.serve(site.dealer())
    model_owner = site.serve(site.model_owner(tmp_path), one_model)
    rows = site.diagnose(site.coordinator(dealer, model_owner))
    assert not wrongs(rows), rows
    assert rows["dealer: serves us"].found == "as coordinator"
    assert rows["dealer: health"].found == "SERVING; free sessions: 4"
    assert MODEL.student in rows["model-owner: student"].found
    assert rows["certificate's name"].found == "coordinator"
    assert "valid until" in rows["dealer: certificate"].found


def test_all_well_as_the_data_owner_sees_it(site: Site, student: Path, data_dir: Path, tmp_path: Path) -> None:
    """It learns from the coordinator where the others are, and compares its public files with the model owner's."""
    public = export_public(student, tmp_path / "public")
    served = site.model_owner(student)
    model_owner = site.serve(served, ModelOwner(served).models)
    config = site.coordinator(site.serve(site.dealer()), model_owner)
    coordinator = Coordinator(config, journal=Journal(tmp_path / "journal", {}))
    try:
        mine = site.data_owner(coordinator.address, public, data_dir)
        rows = site.diagnose(mine)
        assert not wrongs(rows), rows
        assert rows["model-owner: student"].found.endswith("as in public_model")
        assert "parquet files in ." in rows["data_dir"].found
        (public / "student.json").write_text('{"sha256": "' + "0" * 64 + '"}')
        only(site.diagnose(mine), "model-owner: student", "public_model belongs to 0000000000000000...")
        export_public(student, tmp_path / "other")
        edited = (tmp_path / "other" / "config.json").read_text().replace('"gelu": "quad"', '"gelu": "relu"')
        (tmp_path / "other" / "config.json").write_text(edited)
        rows = site.diagnose(site.data_owner(coordinator.address, tmp_path / "other", data_dir))
        only(rows, "model-owner: student", "the same, but architecture, forms or ranges")
        rows = site.diagnose(site.data_owner(coordinator.address, tmp_path / "none", tmp_path / "none", dealers=["x"]))
        assert wrongs(rows) == {"public_model", "data_dir", "dealer: trusted"}, rows
        assert rows["model-owner: student"].remedy, "a warning: there is nothing to compare with"
    finally:
        coordinator.stop()


def test_the_model_owners_and_the_dealers_own(site: Site, student: Path, tmp_path: Path) -> None:
    rows = site.diagnose(site.model_owner(student))
    assert not wrongs(rows), rows
    assert "quad + 2quad" in rows["student"].found
    only(site.diagnose(site.model_owner(tmp_path)), "student", "is not a checkpoint")
    rows = site.diagnose(site.dealer(listen="127.0.0.1:0"))
    assert not wrongs(rows)
    assert not any(": " in name for name in rows), "it calls nobody"


def test_a_closed_port_an_unknown_name_and_silence(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "STEP_S", 0.5)
    address = closed_port()
    only(site.seen(address), "address", f"{address} is closed")
    monkeypatch.setattr(probe.socket, "getaddrinfo", unknown("nowhere.invalid", socket.getaddrinfo))
    only(site.seen("nowhere.invalid:7001"), "address", "the name nowhere.invalid does not resolve")
    only(site.seen("hanging.invalid:7001"), "address", "no answer about the name hanging.invalid")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        only(site.seen(f"127.0.0.1:{silent.getsockname()[1]}"), "TLS", "accepts connections but sends nothing")


def unknown(name: str, resolve: Any) -> Any:
    """Return a resolver that does not know a name, and does not answer for another."""

    def answer(host: str, *arguments: Any, **options: Any) -> Any:
        if host == name:
            raise socket.gaierror(-2, "Name or service not known")
        if host == "hanging.invalid":
            threading.Event().wait(2)
        return resolve(host, *arguments, **options)

    return answer


def test_a_filtered_port(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "STEP_S", 0.5)
    with socket.socket() as full:  # A full queue drops what arrives, as a firewall does.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        only(site.seen(f"127.0.0.1:{address[1]}"), "address", "does not answer for", "filtered")
        for one in waiting:
            one.close()


def test_no_tls(site: Site) -> None:
    server, address = start_server(lambda s: None, "127.0.0.1:0", Plaintext(id="dealer"))
    site.servers.append(server)
    only(site.seen(address), "TLS", "is open but does not speak TLS")


def test_wrong_authorities(site: Site, tmp_path: Path) -> None:
    foreign = tls.make_certificates(tmp_path / "foreign", IDS)
    address = site.serve(site.dealer(tls=foreign["dealer"]))
    only(site.seen(address), "certificate", "it is from another authority than")
    # The other way round: we trust the dealer, but it does not trust us.
    mixed = site.tls["dealer"].model_copy(update={"authority": foreign["dealer"].authority})
    address = site.serve(site.dealer(tls=mixed))
    only(site.seen(address), "our certificate", "dealer refuses our certificate")


def test_expired_certificates(site: Site) -> None:
    address = site.serve(site.dealer())
    tls.renew_certificates(site.folder / "certs", ["dealer"], PAST)
    only(site.seen(address), "certificate", "expired on", "this machine's clock says")
    tls.renew_certificates(site.folder / "certs", ["dealer"])
    assert not wrongs(site.seen(address))
    tls.renew_certificates(site.folder / "certs", ["coordinator"], PAST)
    rows = site.diagnose(site.coordinator(address, closed_port()))
    assert wrongs(rows) == {"certificate's validity", "dealer: our certificate", "model-owner: address"}
    tls.renew_certificates(site.folder / "certs", ["coordinator"], timedelta(days=2))


def test_a_certificate_that_names_another(site: Site) -> None:
    address = site.serve(site.dealer(tls=site.tls["model-owner"]))
    only(site.seen(address), "certificate", "it names ['model-owner'], expected 'dealer'")


def test_clocks_that_differ(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    address, clock = site.serve(site.dealer()), diagnose_reply.now
    monkeypatch.setattr(diagnose_reply, "now", lambda: clock() - 3600)
    only(site.seen(address), "clock", "3600 s behind this machine's")
    monkeypatch.setattr(diagnose_reply, "now", lambda: clock() + 120)
    rows = site.seen(address)
    assert not wrongs(rows)
    assert "120 s ahead of" in rows["clock"].found
    assert rows["clock"].remedy


def test_other_versions(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    address = site.serve(site.dealer())
    with monkeypatch.context() as patch:
        patch.setattr(diagnose_reply, "PROTOCOL_VERSION", 99)
        only(site.seen(address), "protocol", "version 99 (release ")
    with monkeypatch.context() as patch:
        patch.setattr(diagnose_reply, "__version__", "9.9.9")
        only(site.seen(address), "protocol", "release 9.9.9, here ")
    server, address = start_server(lambda s: None, "127.0.0.1:0", site.tls["dealer"])
    site.servers.append(server)
    only(site.seen(address), "protocol", "no dealer answers there")


def test_another_role(site: Site, tmp_path: Path) -> None:
    config = site.model_owner(tmp_path).model_copy(update={"id": "dealer", "tls": site.tls["dealer"]})
    only(site.seen(site.serve(config, one_model)), "protocol", "it is a model-owner, expected a dealer")


def test_not_in_its_lists(site: Site, tmp_path: Path) -> None:
    lists = {"coordinators": ["another"], "data_owners": ["coordinator"]}
    only(site.seen(site.serve(site.dealer(**lists))), "serves us", "it does not know 'coordinator' as a coordinator")
    address = site.serve(site.model_owner(tmp_path, coordinators=["another"]), one_model)
    rows = site.diagnose(site.coordinator(site.serve(site.dealer()), address))
    only(rows, "model-owner: serves us")
    assert "coordinators in its file" in rows["model-owner: serves us"].remedy
    assert "model-owner: student" not in rows, "whoever is not served is told no more"


def test_shutting_down(site: Site) -> None:
    address = site.serve(site.dealer())
    site.hosts[0].drain(0)
    only(site.seen(address), "health", "NOT_SERVING")


def test_own_key(site: Site) -> None:
    dealer = site.dealer()
    key = site.tls["dealer"].key
    key.chmod(0o644)
    only(site.diagnose(dealer), "key's permissions", "0644")
    key.chmod(0o600)
    mine = key.read_bytes()
    key.write_bytes(site.tls["coordinator"].key.read_bytes())
    rows = site.diagnose(dealer)
    only(rows, "key", "dealer.key is not the key of")
    assert rows["listening, peers"].remedy
    key.write_bytes(b"nonsense")
    only(site.diagnose(dealer), "certificate files", "is not a private key in PEM format")
    key.unlink()
    only(site.diagnose(dealer), "certificate files", "No such file")
    key.write_bytes(mine)
    key.chmod(0o600)
    assert not wrongs(site.diagnose(dealer))


def test_a_key_may_be_lent_by_its_group(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pod, the key of a secret belongs to root and to the group of the pod, with the mode 0440."""
    dealer = site.dealer()
    key = site.tls["dealer"].key
    key.chmod(0o440)
    only(site.diagnose(dealer), "key's permissions", "0440")
    owner = key.stat().st_uid
    monkeypatch.setattr("parties.diagnosis.own.os.geteuid", lambda: owner + 1)
    assert not wrongs(site.diagnose(dealer))
    for mode in (0o460, 0o444):
        key.chmod(mode)
        only(site.diagnose(dealer), "key's permissions", f"{mode:04o}")
    key.chmod(0o440)
    monkeypatch.setattr("parties.diagnosis.own.os.getegid", lambda: key.stat().st_gid + 1)
    monkeypatch.setattr("parties.diagnosis.own.os.getgroups", list)
    only(site.diagnose(dealer), "key's permissions", "0440")


def test_own_certificate(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = tls.make_certificates(tmp_path / "foreign", ["dealer"])["dealer"]
    mixed = foreign.model_copy(update={"authority": site.tls["dealer"].authority})
    only(site.diagnose(site.dealer(tls=mixed)), "certificate's authority", "did not sign")
    rows = site.diagnose(site.dealer(id="other"))
    only(rows, "certificate's name", "it names ['dealer'], expected 'other'")
    rows = site.diagnose(site.dealer())
    assert "expires soon" in rows["certificate's validity"].found, "these are valid for two days"
    assert rows["certificate's validity"].remedy
    tls.renew_certificates(site.folder / "certs", ["dealer"], timedelta(days=5))
    assert not site.diagnose(site.dealer())["certificate's validity"].remedy
    for days, text in ((-1, "not before"), (30, "expired on")):
        monkeypatch.setattr(own, "now", lambda days=days: datetime.now(UTC) + timedelta(days=days))
        rows = site.diagnose(site.dealer())
        assert wrongs(rows) == {"certificate's validity", "authority's validity"}
        assert text in rows["certificate's validity"].found


def test_own_port(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    check, dealer = f"listen 0.0.0.0:{port}", site.dealer(listen=f"0.0.0.0:{port}")
    assert "free" in site.diagnose(dealer)[check].found
    site.serve(dealer)
    assert site.diagnose(dealer)[check].found == "in use by dealer itself: it is running"
    coordinator = site.coordinator(closed_port(), closed_port()).model_copy(update={"listen": f"127.0.0.1:{port}"})
    found = site.diagnose(coordinator)[f"listen 127.0.0.1:{port}"]
    assert found.status == 2
    assert "in use, and not by coordinator: it names ['dealer']" in found.found
    site.tls["dealer"].authority.write_bytes(b"")
    only(site.diagnose(dealer), "certificate files", "authority.pem is not a certificate in PEM format")


def test_without_tls_only_what_there_is_is_checked(site: Site) -> None:
    changes = {"tls": None, "insecure": Insecure(plaintext=True)}
    config = site.coordinator(site.serve(site.dealer(**changes)), closed_port())
    rows = site.diagnose(config.model_copy(update=changes))
    assert wrongs(rows) == {"model-owner: address"}, rows
    assert rows["dealer: serves us"].found == "as coordinator"
    assert "insecure.plaintext" in rows["certificate"].found


def test_the_command(site: Site) -> None:
    def doctor(config: Path) -> Any:
        return CliRunner().invoke(build_app(), ["doctor", "--config", str(config)], env={"COLUMNS": "200"})

    path = site.folder / "dealer.toml"
    path.write_text(to_toml(site.dealer()))
    result = doctor(path)
    assert result.exit_code == 0, result.output
    assert "Nothing failed; warnings: 1." in result.output
    path.write_text("id = 1")
    result = doctor(path)
    assert result.exit_code == 2
    assert "1 of the checks failed" in result.output
    path.write_text(to_toml(site.coordinator(closed_port(), closed_port())))
    result = doctor(path)
    assert result.exit_code == 3, "a peer's fault"
    assert "is closed" in result.output


def test_ready_means_that_it_takes_sessions(site: Site) -> None:
    def ready(config: AnyConfig) -> Any:
        path = site.folder / "asked.toml"
        path.write_text(to_toml(config))
        return CliRunner().invoke(build_app(), ["party", "--ready", "--config", str(path)], env={"COLUMNS": "200"})

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    dealer = site.dealer(listen=f"0.0.0.0:{port}")
    assert isinstance(ready(dealer).exception, PartyError), "nobody listens"
    site.serve(dealer)
    assert "dealer takes sessions" in ready(dealer).output
    assert ready(dealer).exit_code == 0
    site.tls["dealer"].key.chmod(0o440)  # as a cluster mounts it for a user that is not root
    assert ready(dealer).exit_code == 0
    site.hosts[0].drain(0)
    error = ready(dealer).exception
    assert isinstance(error, PartyError)
    assert "dealer: it takes no sessions: it is shutting down" in str(error)
    for other, match in ((site.dealer(), "names no port"), (site.coordinator(closed_port(), closed_port()), "nobody")):
        with pytest.raises(UserInputError, match=f"--ready: .*{match}"):
            raise ready(other).exception
