"""Checks a party's own certificate and port."""

import errno
import os
import socket
import stat
from datetime import UTC, datetime, timedelta

from cryptography import x509

from mpcformer.doctor import Finding
from mpcformer.errors import UserInputError
from mpcformer.ring import gemm
from parties.diagnosis.findings import warning, wrong
from parties.diagnosis.probe import UnreachedError, probe, split
from parties.settings.config import AnyConfig, CoordinatorConfig, DataOwnerConfig, PeerAddress, ServiceConfig, TlsFiles
from parties.settings.config_file import by_keys
from parties.wire import identity

SOON = timedelta(days=3)
RENEW = "mpcformer certs renew, where the authority's key is kept, and install both files"
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def certificates(config: AnyConfig) -> list[Finding]:
    """Check that the certificate files exist, belong together, name this party and are valid now."""
    files = config.tls
    if files is None:
        return [
            warning(
                "certificate", "none, because of insecure.plaintext", "use that for measurements on one machine only"
            )
        ]
    try:
        authority, key = identity.load_certificate(files.authority), identity.load_key(files.key)
        certificate = identity.load_certificate(identity.certificate_path(files))
    except UserInputError as error:
        return [wrong("certificate files", error.what, error.remedy), *_permissions(files)]
    rows = [Finding("certificate files", "authority, certificate and key are readable"), *_permissions(files)]
    rows.append(
        Finding("key", "belongs to the certificate")
        if identity.belongs(key, certificate)
        else wrong("key", f"{files.key} is not the key of {files.certificate}", identity.MEND)
    )
    rows.append(
        Finding("certificate's authority", "signed it")
        if identity.issued_by(certificate, authority)
        else wrong(
            "certificate's authority",
            f"{files.authority} did not sign {files.certificate}",
            "install authority.pem and the certificate from the same mpcformer certs init",
        )
    )
    named = identity.names(certificate)
    rows.append(
        Finding("certificate's name", config.id)
        if config.id in named
        else wrong(
            "certificate's name",
            f"it names {named or ['nobody']}, expected {config.id!r}",
            f"install {config.id}'s certificate, or correct id",
        )
    )
    return [
        *rows,
        _validity("certificate's validity", certificate, RENEW),
        _validity("authority's validity", authority, "make all certificates anew: mpcformer certs init"),
    ]


def now() -> datetime:
    """Return the time by this machine's clock."""
    return datetime.now(UTC)


def _permissions(files: TlsFiles) -> list[Finding]:
    try:
        status = files.key.stat()
    except OSError:
        return []
    mode = stat.S_IMODE(status.st_mode)
    # A key that belongs to another user, such as root, is lent to the party by its group: so do secrets in a pod.
    lent = status.st_uid != os.geteuid() and status.st_gid in (os.getegid(), *os.getgroups())
    if mode & (0o037 if lent else 0o077):
        found = f"{files.key} has {mode:04o}: other users of this machine may use it"
        return [wrong("key's permissions", found, f"chmod 600 {files.key}")]
    return [Finding("key's permissions", f"{mode:04o}")]


def _validity(check: str, certificate: x509.Certificate, renew: str) -> Finding:
    start, end, clock = certificate.not_valid_before_utc, certificate.not_valid_after_utc, now()
    said = f"this machine's clock says {_time(clock)}"
    if clock < start:
        return wrong(check, f"not before {_time(start)}; {said}", f"set the clock; if it is right: {renew}")
    if clock > end:
        return wrong(check, f"expired on {_time(end)}; {said}", f"{renew}; if the clock is wrong, set it")
    if end - clock < SOON:
        return warning(check, f"expires soon, on {_time(end)}", renew)
    return Finding(check, f"until {_time(end)}")


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def listening(config: AnyConfig) -> list[Finding]:
    """Check that the party can listen on its address, or does so already."""
    if isinstance(config, DataOwnerConfig):
        return []
    check, (host, port) = f"listen {config.listen}", split(config.listen)
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            attempt.bind(place)
    except socket.gaierror:
        return [wrong(check, f"{host} does not resolve", "give an address of this machine, or 0.0.0.0")]
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return [_in_use(config, check)]
        remedy = "take a port above 1023" if error.errno == errno.EACCES else "give an address of this machine"
        return [wrong(check, error.strerror or str(error), remedy)]
    return [
        Finding(check, "free: the party is not running here" if port else "the operating system chooses a free port")
    ]


def here(listen: str) -> str:
    """Return the address at which this machine reaches a party that listens at `listen`, HOST:PORT."""
    host, port = split(listen)
    return f"{_bracketed(ANY.get(host, host))}:{port}"


def _in_use(config: CoordinatorConfig | ServiceConfig, check: str) -> Finding:
    """Find out whether the party itself uses its port, or something else does."""
    try:
        shown = probe(PeerAddress(id=config.id, address=here(config.listen)), config.credentials)
    except UnreachedError as error:
        if "certificate" in error.step and not error.found.startswith("it names"):
            # It speaks TLS as a party does; it may well be this party, with a certificate that nobody takes.
            return wrong(
                check,
                f"in use, perhaps by {config.id} itself: its certificate, or ours, is not taken ({error.found})",
                f"mend the certificate and start {config.id} again; if it is something else, choose another port",
            )
        return wrong(
            check,
            f"in use, and not by {config.id}: {error.found}",
            "end the process that listens there, or choose another port",
        )
    if shown is None or config.tls is None:
        return Finding(check, "in use; without TLS it is unknown by whom")
    if shown != identity.load_certificate(identity.certificate_path(config.tls)):
        return wrong(
            check,
            f"in use by {config.id}, which shows another certificate than {config.tls.certificate}",
            "look in its log for why it does not use the new one, or start it again",
        )
    return Finding(check, f"in use by {config.id} itself: it is running")


def device(config: AnyConfig) -> list[Finding]:
    """Check that this machine has the device on which the party multiplies."""
    if isinstance(config, CoordinatorConfig):
        return []
    try:
        gemm.check_device(config.device)
    except UserInputError as error:
        named = by_keys(error)
        return [wrong("device", named.what, named.remedy)]
    return [Finding("device", config.device)]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
