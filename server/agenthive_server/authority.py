"""A certificate authority for development: one folder with its key, and certificates for a server and its clients.

Needs `cryptography` (the extra `auth`). Dates, names and purposes are as RFC 5280 wants them; keys are ECDSA P-256.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agenthive_server.kernel.clock import Clock

LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "::1")
"""Names every server certificate has."""

CA_DAYS: Final = 3_650
DAYS: Final = 365
SKEW: Final = timedelta(minutes=5)
"""Certificates begin this much earlier: the clock of the machine that checks them may be behind."""

_PRINCIPAL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,63}")
_DNS_NAME: Final = re.compile(
    r"(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
)
_LONGEST_NAME: Final = 64


class AuthorityError(Exception):
    """A certificate cannot be made: a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Where a certificate and its key are."""

    certificate: Path
    key: Path


def pair_in(folder: Path, name: str) -> Pair:
    """Return where the certificate called `name` (`ca`, `server`, `client-ana`) is or would be."""
    return Pair(folder / f"{name}.pem", folder / f"{name}-key.pem")


class Authority:
    """Signs. Its folder is private to its user, and so is every file in it."""

    def __init__(self, folder: Path, certificate: x509.Certificate, key: EllipticCurvePrivateKey, clock: Clock) -> None:
        """Use `new` or `open`."""
        self.folder = folder
        self._certificate = certificate
        self._key = key
        self._clock = clock

    @classmethod
    def new(cls, folder: Path, clock: Clock, *, days: int = CA_DAYS) -> Authority:
        """Make an authority in a folder. Raises `AuthorityError` when there is one, or a part of one, already."""
        pair = pair_in(folder, "ca")
        for path in (pair.certificate, pair.key):
            if path.exists():
                raise AuthorityError(f"{path} exists: another authority would make all its certificates worthless")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = generate_private_key(SECP256R1())
        # Two authorities of the same name could not be told apart in an error.
        name = _name(f"Agent Hive development authority {x509.random_serial_number():040x}"[:_LONGEST_NAME])
        certificate = _ca_certificate(name, key, clock, days)
        _write(pair.key, _key_text(key))
        _write(pair.certificate, certificate.public_bytes(Encoding.PEM))
        return cls(folder, certificate, key, clock)

    @classmethod
    def open(cls, folder: Path, clock: Clock) -> Authority:
        """Return the authority of a folder. Raises `AuthorityError`."""
        pair = pair_in(folder, "ca")
        certificate, key = _load_certificate(pair.certificate), _load_key(pair.key)
        if certificate.public_key() != key.public_key():
            raise AuthorityError(f"the key in {pair.key} is not that of the certificate in {pair.certificate}")
        return cls(folder, certificate, key, clock)

    def issue_server(self, hosts: Sequence[str], *, days: int = DAYS, replace: bool = False) -> Pair:
        """Make the certificate of a server that is reached under `hosts`, and under the names of this machine alone.

        Raises `AuthorityError` for a host that is none, and where there is a certificate unless told to replace it.
        """
        names = [_general_name(host) for host in dict.fromkeys((*hosts, *LOCAL_NAMES))]
        first = (*hosts, *LOCAL_NAMES)[0]
        subject = _name(first if len(first) <= _LONGEST_NAME else "agenthive server")
        extensions = (x509.SubjectAlternativeName(names), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]))
        return self._issue(pair_in(self.folder, "server"), subject, extensions, days, replace=replace)

    def issue_client(self, principal: str, *, days: int = DAYS, replace: bool = False) -> Pair:
        """Make the certificate of a caller, worker or runner; its common name says who it is.

        Raises `AuthorityError` for a name that is none, and where there is a certificate unless told to replace it.
        """
        if not _PRINCIPAL.fullmatch(principal):
            raise AuthorityError(
                f"{principal!r}: expected 1 to 64 letters, digits and `._@:-`, beginning with a letter or digit"
            )
        extensions = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),)
        pair = pair_in(self.folder, f"client-{principal}")
        return self._issue(pair, _name(principal), extensions, days, replace=replace)

    def renew(self, name: str, *, days: int | None = None, new_key: bool = False) -> Pair:
        """Make a certificate again, for as long as it was valid or for `days`; names and, by default, key stay.

        With the same key only one file changes, at once: whoever reads it has the old or the new one. Raises
        `AuthorityError` for one this authority has not made.
        """
        pair = pair_in(self.folder, name)
        old = _load_certificate(pair.certificate)
        days = (old.not_valid_after_utc - old.not_valid_before_utc).days if days is None else days
        if name == "ca":
            made = _ca_certificate(old.subject, self._key, self._clock, days)
            _write(pair.certificate, made.public_bytes(Encoding.PEM), replace=True)
            return pair
        try:
            old.verify_directly_issued_by(self._certificate)
        except (InvalidSignature, ValueError, TypeError):
            raise AuthorityError(f"{pair.certificate} was not made by the authority in {self.folder}") from None
        kinds = (x509.SubjectAlternativeName, x509.ExtendedKeyUsage)
        kept = tuple(each.value for each in old.extensions if isinstance(each.value, kinds))
        key = None if new_key else _load_key(pair.key)
        return self._issue(pair, old.subject, kept, days, key=key, replace=True)

    def _issue(
        self,
        pair: Pair,
        subject: x509.Name,
        extensions: Sequence[x509.ExtensionType],
        days: int,
        *,
        key: EllipticCurvePrivateKey | None = None,
        replace: bool,
    ) -> Pair:
        if not replace and pair.certificate.exists():
            raise AuthorityError(f"{pair.certificate} exists: `renew` it, or say --replace to make it anew")
        begin, end = _span(self._clock, days)
        last = self._certificate.not_valid_after_utc
        if begin + SKEW >= last:
            raise AuthorityError(f"the authority in {self.folder} has ended: make one in another folder")
        made_key = key or generate_private_key(SECP256R1())
        builder = _builder(subject, self._certificate.subject, made_key, begin, min(end, last))
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(ca=False), critical=True)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(self._key, SHA256())
        if key is None:
            _write(pair.key, _key_text(made_key), replace=True)
        _write(pair.certificate, certificate.public_bytes(Encoding.PEM), replace=True)
        return pair


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if len(host) > 253 or not _DNS_NAME.fullmatch(host):
        raise AuthorityError(f"--host {host!r}: expected a DNS name (in ASCII) or an IP address, without a port")
    return x509.DNSName(host)


def _span(clock: Clock, days: int) -> tuple[datetime, datetime]:
    now = datetime.fromtimestamp(int(clock.now()), UTC)
    return now - SKEW, now + timedelta(days=days)


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _builder(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _ca_certificate(name: x509.Name, key: EllipticCurvePrivateKey, clock: Clock, days: int) -> x509.Certificate:
    builder = _builder(name, name, key, *_span(clock, days))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.add_extension(_usage(ca=True), critical=True).sign(key, SHA256())


def _key_text(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise AuthorityError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise AuthorityError(f"{path}: no certificate in PEM form") from None


def _load_key(path: Path) -> EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise AuthorityError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError):
        raise AuthorityError(f"{path}: no private key in PEM form, or an encrypted one") from None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise AuthorityError(f"{path}: not a key that was made here")
    return key


def _write(path: Path, text: bytes, *, replace: bool = False) -> None:
    """Write a private file; one that is replaced is there all the time. Raises `AuthorityError`, also if it exists."""
    target = path.with_name(f".{path.name}.new") if replace else path
    try:
        if replace:
            target.unlink(missing_ok=True)
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            target.replace(path)
    except OSError as error:
        raise AuthorityError(f"{path}: {error.strerror}") from None
