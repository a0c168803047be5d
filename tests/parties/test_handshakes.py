"""Bad handshakes between the owners, with either end as the liar, are refused with a typed error and serve nothing."""

import datetime
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mpcformer.channel import Spec
from mpcformer.errors import PartyError
from parties.settings.config import TlsFiles
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import frames, tls
from parties.wire.frame import Frame
from parties.wire.frames import open_channel, start_server
from parties.wire.peer_channel import PeerChannel
from tests.parties.sessions import PeerService

DAY, PAST = datetime.timedelta(days=1), datetime.timedelta(minutes=-1)
GREETING = torch.arange(3)
# With wait_for_ready a call whose handshake is refused tries again until the deadline.
DEADLINE_S, LIMIT_S = 0.7, 5.0


@dataclass
class Authority:
    """A certificate authority with its key."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @staticmethod
    def new(name: str = "mpcformer authority") -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        return Authority(key, tls._certificate(name, key, None, key, DAY))

    def issue(self, folder: Path, name: str, trusted: "Authority", validity: datetime.timedelta = DAY) -> TlsFiles:
        """Return the files of `name`, who trusts the authority `trusted`."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self.write(folder, tls._certificate(name, key, self.certificate, self.key, validity), key, trusted)

    def self_signed(self, folder: Path, name: str) -> TlsFiles:
        """Return files of `name` with a certificate that it signed itself; it trusts this authority."""
        own = Authority.new(name)
        certificate = tls._certificate(name, own.key, own.certificate, own.key, DAY)
        return self.write(folder, certificate, own.key, self)

    @staticmethod
    def write(
        folder: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, trusted: "Authority"
    ) -> TlsFiles:
        pem = serialization.Encoding.PEM
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        files = TlsFiles(authority=folder / "authority.pem", certificate=folder / "own.pem", key=folder / "own.key")
        folder.mkdir()
        files.authority.write_bytes(trusted.certificate.public_bytes(pem))
        files.certificate.write_bytes(certificate.public_bytes(pem))
        files.key.write_bytes(private)
        return files


class Served(PeerChannel):
    """The model owner's end, which notes whether any stream reached it."""

    served = False

    def attach(self, incoming: Iterator[Frame], cancel: Callable[[], object]) -> None:
        self.served = True
        super().attach(incoming, cancel)


@dataclass
class Ended:
    """The end of a call: what was received, the error, and whether the server served the stream."""

    received: list[torch.Tensor]
    error: PartyError | None
    served: bool


def call(server_files: TlsFiles, caller_files: TlsFiles, wait: bool) -> Ended:
    """Let the data owner call the model owner, who sends a greeting; as in production, but with a short deadline."""
    serving = Served(party_id="model-owner", peer_id="data-owner", session_id=b"s" * 16)
    serving.send([GREETING])
    server, address = start_server(
        lambda s: rpc.add_PeerServicer_to_server(PeerService(serving), s), "127.0.0.1:0", server_files
    )
    channel = PeerChannel(party_id="data-owner", peer_id="model-owner", session_id=b"s" * 16)
    link = open_channel(address, "model-owner", caller_files)
    timeout = DEADLINE_S if wait else LIMIT_S
    stream = rpc.PeerStub(link).Exchange(channel.outgoing(), wait_for_ready=wait, timeout=timeout)
    channel.attach(stream, stream.cancel)
    ended = Ended([], None, False)
    started = time.monotonic()
    try:
        ended.received = channel.receive([Spec.of(GREETING)])
    except PartyError as error:
        ended.error = error
    assert time.monotonic() - started < LIMIT_S
    ended.served = serving.served
    channel.close()
    serving.close()
    link.close()
    server.stop(0)
    return ended


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.new()


def liars_files(what: str, who: str, authority: Authority, folder: Path) -> TlsFiles:
    """Return the files of a liar that claims to be `who`; it trusts the right authority, so only its peer refuses."""
    if what == "another authority":
        return Authority.new("another authority").issue(folder, who, authority)
    if what == "an authority of the same name":
        return Authority.new().issue(folder, who, authority)
    if what == "expired":
        return authority.issue(folder, who, authority, PAST)
    if what == "self-signed":
        return authority.self_signed(folder, who)
    return authority.issue(folder, "dealer", authority)


@pytest.mark.parametrize("wait", [False, True], ids=["at once", "wait for ready"])
@pytest.mark.parametrize("liar", ["model-owner", "data-owner"])
@pytest.mark.parametrize(
    "what", ["another authority", "an authority of the same name", "expired", "self-signed", "another party's"]
)
def test_a_bad_certificate(what: str, liar: str, wait: bool, authority: Authority, tmp_path: Path) -> None:
    files = {name: authority.issue(tmp_path / name, name, authority) for name in ("model-owner", "data-owner")}
    files[liar] = liars_files(what, liar, authority, tmp_path / "liar")
    ended = call(files["model-owner"], files["data-owner"], wait)
    assert not ended.served
    assert not ended.received
    assert ended.error is not None
    assert ended.error.party == "model-owner"
    if what == "another party's" and liar == "data-owner":
        assert "names ['dealer'], which is not served here" in ended.error.what


@pytest.mark.parametrize("wait", [False, True], ids=["at once", "wait for ready"])
def test_no_certificate(wait: bool, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: authority.issue(tmp_path / name, name, authority) for name in ("model-owner", "data-owner")}
    monkeypatch.setattr(
        frames.tls, "channel_credentials", lambda own: grpc.ssl_channel_credentials(own.authority.read_bytes())
    )
    ended = call(files["model-owner"], files["data-owner"], wait)
    assert not ended.served
    assert not ended.received
    assert ended.error is not None
    assert ended.error.party == "model-owner"


def test_good_certificates_are_all_that_is_needed(authority: Authority, tmp_path: Path) -> None:
    """The same call succeeds with good certificates, so the other calls fail because of theirs."""
    files = {name: authority.issue(tmp_path / name, name, authority) for name in ("model-owner", "data-owner")}
    ended = call(files["model-owner"], files["data-owner"], wait=True)
    assert ended.error is None
    assert ended.served
    assert torch.equal(ended.received[0], GREETING)
