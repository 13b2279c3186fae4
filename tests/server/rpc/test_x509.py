"""Certificates as a library that knows all of them reads them, and as we do."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
from datetime import UTC, datetime
from typing import Any

import pytest
from agenthive_server.rpc.x509 import Certificate, read_certificates
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

KEYS: list[tuple[str, Any]] = [
    ("RSA", rsa.generate_private_key(65_537, 2_048)),
    ("ECDSA P-256", ec.generate_private_key(ec.SECP256R1())),
    ("ECDSA P-384", ec.generate_private_key(ec.SECP384R1())),
    ("ECDSA P-521", ec.generate_private_key(ec.SECP521R1())),
    ("unknown", ec.generate_private_key(ec.SECP256K1())),
    ("Ed25519", ed25519.Ed25519PrivateKey.generate()),
]
BEGIN, END = datetime(2024, 2, 29, 12, 30, 15, tzinfo=UTC), datetime(2051, 1, 1, tzinfo=UTC)


def make(key: Any, subject: x509.Name, *extensions: x509.ExtensionType, serial: int = 7) -> x509.Certificate:
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), serial, BEGIN, END)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256())


def named(common_name: str) -> x509.Name:
    organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example")
    return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


@pytest.mark.parametrize(("kind", "key"), KEYS, ids=[kind for kind, _ in KEYS])
def test_serial_subject_dates_and_kind_of_key(kind: str, key: Any) -> None:
    certificate = make(key, named("Žofie"), serial=2**150 + 3)
    (read,) = read_certificates(certificate.public_bytes(Encoding.PEM))
    assert read == Certificate(
        serial=certificate.serial_number,
        subject="Žofie",
        names=(),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        key=kind,
    )


def test_names_are_dns_names_then_addresses() -> None:
    names = x509.SubjectAlternativeName(
        [
            x509.IPAddress(ipaddress.ip_address("::1")),
            x509.DNSName("hive.example"),
            x509.RFC822Name("who@hive.example"),
            x509.DNSName("*.hive.example"),
        ]
    )
    usage = x509.BasicConstraints(ca=True, path_length=None)
    pem = make(KEYS[1][1], named("x"), usage, names).public_bytes(Encoding.PEM)
    assert read_certificates(pem)[0].names == ("hive.example", "*.hive.example", "::1")


def test_a_certificate_without_a_common_name_has_none() -> None:
    pem = make(KEYS[1][1], x509.Name([])).public_bytes(Encoding.PEM)
    assert read_certificates(pem)[0].subject == ""


def test_a_chain_is_read_in_its_order_with_what_stands_between() -> None:
    one, two = (make(KEYS[1][1], named(name)).public_bytes(Encoding.PEM) for name in ("one", "two"))
    chain = b"subject: one\n" + one + b"-----BEGIN EC PRIVATE KEY-----\nx\n-----END EC PRIVATE KEY-----\n" + two
    assert [each.subject for each in read_certificates(chain)] == ["one", "two"]
    assert read_certificates(b"nothing at all") == ()


@pytest.mark.parametrize("length", [0, 1, 10, 100, 200])
def test_a_certificate_that_is_cut_off_is_refused(length: int) -> None:
    der = make(KEYS[1][1], named("x")).public_bytes(Encoding.DER)
    with pytest.raises(ValueError, match="not a certificate"):
        read_certificates(as_pem(der[:length]))


def as_pem(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(der) + b"\n-----END CERTIFICATE-----\n"


WHOLE = make(KEYS[1][1], named("x"), x509.SubjectAlternativeName([x509.DNSName("x")])).public_bytes(Encoding.DER)


@given(st.lists(st.tuples(st.integers(0, 1_000), st.integers(0, 255)), min_size=1, max_size=5))
def test_a_certificate_with_any_bytes_changed_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    der = bytearray(WHOLE)
    for place, value in changes:
        der[place % len(der)] = value
    with contextlib.suppress(ValueError):
        read_certificates(as_pem(bytes(der)))
