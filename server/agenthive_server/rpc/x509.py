"""What a certificate says of itself: names, dates and kind of key, read from its DER (RFC 5280) without a library.

The server needs no more than this of a certificate: what proves anything is done by gRPC and by OpenSSL.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)

_INTEGER, _OCTET_STRING, _OID, _SEQUENCE, _SET = 0x02, 0x04, 0x06, 0x30, 0x31
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_VERSION, _EXTENSIONS = 0xA0, 0xA3
_DNS_NAME, _IP_ADDRESS = 0x82, 0x87
_COMMON_NAME: Final = bytes.fromhex("550403")
_ALTERNATIVE_NAMES: Final = bytes.fromhex("551d11")
_EC_KEY: Final = bytes.fromhex("2a8648ce3d0201")
_KEYS: Final = {
    bytes.fromhex("2a864886f70d010101"): "RSA",
    bytes.fromhex("2b6570"): "Ed25519",
    bytes.fromhex("2b6571"): "Ed448",
    bytes.fromhex("2a8648ce3d030107"): "ECDSA P-256",
    bytes.fromhex("2b81040022"): "ECDSA P-384",
    bytes.fromhex("2b81040023"): "ECDSA P-521",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """One certificate. Times are seconds since 1970; `names` are what it may be reached under, DNS names first."""

    serial: int
    subject: str
    """The common name; empty where it has none."""
    names: tuple[str, ...]
    not_before: float
    not_after: float
    key: str
    """The kind of its key, for example `ECDSA P-256`."""


def read_certificates(pem: bytes) -> tuple[Certificate, ...]:
    """Return the certificates of a PEM text in their order; what stands between them is passed over.

    Raises ValueError when one of them cannot be read.
    """
    try:
        return tuple(_certificate(base64.b64decode(block)) for block in _PEM.findall(pem))
    except (ValueError, IndexError, OverflowError) as error:
        raise ValueError(f"not a certificate: {error}") from None


def _certificate(der: bytes) -> Certificate:
    fields = list(_elements(_first(_first(der, _SEQUENCE), _SEQUENCE)))
    if fields[0][0] == _VERSION:
        del fields[0]
    (serial_tag, serial), _, _, (_, validity), (_, subject), (_, key) = fields[:6]
    if serial_tag != _INTEGER:
        raise ValueError("no serial number")
    not_before, not_after = (_time(tag, text) for tag, text in _elements(validity))
    extensions = next((content for tag, content in fields[6:] if tag == _EXTENSIONS), b"")
    return Certificate(
        serial=int.from_bytes(serial, "big"),
        subject=_common_name(subject),
        names=tuple(_alternative_names(extensions)),
        not_before=not_before,
        not_after=not_after,
        key=_kind_of_key(key),
    )


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element (definite lengths, as DER has it)."""
    while data:
        tag, length, start = data[0], data[1], 2
        if length >= 0x80:
            start += length & 0x7F
            length = int.from_bytes(data[2:start], "big")
        if length > len(data) - start:
            raise ValueError("cut off")
        yield tag, data[start : start + length]
        data = data[start + length :]


def _parts(data: bytes, tag: int) -> Iterator[bytes]:
    """Yield the contents of the elements with this tag."""
    return (content for found, content in _elements(data) if found == tag)


def _first(data: bytes, tag: int) -> bytes:
    for content in _parts(data, tag):
        return content
    raise ValueError("something is missing")


def _time(tag: int, text: bytes) -> float:
    digits = text.decode("ascii")
    if tag == _UTC_TIME:  # two digits of a year between 1950 and 2049
        digits = ("19" if digits >= "50" else "20") + digits
    elif tag != _GENERALIZED_TIME:
        raise ValueError("no date")
    return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _common_name(subject: bytes) -> str:
    for relative in _parts(subject, _SET):
        for attribute in _parts(relative, _SEQUENCE):
            (_, name), (_, value) = _elements(attribute)
            if name == _COMMON_NAME:
                return value.decode("utf-8", "replace")
    return ""


def _kind_of_key(key: bytes) -> str:
    oids = [*_parts(_first(key, _SEQUENCE), _OID), b""]
    return _KEYS.get(oids[1] if oids[0] == _EC_KEY else oids[0], "unknown")


def _alternative_names(extensions: bytes) -> Iterator[str]:
    addresses: list[str] = []
    for listed in _parts(extensions, _SEQUENCE):
        for extension in _parts(listed, _SEQUENCE):
            if _first(extension, _OID) != _ALTERNATIVE_NAMES:
                continue
            names = _first(_first(extension, _OCTET_STRING), _SEQUENCE)
            for tag, content in _elements(names):
                if tag == _DNS_NAME:
                    yield content.decode("ascii")
                elif tag == _IP_ADDRESS:
                    addresses.append(str(ipaddress.ip_address(content)))
    yield from addresses
