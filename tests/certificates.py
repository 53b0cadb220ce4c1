"""Certificates for tests of TLS: an authority of their own, and what it issues."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_PEM = serialization.Encoding.PEM


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Authority:
    """Signs certificates; ``certificate`` is its own, as a file."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder, self._key, self._name = folder, ec.generate_private_key(ec.SECP256R1()), _name(folder.name)
        own = self._begin(self._name, self._key, x509.BasicConstraints(ca=True, path_length=0))
        self.certificate = folder / "authority.pem"
        self.certificate.write_bytes(own.sign(self._key, hashes.SHA256()).public_bytes(_PEM))

    def _begin(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, constraints: x509.BasicConstraints
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        return builder.add_extension(constraints, critical=True)

    def issue_pair(self, host: str) -> tuple[Path, Path]:
        """Return the files of a key and its certificate for a host's name or address."""
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        builder = self._begin(_name(host), key, x509.BasicConstraints(ca=False, path_length=None))
        builder = builder.add_extension(x509.SubjectAlternativeName([name]), critical=False)
        files = self._folder / f"{host}-key.pem", self._folder / f"{host}.pem"
        plain = serialization.NoEncryption()
        files[0].write_bytes(key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, plain))
        files[1].write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(_PEM))
        return files

    def issue(self, host: str) -> Path:
        """Return a file that holds both."""
        key, certificate = self.issue_pair(host)
        both = self._folder / f"{host}-both.pem"
        both.write_bytes(key.read_bytes() + certificate.read_bytes())
        return both
