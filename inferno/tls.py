"""TLS for the listener: certificates checked before use and at reload, one context per worker, self-signed trials.

Owns what is spoken (TLS 1.2 or 1.3 as a floor, AEAD suites with forward secrecy only) and what makes a certificate pair
acceptable. Does not know sockets or HTTP. Used by the supervisor (checks before anything is bound), by front workers
(the context) and by `inferno init --self-signed`.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
import stat
from pathlib import Path
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .errors import ConfigError

# TLS 1.2 suites: ephemeral key exchange and AEAD. TLS 1.3 has only such suites.
CIPHERS: Final = (
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:"
    "ECDHE-RSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"
)
EXPIRY_WARNING: Final = datetime.timedelta(days=21)
MAX_PEM_BYTES: Final = 1 << 20
SELF_SIGNED_DAYS: Final = 90


class Certificate(NamedTuple):
    """What the start summary, doctor and metrics show of the certificate in use."""

    subject: str
    names: tuple[str, ...]
    not_after: datetime.datetime  # UTC
    warnings: tuple[str, ...]


def _read_pem(path: Path, setting: str) -> bytes:
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from None
    with os.fdopen(number, "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise ConfigError(f"{setting}: {path} is not a regular file")
        if facts.st_size > MAX_PEM_BYTES:
            raise ConfigError(
                f"{setting}: {path} has {facts.st_size} bytes, a PEM file of at most 1 MiB was expected"
            )
        return file.read(MAX_PEM_BYTES + 1)


def check_key_mode(path: Path) -> None:
    """Refuse a private key that others can read: group may (a secrets group), the world may not."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"server.tls_key_path: cannot read {path}: {error.strerror}") from None
    if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        raise ConfigError(
            f"server.tls_key_path: {path} has mode {stat.S_IMODE(mode):04o} and can be read or changed by others; "
            f"fix it with: chmod 600 {path}"
        )


def check_pair(certificate: Path, key: Path, *, now: datetime.datetime | None = None) -> Certificate:
    """Return the facts of a certificate pair that can be served. Raises ConfigError naming setting and reason."""
    now = now or datetime.datetime.now(datetime.UTC)
    check_key_mode(key)
    chain = _read_pem(certificate, "server.tls_cert_path")
    _read_pem(key, "server.tls_key_path")
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
    except ValueError:
        raise ConfigError(f"server.tls_cert_path: {certificate} holds no PEM certificate") from None
    if leaf.not_valid_after_utc <= now:
        raise ConfigError(
            f"server.tls_cert_path: the certificate expired on {leaf.not_valid_after_utc:%Y-%m-%d}"
        )
    if leaf.not_valid_before_utc > now:
        raise ConfigError(
            f"server.tls_cert_path: the certificate is not valid before {leaf.not_valid_before_utc:%Y-%m-%d}"
        )
    trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        trial.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, ValueError, OSError):
        raise ConfigError(
            "server.tls_cert_path, server.tls_key_path: the private key does not belong to the certificate, "
            "is encrypted, or is no PEM key"
        ) from None
    warnings = []
    left = leaf.not_valid_after_utc - now
    if left < EXPIRY_WARNING:
        warnings.append(
            f"the TLS certificate expires in {left.days} days, on {leaf.not_valid_after_utc:%Y-%m-%d}"
        )
    names: tuple[str, ...] = ()
    try:
        alternative = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(str(getattr(name, "value", name)) for name in alternative)
    except x509.ExtensionNotFound:
        warnings.append("the TLS certificate has no subjectAltName; clients will refuse it")
    return Certificate(leaf.subject.rfc4514_string(), names, leaf.not_valid_after_utc, tuple(warnings))


def _no_password() -> str:
    raise ValueError("encrypted private keys are not supported")


def server_context(
    certificate: Path, key: Path, *, minimum: str, client_ca: Path | None = None
) -> ssl.SSLContext:
    """Return the context of a listener. `minimum` is "1.2" or "1.3"; with `client_ca` clients must show a certificate.

    Raises ConfigError as check_pair does.
    """
    check_pair(certificate, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if minimum == "1.3" else ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    if client_ca is not None:
        load_client_ca(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate, key, password=_no_password)
    return context


def load_client_ca(context: ssl.SSLContext, path: Path) -> None:
    """Take over the authorities whose clients are let in. Raises ConfigError when the file holds none."""
    _read_pem(path, "server.tls_client_ca_path")
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise ConfigError(f"server.tls_client_ca_path: {path} holds no PEM certificate") from None


class ReloadableContext(ssl.SSLContext):
    """What a listener is given once, while the context behind it changes: each new connection gets the one in force.

    All of a context changes at once by that, its authorities and its session tickets too: a client whose authority was
    taken away cannot resume an older session.
    """

    in_force: ssl.SSLContext

    def __new__(cls, in_force: ssl.SSLContext) -> ReloadableContext:
        made = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        made.in_force = in_force
        return made

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        return self.in_force.wrap_bio(*arguments, **options)


def make_self_signed(folder: Path, names: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """Write cert.pem and key.pem (0600) for trials into `folder`; refuse to overwrite. Returns both paths."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    wanted = names or ("localhost", "127.0.0.1", "::1", socket.gethostname())
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, wanted[0][:64])])
    alternative: list[x509.GeneralName] = []
    for name in dict.fromkeys(wanted):
        try:
            alternative.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            alternative.append(x509.DNSName(name))
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=SELF_SIGNED_DAYS))
        .add_extension(x509.SubjectAlternativeName(alternative), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(private, hashes.SHA256())
    )
    pem_key = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pair = folder / "cert.pem", folder / "key.pem"
    for path, content in zip(
        pair, (certificate.public_bytes(serialization.Encoding.PEM), pem_key), strict=True
    ):
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(number, "wb") as file:
            file.write(content)
    return pair
