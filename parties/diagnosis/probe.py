"""Connects to a peer step by step and finds the step that fails: name, port, handshake, our certificate.

This does not use gRPC, which reports UNAVAILABLE whatever the reason. With TLS 1.3 the peer's verdict on our
certificate arrives after the handshake: as the first data to read, or as the end of the connection.
"""

import socket
import ssl
import threading
from datetime import UTC, datetime

from cryptography import x509

from parties.settings.config import Credentials, PeerAddress, TlsFiles
from parties.wire import identity

STEP_S = 3.0
# A gRPC server answers to the client preface of HTTP/2 with empty SETTINGS.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
# Codes X509_V_ERR_* of OpenSSL.
NOT_YET_VALID, EXPIRED, HOSTNAME_MISMATCH = 9, 10, 62
ALPN = "h2"


class UnreachedError(Exception):
    """A peer that was not reached.

    Args:
        step: the step that failed: "address", "TLS", "certificate", or "our certificate".
        found: what was found there.
        remedy: how to mend it.
    """

    def __init__(self, step: str, found: str, remedy: str) -> None:
        super().__init__(f"{step}: {found}")
        self.step, self.found, self.remedy = step, found, remedy


def split(address: str) -> tuple[str, int]:
    """Split HOST:PORT into host and port."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def probe(peer: PeerAddress, credentials: Credentials) -> x509.Certificate | None:
    """Connect as a party would; return the peer's certificate, or None without TLS.

    Raises:
        UnreachedError: the peer was not reached; the error says why.
    """
    with connect(peer.address) as connection:
        if not isinstance(credentials, TlsFiles):
            return None
        try:
            return _handshake(connection, peer.id, credentials)
        except ssl.SSLCertVerificationError as error:
            shown = _shown(peer, credentials)
            raise UnreachedError("certificate", *_why(error, shown, peer.id, credentials)) from None
        except TimeoutError:
            raise UnreachedError(
                "TLS",
                f"{peer.address} accepts connections but sends nothing",
                "check there whether its process hangs or is not a party; a device on the way may also hold data back",
            ) from None
        except ssl.SSLError as error:
            if "ALERT" in (error.reason or ""):
                raise _refused(peer.id, error.reason or "") from None
            raise _no_tls(peer, error.reason or "it closed the connection") from None
        except OSError as error:
            raise _no_tls(peer, error.strerror or str(error)) from None


def connect(address: str) -> socket.socket:
    """Open a connection to HOST:PORT.

    Raises:
        UnreachedError: the name is unknown, the port is closed, or there is no answer.
    """
    host, port = split(address)
    places = _resolve(host, port)
    for last, place in enumerate(places, start=1 - len(places)):
        connection = socket.socket(place[0], socket.SOCK_STREAM)
        connection.settimeout(STEP_S / len(places))
        try:
            connection.connect(place[1])
        except OSError as error:
            connection.close()
            if last == 0:
                raise UnreachedError("address", *_no_connection(address, error)) from None
        else:
            connection.settimeout(STEP_S)
            return connection
    raise AssertionError("getaddrinfo returns an address or raises")


def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[object, ...]]]:
    found: list[tuple[socket.AddressFamily, tuple[object, ...]]] = []

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return
        found.extend((family, place) for family, _, _, _, place in answers[:3])

    # A resolver that is cut off takes long, and getaddrinfo has no time limit.
    thread = threading.Thread(target=ask, name="resolve", daemon=True)
    thread.start()
    thread.join(STEP_S)
    if thread.is_alive():
        raise UnreachedError(
            "address", f"no answer about the name {host} for {STEP_S:.0f} s", "check this machine's DNS"
        )
    if not found:
        remedy = "correct the address, or add the name to DNS or /etc/hosts"
        raise UnreachedError("address", f"the name {host} does not resolve", remedy)
    return found


def _no_connection(address: str, error: OSError) -> tuple[str, str]:
    if isinstance(error, ConnectionRefusedError):
        return (
            f"{address} is closed: the machine answers, but nothing listens there",
            "start the party there; its listen must be 0.0.0.0:PORT or that machine's address, with this port",
        )
    if isinstance(error, TimeoutError):
        return (
            f"{address} does not answer for {STEP_S:.0f} s: filtered, or the machine is off",
            "let this port through the firewalls between the two machines; check that the machine is up",
        )
    return f"{address}: {error.strerror or error}", "check the address, and the route to it"


def _handshake(connection: socket.socket, peer_id: str, files: TlsFiles) -> x509.Certificate:
    context = _context(files)
    context.load_verify_locations(files.authority)
    with context.wrap_socket(connection, server_hostname=peer_id) as secured:
        shown = _certificate_of(secured)
        if secured.selected_alpn_protocol() != ALPN:
            raise UnreachedError("TLS", "it speaks TLS but not HTTP/2: no party listens there", "correct the address")
        try:
            secured.sendall(PREFACE)
            answer = secured.recv(16)
        except (ssl.SSLError, ConnectionError) as error:
            raise _refused(peer_id, getattr(error, "reason", None) or "it closed the connection") from None
        if not answer:
            raise _refused(peer_id, "it closed the connection")
    return shown


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols([ALPN])
    context.load_cert_chain(identity.certificate_path(files), files.key)
    return context


def _certificate_of(secured: ssl.SSLSocket) -> x509.Certificate:
    shown = secured.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown)


def _shown(peer: PeerAddress, files: TlsFiles) -> x509.Certificate | None:
    """Return the certificate that the peer shows, whether it is trusted or not; send nothing."""
    context = _context(files)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with connect(peer.address) as again, context.wrap_socket(again, server_hostname=peer.id) as secured:
            return _certificate_of(secured)
    except (OSError, UnreachedError):
        return None


def _why(
    error: ssl.SSLCertVerificationError, shown: x509.Certificate | None, peer_id: str, files: TlsFiles
) -> tuple[str, str]:
    """Return what is wrong with a peer's certificate, and how to mend it."""
    clock = f"this machine's clock says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    if error.verify_code == HOSTNAME_MISMATCH:
        named = identity.names(shown) if shown else ["somebody else"]
        return (
            f"it names {named}, expected {peer_id!r}",
            "correct the peer's id or address here, or ask its owner to install its own certificate",
        )
    if error.verify_code == NOT_YET_VALID and shown:
        return f"not valid before {shown.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; {clock}", "set the clocks"
    if error.verify_code == EXPIRED and shown:
        if shown.not_valid_after_utc > datetime.now(UTC):
            return "the authority has expired", "make all certificates anew: mpcformer certs init"
        return (
            f"expired on {shown.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; {clock}",
            f"renew {peer_id}'s certificate: mpcformer certs renew; if this clock is wrong, set it",
        )
    return (
        f"it is from another authority than {files.authority} ({error.verify_message})",
        "give both parties certificates and authority.pem of the same mpcformer certs init",
    )


def _refused(peer_id: str, reason: str) -> UnreachedError:
    return UnreachedError(
        "our certificate",
        f"{peer_id} refuses our certificate ({reason}), although we trust its own",
        "compare authority.pem and the clocks of both machines, and check whether our certificate has expired",
    )


def _no_tls(peer: PeerAddress, reason: str) -> UnreachedError:
    return UnreachedError(
        "TLS",
        f"{peer.address} is open but does not speak TLS ({reason})",
        "something else listens there, or the party runs with insecure.plaintext: correct the address or its file",
    )
