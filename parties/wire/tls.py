"""Mutual TLS: the certificates, and the one place where gRPC's credentials are made.

The subject alternative name of a certificate is the id of its party. The client compares the server's name with the id
that it means to call; the server checks the caller's name in every method (callers.py). Without TLS a caller is who it
says it is. Configurations allow that on the loopback interface only, and gRPC checks again that connections are local.
"""

import datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mpcformer.errors import UserInputError, os_remedy
from parties.settings.config import Credentials, Plaintext, TlsFiles
from parties.wire import identity

VALIDITY = datetime.timedelta(days=2)
# An authority lives longer than the certificates that it signs: these can be renewed, until it expires itself.
AUTHORITY_TIMES = 10
AUTHORITY_VALIDITY = datetime.timedelta(days=730)
CLOCK_SKEW = datetime.timedelta(minutes=5)
AUTHORITY, AUTHORITY_KEY = "authority.pem", "authority.key"


def make_certificates(
    folder: Path, party_ids: list[str], validity: datetime.timedelta = VALIDITY, *, keep_authority: bool = False
) -> dict[str, TlsFiles]:
    """Make an authority and a certificate for each id, in `folder`. Only the user that runs this can read the keys.

    Args:
        folder: where the files are written; it is made if it does not exist.
        party_ids: the parties that get a certificate.
        validity: how long the certificates are valid.
        keep_authority: whether to write authority.key, which renewal needs; otherwise that key is forgotten.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    lifetime = max(validity, min(AUTHORITY_TIMES * validity, AUTHORITY_VALIDITY))
    authority = _certificate("mpcformer authority", authority_key, None, authority_key, lifetime)
    identity.write_private(folder / AUTHORITY, authority.public_bytes(serialization.Encoding.PEM))
    if keep_authority:
        identity.write_private(folder / AUTHORITY_KEY, _key_pem(authority_key))
    made: dict[str, TlsFiles] = {}
    for party_id in party_ids:
        files = made[party_id] = files_of(folder, party_id)
        certificate, key = _issue(party_id, authority, authority_key, validity)
        identity.write_private(files.certificate, certificate)
        identity.write_private(files.key, key)
    return made


def renew_certificates(
    folder: Path, party_ids: list[str], validity: datetime.timedelta = VALIDITY
) -> dict[str, TlsFiles]:
    """Make a new key and certificate for each id, from the authority in `folder`. All are replaced, or none.

    Raises:
        UserInputError: a party has no certificate here; the authority's key is missing or does not fit; the authority
            expires too soon; or the folder cannot be written to.
    """
    authority, authority_key = _kept_authority(folder, validity)
    renewed = {party_id: files_of(folder, party_id) for party_id in party_ids}
    for party_id in renewed:
        _check_known(folder, party_id, authority)
    try:
        for party_id, files in renewed.items():
            identity.finish(files)
            identity.stage(files, *_issue(party_id, authority, authority_key, validity))
    except OSError as error:
        for files in renewed.values():
            identity.discard(files)
        raise UserInputError(
            f"--certs: {folder}: {error.strerror}", f"{os_remedy(error)}; nothing was replaced"
        ) from None
    for files in renewed.values():
        identity.commit(files)
    return renewed


def files_of(folder: Path, party_id: str) -> TlsFiles:
    """Return where the files of a party are."""
    return TlsFiles(
        authority=folder / AUTHORITY, certificate=folder / f"{party_id}.pem", key=folder / f"{party_id}.key"
    )


def server_credentials(credentials: Credentials) -> grpc.ServerCredentials:
    """Return credentials that demand a certificate of every caller and follow our own files when they are renewed."""
    if isinstance(credentials, Plaintext):
        return grpc.local_server_credentials(grpc.LocalConnectionType.LOCAL_TCP)
    served = identity.Served(credentials)
    return grpc.dynamic_ssl_server_credentials(
        served.configuration(), served.renewed, require_client_authentication=True
    )


def channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials:
    """Return credentials that show our certificate and trust one authority."""
    if isinstance(credentials, Plaintext):
        return grpc.local_channel_credentials(grpc.LocalConnectionType.LOCAL_TCP)
    ours = identity.read(credentials)
    return grpc.ssl_channel_credentials(ours.authority, ours.key, ours.certificate)


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    validity: datetime.timedelta,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + validity)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=0 if issuer is None else None), True)
    )
    if issuer is not None:
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), False)
    return builder.sign(issuer_key, hashes.SHA256())


def _issue(
    party_id: str, authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey, validity: datetime.timedelta
) -> tuple[bytes, bytes]:
    """Return a certificate and its new key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate(party_id, key, authority, authority_key, validity)
    return certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _kept_authority(folder: Path, validity: datetime.timedelta) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return the certificate and key that `make_certificates` kept, if they will be valid for long enough."""
    anew = "make everything anew: mpcformer certs init"
    path = folder / AUTHORITY_KEY
    authority = identity.load_certificate(folder / AUTHORITY)
    if not path.is_file():
        raise UserInputError(
            f"--certs: {path} is missing", f"bring the authority's key from where it is kept, or {anew}"
        )
    key = identity.load_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not identity.belongs(key, authority):
        raise UserInputError(
            f"--certs: {path} is not the key of {folder / AUTHORITY}", f"bring the right one, or {anew}"
        )
    left = authority.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    if left <= datetime.timedelta():
        raise UserInputError(f"--certs: {folder / AUTHORITY} expired on {authority.not_valid_after_utc:%Y-%m-%d}", anew)
    if left < validity:
        raise UserInputError(
            f"--days: {validity.days} days are longer than the authority is valid, {left.days} days",
            f"fewer days, or {anew}",
        )
    return authority, key


def _check_known(folder: Path, party_id: str, authority: x509.Certificate) -> None:
    path = files_of(folder, party_id).certificate
    if not path.is_file() or path.name == AUTHORITY:
        known = sorted(other.stem for other in folder.glob("*.pem") if other.name != AUTHORITY)
        raise UserInputError(
            f"--party: {party_id!r} has no certificate in {folder}", f"there are: {', '.join(known) or 'none'}"
        )
    certificate = identity.load_certificate(path)
    if identity.names(certificate) != [party_id] or not identity.issued_by(certificate, authority):
        raise UserInputError(
            f"--party: {path} is not a certificate of {party_id!r} from this authority",
            "restore the folder of certs init",
        )
