"""Mutual TLS: certificates, and the one place where gRPC's credentials are made.

A certificate's subject alternative name is the party's id. The client checks the server's name against the id it means
to call, the server the caller's in every method. Without TLS, which configurations allow on the loopback interface
alone and gRPC's own check of local connections again, a caller is who it says it is.
"""

import datetime
import os
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from parties.config import Credentials, Plaintext, TlsFiles

VALIDITY = datetime.timedelta(days=2)
CLOCK_SKEW = datetime.timedelta(minutes=5)
PARTY_HEADER = "party"


def make_certificates(
    folder: Path, party_ids: list[str], validity: datetime.timedelta = VALIDITY
) -> dict[str, TlsFiles]:
    """An authority and a certificate for each id, below `folder`; keys are readable by their owner alone.

    The authority's key is used here and forgotten: renewal makes a new authority.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("mpcformer authority", authority_key, None, authority_key, validity)
    authority_path = folder / "authority.pem"
    _write(authority_path, authority.public_bytes(serialization.Encoding.PEM))
    files: dict[str, TlsFiles] = {}
    for party_id in party_ids:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(party_id, key, authority, authority_key, validity)
        paths = TlsFiles(
            authority=authority_path, certificate=folder / f"{party_id}.pem", key=folder / f"{party_id}.key"
        )
        _write(paths.certificate, certificate.public_bytes(serialization.Encoding.PEM))
        _write(
            paths.key,
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )
        files[party_id] = paths
    return files


def server_credentials(credentials: Credentials) -> grpc.ServerCredentials:
    """Demand a certificate of every caller."""
    if isinstance(credentials, Plaintext):
        return grpc.local_server_credentials(grpc.LocalConnectionType.LOCAL_TCP)
    pair = (credentials.key.read_bytes(), credentials.certificate.read_bytes())
    return grpc.ssl_server_credentials([pair], credentials.authority.read_bytes(), require_client_auth=True)


def channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials:
    """Show our certificate, and trust one authority."""
    if isinstance(credentials, Plaintext):
        return grpc.local_channel_credentials(grpc.LocalConnectionType.LOCAL_TCP)
    return grpc.ssl_channel_credentials(
        credentials.authority.read_bytes(), credentials.key.read_bytes(), credentials.certificate.read_bytes()
    )


def caller_names(context: grpc.ServicerContext) -> list[str]:
    """The ids in the caller's certificate; without TLS what it says."""
    secured = context.auth_context()
    if secured.get("transport_security_type") == [b"local"]:
        return [value for key, value in context.invocation_metadata() if key == PARTY_HEADER]
    return [name.decode() for name in secured.get("x509_subject_alternative_name", [])]


def require_caller(context: grpc.ServicerContext, *allowed: str) -> str:
    """The caller's id, if it is one of `allowed`; otherwise the call ends with PERMISSION_DENIED naming both."""
    names = caller_names(context)
    for name in allowed:
        if name in names:
            return name
    context.abort(
        grpc.StatusCode.PERMISSION_DENIED,
        f"the caller's certificate names {names or ['nobody']}, expected one of {list(allowed)}",
    )
    raise AssertionError("abort raises")


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


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(data)
