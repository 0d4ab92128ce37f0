"""Makes an authority and a certificate for MySQL, once: ``python certificates.py DIRECTORY NAME [UID]``.

For a compose file or a first trial. Where there is an authority already, take its certificates instead.

Writes ``ca.pem``, ``server.pem`` and ``server.key`` (readable by root and, when given, the user MySQL runs as); what is
there is kept. The authority's own key is thrown away, so nobody can issue a second certificate with it.
"""

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LIFE = timedelta(days=825)


def main(directory: Path, name: str, owner: int | None) -> None:
    """Make all three files, the key last: where it is, the others are."""
    if (directory / "server.key").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Fixnado database authority")])
    server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    issued_by = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)

    def builder(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + LIFE)
        )

    may_sign = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    authority = (
        builder(authority_name, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(may_sign, critical=True)
        .add_extension(identifier, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    certificate = (
        builder(server_name, server_key)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(issued_by, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    key = server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "ca.pem").write_bytes(authority.public_bytes(pem))
    (directory / "server.pem").write_bytes(certificate.public_bytes(pem))
    unfinished = directory / "server.key.unfinished"
    unfinished.touch(mode=0o600)
    unfinished.write_bytes(key)
    if owner is not None:
        os.chown(unfinished, owner, -1)
    unfinished.rename(directory / "server.key")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else None)
