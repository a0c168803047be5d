"""A running server uses renewed certificates, never half a pair; renewing needs the authority's key."""

import datetime
import socket
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from typer.testing import CliRunner

from mpcformer.cli import build_app
from mpcformer.errors import UserInputError
from parties.roles.dealer import DealerService
from parties.settings.config import TlsFiles
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import identity, tls
from parties.wire.frames import open_channel, start_server

IDS = ["dealer", "model-owner", "data-owner"]
PAST = datetime.timedelta(minutes=-1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tls.make_certificates(tmp_path / "certs", IDS, keep_authority=True)
    return tmp_path / "certs"


@pytest.fixture
def files(folder: Path) -> dict[str, TlsFiles]:
    return {name: tls.files_of(folder, name) for name in IDS}


@pytest.fixture
def dealer(files: dict[str, TlsFiles]) -> Iterator[str]:
    """Return the address of a running dealer."""
    service = DealerService("dealer", ["model-owner", "data-owner"])
    with service.session(b"s" * 16, "model-owner", "data-owner"):
        server, address = start_server(
            lambda s: rpc.add_DealerServicer_to_server(service, s), "127.0.0.1:0", files["dealer"]
        )
        yield address
        server.stop(None)


def serial(path: Path) -> int:
    return identity.load_certificate(path).serial_number


def served(address: str, caller: TlsFiles) -> int:
    """Return the serial number of the certificate that a new connection sees."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(caller.authority)
    context.load_cert_chain(caller.certificate, caller.key)
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=5) as connection,
        context.wrap_socket(connection, server_hostname="dealer") as secured,
    ):
        shown = secured.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


def open_session(address: str, caller: TlsFiles) -> bytes:
    with open_channel(address, "dealer", caller) as channel:
        return rpc.DealerStub(channel).OpenSession(iter([pb.OpenSessionRequest(session_id=b"s" * 16)]), timeout=5).seed


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_running_server_takes_its_renewed_certificate(
    dealer: str, folder: Path, files: dict[str, TlsFiles], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    before = serial(files["dealer"].certificate)
    assert served(dealer, files["data-owner"]) == before
    tls.renew_certificates(folder, ["dealer"])
    after = serial(files["dealer"].certificate)
    assert after != before
    assert served(dealer, files["data-owner"]) == after
    assert "shows a new certificate" in caplog.text
    assert len(open_session(dealer, files["data-owner"])) == 16
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert not list(folder.glob("*.new"))


def test_an_expired_caller_is_let_in_once_it_is_renewed(dealer: str, folder: Path, files: dict[str, TlsFiles]) -> None:
    tls.renew_certificates(folder, ["data-owner"], PAST)
    with pytest.raises(grpc.RpcError):
        open_session(dealer, files["data-owner"])
    tls.renew_certificates(folder, ["data-owner"])
    assert len(open_session(dealer, files["data-owner"])) == 16


def test_a_half_installed_pair_changes_nothing(
    dealer: str, folder: Path, files: dict[str, TlsFiles], caplog: pytest.LogCaptureFixture
) -> None:
    """When the files are copied one by one, the server keeps the old pair until both new files are there."""
    before = serial(files["dealer"].certificate)
    new_certificate, new_key = _new_pair(folder)
    files["dealer"].key.write_bytes(new_key)
    for _ in range(2):
        assert served(dealer, files["data-owner"]) == before
    assert caplog.text.count("still shows the old certificate") == 1, "said once, not at each handshake"
    assert "dealer.key is not the key of" in caplog.text
    files["dealer"].certificate.write_bytes(new_certificate)
    assert served(dealer, files["data-owner"]) == serial(files["dealer"].certificate) != before


def _new_pair(folder: Path) -> tuple[bytes, bytes]:
    authority, key = tls._kept_authority(folder, datetime.timedelta(0))
    return tls._issue("dealer", authority, key, datetime.timedelta(days=1))


def test_another_authoritys_pair_is_not_taken(
    dealer: str, files: dict[str, TlsFiles], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = serial(files["dealer"].certificate)
    foreign = tls.make_certificates(tmp_path / "foreign", ["dealer"])["dealer"]
    files["dealer"].key.write_bytes(foreign.key.read_bytes())
    files["dealer"].certificate.write_bytes(foreign.certificate.read_bytes())
    assert served(dealer, files["data-owner"]) == before
    assert "authority.pem did not sign" in caplog.text


@pytest.mark.parametrize("n_renames", [0, 1])
def test_a_crash_leaves_the_old_pair_or_the_new(
    n_renames: int, dealer: str, folder: Path, files: dict[str, TlsFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, replace, done = serial(files["dealer"].certificate), Path.replace, []

    def crash(path: Path, target: Path) -> Path:
        if len(done) == n_renames:
            raise KeyboardInterrupt
        done.append(path)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        tls.renew_certificates(folder, ["dealer"])
    monkeypatch.undo()
    identity.read(files["dealer"])  # The files belong together.
    assert (served(dealer, files["data-owner"]) == before) == (n_renames == 0)
    tls.renew_certificates(folder, ["dealer"])
    assert not list(folder.glob("*.new"))
    assert served(dealer, files["data-owner"]) == serial(files["dealer"].certificate) != before


def test_refusals_leave_everything_as_it_was(folder: Path, tmp_path: Path) -> None:
    before, key = contents(folder), (folder / "authority.key").read_bytes()
    for ids, message in ((["dealer", "stranger"], "'stranger' has no certificate"), (["authority"], "'authority' has")):
        with pytest.raises(UserInputError, match=message):
            tls.renew_certificates(folder, ids)
    with pytest.raises(UserInputError, match="30 days are longer than the authority is valid, 19 days"):
        tls.renew_certificates(folder, IDS, datetime.timedelta(days=30))
    assert contents(folder) == before
    (folder / "authority.key").write_bytes((folder / "dealer.key").read_bytes())
    with pytest.raises(UserInputError, match=r"authority\.key is not the key of"):
        tls.renew_certificates(folder, IDS)
    (folder / "authority.key").unlink()
    with pytest.raises(UserInputError, match=r"authority\.key is missing"):
        tls.renew_certificates(folder, IDS)
    (folder / "authority.key").write_bytes(key)
    assert contents(folder) == before
    tls.make_certificates(tmp_path / "old", IDS, PAST, keep_authority=True)
    with pytest.raises(UserInputError, match=r"authority\.pem expired on"):
        tls.renew_certificates(tmp_path / "old", IDS)


def test_a_disk_that_is_full_leaves_everything_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, write = contents(folder), identity.write_private

    def full(path: Path, data: bytes) -> None:
        if path.name == "data-owner.key.new":
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(identity, "write_private", full)
    with pytest.raises(UserInputError, match="No space left on device"):
        tls.renew_certificates(folder, IDS)
    assert contents(folder) == before


def test_the_commands(tmp_path: Path) -> None:
    folder, days = tmp_path / "certs", datetime.timedelta(days=1)
    names = [argument for name in IDS for argument in ("--party", name)]
    made = CliRunner().invoke(build_app(), ["certs", "init", *names, "--out", str(folder)], env={"COLUMNS": "300"})
    assert made.exit_code == 0, made.output
    assert "keep it offline, away from all parties" in made.output
    assert stat.S_IMODE((folder / "authority.key").stat().st_mode) == 0o600
    ends = [identity.load_certificate(folder / f"{name}.pem").not_valid_after_utc for name in ("authority", "dealer")]
    assert ends[0] - ends[1] > 200 * days
    before = contents(folder)
    renewed = CliRunner().invoke(
        build_app(), ["certs", "renew", "--certs", str(folder), "--party", "dealer", "--days", "3"]
    )
    assert renewed.exit_code == 0, renewed.output
    changed = {name for name, data in contents(folder).items() if data != before[name]}
    assert changed == {"dealer.pem", "dealer.key"}
    end = identity.load_certificate(folder / "dealer.pem").not_valid_after_utc
    assert 2 * days < end - datetime.datetime.now(datetime.UTC) <= 3 * days
    for arguments, message in (
        (["--party", "dealer", "--days", "0"], "--days: 0"),
        (["--party", "dealer", "--party", "dealer"], "given twice"),
        (["--party", "stranger"], "has no certificate in"),
    ):
        result = CliRunner().invoke(build_app(), ["certs", "renew", "--certs", str(folder), *arguments])
        assert isinstance(result.exception, UserInputError)
        assert message in str(result.exception)


def test_a_simulation_forgets_its_authority(tmp_path: Path) -> None:
    tls.make_certificates(tmp_path, IDS)
    assert not (tmp_path / "authority.key").exists()
