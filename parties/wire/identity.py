"""The files with a party's key and certificate: used only if they belong together, and replaced together.

Two files cannot be renamed at the same moment. Both new files are written beside the old ones, then the key is renamed,
then the certificate. A reader that finds a key without its certificate looks for the certificate under its temporary
name. At every moment, even after a crash, a reader therefore finds either the old pair or the new one.
"""

import datetime
import logging
import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

from mpcformer.errors import UserInputError, os_remedy
from parties.settings import metrics
from parties.settings.config import TlsFiles

log = logging.getLogger(__name__)
MEND = "install both files of the pair, as mpcformer certs wrote them"


@dataclass(frozen=True)
class Identity:
    """PEM bytes of the trusted authority, and of a certificate and a key that belong together."""

    authority: bytes
    certificate: bytes
    key: bytes = field(repr=False)


def load_certificate(path: Path) -> x509.Certificate:
    """Read a certificate from its file.

    Raises:
        UserInputError: the file is unreadable or is no certificate.
    """
    return _certificate(path, _bytes(path))


def load_key(path: Path) -> PrivateKeyTypes:
    """Read a private key from its file.

    Raises:
        UserInputError: the file is unreadable or is no key.
    """
    return _key(path, _bytes(path))


def belongs(key: PrivateKeyTypes, certificate: x509.Certificate) -> bool:
    """Return whether the certificate belongs to this key."""
    return _public(key.public_key()) == _public(certificate.public_key())


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Return whether that authority signed the certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def names(certificate: x509.Certificate) -> list[str]:
    """Return the ids that a certificate names."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return extension.value.get_values_for_type(x509.DNSName)


def beside(path: Path) -> Path:
    """Return where the successor of a file lies until it takes the file's name."""
    return path.with_name(f"{path.name}.new")


def watch_expiry(files: TlsFiles) -> None:
    """Let the metrics tell when a party's certificate and its authority's end, as the files say at each look."""

    def ends(path: Callable[[], Path]) -> float:
        try:
            return load_certificate(path()).not_valid_after_utc.timestamp()
        except UserInputError:
            return math.nan

    metrics.certificate_ends.labels("certificate").set_function(lambda: ends(lambda: certificate_path(files)))
    metrics.certificate_ends.labels("authority").set_function(lambda: ends(lambda: files.authority))


def certificate_path(files: TlsFiles) -> Path:
    """Return the file of the certificate that belongs to the key: its successor after an interrupted replacement."""
    successor = beside(files.certificate)
    if successor.is_file():
        key = load_key(files.key)
        if not belongs(key, load_certificate(files.certificate)) and belongs(key, load_certificate(successor)):
            return successor
    return files.certificate


def read(files: TlsFiles) -> Identity:
    """Read the files of a party.

    Raises:
        UserInputError: a file is unreadable or not what it should be, or key and certificate do not belong together.
    """
    try:
        return _read(files)
    except UserInputError:
        return _read(files)  # The files may have been renamed between two reads.


def check_own(files: TlsFiles, party_id: str) -> None:
    """Check that a party's certificate is its own, from the authority that it trusts, and valid now.

    Raises:
        UserInputError: it is not; everybody would turn the party away.
    """
    identity = read(files)
    certificate = x509.load_pem_x509_certificate(identity.certificate)
    authority = x509.load_pem_x509_certificate(identity.authority)
    if not issued_by(certificate, authority):
        raise UserInputError(f"{files.authority} did not sign {files.certificate}", MEND)
    if names(certificate) != [party_id]:
        named = ", ".join(map(repr, names(certificate))) or "nobody"
        raise UserInputError(f"{files.certificate} names {named}, expected {party_id!r} alone", MEND)
    now = datetime.datetime.now(datetime.UTC)
    for path, each in ((files.certificate, certificate), (files.authority, authority)):
        if not each.not_valid_before_utc <= now <= each.not_valid_after_utc:
            raise UserInputError(
                f"{path} is valid from {each.not_valid_before_utc:%Y-%m-%d %H:%M} to"
                f" {each.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and this machine's clock says {now:%Y-%m-%d %H:%M}",
                "renew it: mpcformer certs renew; if the clock is wrong, set it",
            )


class Served:
    """The certificate that a server shows; gRPC asks before each handshake whether the files were renewed.

    Raises:
        UserInputError: the files do not belong together when the server starts.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files, self._lock = files, threading.Lock()
        self._seen = self._refused = self._stamps()
        self.identity = read(files)

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """Return what the server shows now."""
        shown = self.identity
        return grpc.ssl_server_certificate_configuration([(shown.key, shown.certificate)], shown.authority)

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what the server shows from now on, or None if nothing has changed."""
        with self._lock:
            # The stamps are taken before reading: files that change meanwhile are read again at the next handshake.
            stamps = self._stamps()
            if stamps == self._seen:
                return None
            try:
                identity = read(self._files)
                certificate = x509.load_pem_x509_certificate(identity.certificate)
                if not issued_by(certificate, x509.load_pem_x509_certificate(identity.authority)):
                    raise UserInputError(f"{self._files.authority} did not sign {self._files.certificate}", MEND)
            except UserInputError as error:
                if stamps != self._refused:
                    log.warning("still shows the old certificate: %s", error)
                self._refused = stamps
                return None
            self._seen = stamps
            if identity == self.identity:
                return None
            self.identity = identity
            log.info("shows a new certificate, valid until %s", f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
            return self.configuration()

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        files = self._files
        return [_stamp(path) for path in (files.authority, files.certificate, beside(files.certificate), files.key)]


def stage(files: TlsFiles, certificate: bytes, key: bytes) -> None:
    """Write a new pair beside the old one."""
    for path, data in ((files.certificate, certificate), (files.key, key)):
        beside(path).unlink(missing_ok=True)
        write_private(beside(path), data)


def discard(files: TlsFiles) -> None:
    """Remove what was staged."""
    for path in (files.certificate, files.key):
        beside(path).unlink(missing_ok=True)


def commit(files: TlsFiles) -> None:
    """Put the staged pair in the place of the old one, the key first."""
    for path in (files.key, files.certificate):
        beside(path).replace(path)
        _flush_folder(path.parent)


def finish(files: TlsFiles) -> None:
    """Complete a replacement that was interrupted between its renames."""
    if files.key.is_file() and certificate_path(files) != files.certificate:
        beside(files.certificate).replace(files.certificate)


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that no other user can read, and flush it to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(descriptor)


def _read(files: TlsFiles) -> Identity:
    path = certificate_path(files)
    identity = Identity(_bytes(files.authority), _bytes(path), _bytes(files.key))
    _certificate(files.authority, identity.authority)
    if not belongs(_key(files.key, identity.key), _certificate(path, identity.certificate)):
        raise UserInputError(f"{files.key} is not the key of {files.certificate}", MEND)
    return identity


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserInputError(
            f"{path}: {error.strerror}", os_remedy(error, "check the path, and which user owns the file")
        ) from None


def _certificate(path: Path, data: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(data)
        # These are read when they are asked for.
        certificate.public_key()
        names(certificate)
        return certificate
    except Exception:  # whatever a damaged one leads to
        raise UserInputError(f"{path} is not a certificate in PEM format", MEND) from None


def _key(path: Path, data: bytes) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UserInputError(f"{path} is not a private key in PEM format, or has a password", MEND) from None


def _public(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
