"""Certificates of a test's own authority: for servers, and for clients that show one."""

from __future__ import annotations

import datetime
from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Issued = tuple[ec.EllipticCurvePrivateKey, x509.Certificate]


def issue(name: str, issuer: Issued | None = None, extensions: Iterable[x509.ExtensionType] = ()) -> Issued:
    """Return a key and a certificate, of `issuer` or of a new authority; valid for 90 days."""
    now = datetime.datetime.now(datetime.UTC)
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder().subject_name(subject).public_key(private.public_key())
        .issuer_name(subject if issuer is None else issuer[1].subject)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5)).not_valid_after(now + datetime.timedelta(days=90))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )  # fmt: skip
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return private, builder.sign(private if issuer is None else issuer[0], hashes.SHA256())
