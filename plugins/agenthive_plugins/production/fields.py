"""Checks of request fields, and conversions that all messages share: each returns the value or names the field."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from enum import IntEnum
from hashlib import blake2b
from typing import Final, TypeVar

from agenthive_server.plugin.api import BadRequest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

MAX_PAGE: Final = 1_000
DEFAULT_PAGE: Final = 50
LONGEST: Final = 366 * 86_400.0
NOTE: Final = 1_024

_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LATEST: Final = 253_402_300_799

E = TypeVar("E", bound=IntEnum)


def required_id(value: str, field: str, longest: int = 128) -> str:
    """Return an id that has to be there."""
    if not value:
        raise BadRequest("required", field=field)
    if _ID.fullmatch(value) is None or len(value) > longest:
        raise BadRequest(f"an id has 1 to {longest} letters, digits and `-_.`", field=field)
    return value


def text(value: str, field: str, most: int = NOTE) -> str:
    """Return a text of at most `most` characters without NUL."""
    if len(value) > most:
        raise BadRequest(f"longer than {most} characters", field=field)
    if "\x00" in value:
        raise BadRequest("contains a NUL character", field=field)
    return value


def real(value: float, least: float, most: float, field: str) -> float:
    """Return a number within bounds; NaN is none."""
    if not least <= value <= most:
        raise BadRequest(f"not a number between {least:g} and {most:g}", field=field)
    return value


def span(value: Duration, field: str, least: float = 0.0, most: float = LONGEST) -> float:
    """Return a duration in seconds within bounds."""
    if not 0 <= value.nanos <= 999_999_999 or not least <= value.seconds + value.nanos / 1e9 <= most:
        raise BadRequest(f"not a duration between {least:g} and {most:g} seconds", field=field)
    return value.seconds + value.nanos / 1e9


def instant(value: Timestamp, field: str) -> float:
    """Return a time in seconds since 1970."""
    if not 0 <= value.seconds <= _LATEST or not 0 <= value.nanos <= 999_999_999:
        raise BadRequest("not a time between 1970 and 9999", field=field)
    return value.seconds + value.nanos / 1e9


def member(kind: type[E], number: int, field: str) -> E:
    """Return the member of a number; zero, and what nobody knows, is refused."""
    if not number:
        raise BadRequest("required", field=field)
    try:
        return kind(number)
    except ValueError:
        raise BadRequest(f"{number} is no value of this enum", field=field) from None


def members(kind: type[E], numbers: Iterable[int], field: str) -> frozenset[E]:
    """Return the members of numbers."""
    return frozenset(member(kind, number, f"{field}[{n}]") for n, number in enumerate(numbers))


def page_size(value: int) -> int:
    """Return how many records a page has."""
    if not 0 <= value <= MAX_PAGE:
        raise BadRequest(f"not between 0 and {MAX_PAGE}", field="page_size")
    return value or DEFAULT_PAGE


def page_token(request: Message, after: str) -> str:
    """Return the token of the page after a key; empty for the last."""
    if not after:
        return ""
    return base64.urlsafe_b64encode(f"{_filters(request)}{after}".encode()).decode().rstrip("=")


def page_after(request: Message) -> str:
    """Return the key after which a page begins. Raises `BadRequest` for a token of another list or other filters."""
    token: str = getattr(request, "page_token", "")
    if not token:
        return ""
    try:
        told = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        told = ""
    mark = _filters(request)
    if not told.startswith(mark):
        raise BadRequest("not a token of this list with these filters", field="page_token", reason="INVALID_PAGE_TOKEN")
    return told.removeprefix(mark)


def _filters(request: Message) -> str:
    """Return what tells one list, with its filters, from another."""
    return digest_of(request, "page_token", "page_size")[:8]


def digest_of(request: Message, *without: str) -> str:
    """Return the hash of a request, without some of its fields."""
    copy = type(request)()
    copy.CopyFrom(request)
    for name in without:
        copy.ClearField(name)
    content = request.DESCRIPTOR.full_name.encode() + b"\x00" + copy.SerializeToString(deterministic=True)
    return blake2b(content, digest_size=16).hexdigest()


def set_time(message: Timestamp, seconds: float) -> None:
    """Write a time, to the microsecond; zero leaves it unset."""
    if seconds:
        message.FromMicroseconds(round(seconds * 1e6))


def set_span(message: Duration, seconds: float) -> None:
    """Write a duration, to the microsecond; present even when it is zero."""
    message.SetInParent()
    message.FromMicroseconds(round(seconds * 1e6))
