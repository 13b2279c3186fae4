"""Bounds on what callers of SecurityService send, and the tokens of its pages."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from hashlib import blake2b
from typing import Any, Final, TypeVar

from agenthive_server.plugin.api import BadRequest, Call
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from .roles import EVERYWHERE, Role

E = TypeVar("E", bound=Enum)

DEFAULT_PAGE: Final = 50
MAX_PAGE: Final = 1_000
LONG_TEXT: Final = 1_024
MAX_NAMESPACES: Final = 64
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_PRINCIPAL: Final = re.compile(r"[!-~]{1,255}")
RESERVED: Final = ("jwt:", "cert:", "agent:", "worker:", "runner:", "plugin:", "system:")
"""How principals begin that prove themselves otherwise than by a bearer token."""


def text(value: str, field: str, most: int = LONG_TEXT) -> str:
    """Return a text of bounded length, without NUL."""
    if len(value) > most or "\x00" in value:
        raise BadRequest(f"longer than {most} characters, or with NUL", field=field)
    return value


def an_id(value: str, field: str) -> str:
    """Return an id that has to be there."""
    if _ID.fullmatch(value) is None:
        raise BadRequest("an id has 1 to 128 letters, digits and `-_.`", field=field)
    return value


def principal(value: str, field: str = "principal", *, issued: bool = False) -> str:
    """Return the name of a principal; with `issued`, one that a bearer token can be made for."""
    if _PRINCIPAL.fullmatch(value) is None:
        raise BadRequest("a principal has 1 to 255 letters, digits and signs, and no spaces", field=field)
    if issued and value.startswith(RESERVED):
        raise BadRequest(f"names that begin with {', '.join(RESERVED)} are not given by tokens", field=field)
    return value


def namespace(value: str, field: str = "namespace") -> str:
    """Return a namespace, or `*` for every one."""
    return value if value == EVERYWHERE else an_id(value, field)


def namespaces(values: Collection[str]) -> tuple[str, ...]:
    """Return namespaces; none means every one."""
    if len(values) > MAX_NAMESPACES:
        raise BadRequest(f"more than {MAX_NAMESPACES}", field="namespaces")
    return tuple(namespace(value, f"namespaces[{n}]") for n, value in enumerate(values))


def roles(values: Iterable[int], field: str = "roles", *, required: bool = False) -> tuple[Role, ...]:
    """Return roles."""
    found = tuple(dict.fromkeys(values))
    for n, value in enumerate(found):
        if value not in Role.__members__.values():
            raise BadRequest(f"{value} is no role", field=f"{field}[{n}]")
    if required and not found:
        raise BadRequest("required", field=field)
    return tuple(Role(value) for value in found)


def enums(kind: type[E], names: Mapping[int, str], values: Iterable[int], field: str) -> frozenset[E]:
    """Return the values of an enum of the protos as ours; `names` without their prefix, by number."""
    found = set()
    for n, value in enumerate(values):
        name = names.get(value)
        if name is None or name not in kind.__members__:
            raise BadRequest(f"{value} is no value of this enum", field=f"{field}[{n}]")
        found.add(kind[name])
    return frozenset(found)


def span(message: Message, name: str, default: float, least: float, most: float) -> float:
    """Return a duration in seconds within bounds; unset is the default."""
    if not message.HasField(name):
        return default
    value: Duration = getattr(message, name)
    seconds = value.seconds + value.nanos / 1e9
    if not 0 <= value.nanos <= 999_999_999 or not least <= seconds <= most:
        raise BadRequest(f"not between {least:g} and {most:g} seconds", field=name)
    return seconds


def milliseconds(message: Message, name: str, field: str) -> int:
    """Return a time in milliseconds since 1970; zero when it is not set."""
    if not message.HasField(name):
        return 0
    value: Timestamp = getattr(message, name)
    if not 0 <= value.seconds <= 253_402_300_799 or not 0 <= value.nanos <= 999_999_999:
        raise BadRequest("not a time between 1970 and 9999", field=field)
    return value.seconds * 1_000 + value.nanos // 1_000_000


def count(value: int, default: int, most: int, field: str) -> int:
    """Return a number within bounds; zero is the default."""
    if not 0 <= value <= most:
        raise BadRequest(f"not between 0 and {most}", field=field)
    return value or default


def page_size(request: Any) -> int:
    """Return how many records a page has."""
    return count(request.page_size, DEFAULT_PAGE, MAX_PAGE, "page_size")


def page_after(call: Call, request: Any) -> Any:
    """Return what the page before ended with, None for the first; raises `BadRequest` (INVALID_PAGE_TOKEN)."""
    if not request.page_token:
        return None
    try:
        raw = base64.b64decode(request.page_token.encode("ascii"), altchars=b"-_", validate=True)
        found = json.loads(raw[8:])
    except (ValueError, UnicodeError, binascii.Error, RecursionError):
        raise bad_page_token() from None
    if raw[:8] != _filters(call, request):
        raise bad_page_token()
    return found


def page_token(call: Call, request: Any, after: Any) -> str:
    """Return the token of the page after this one; `after` is anything JSON can hold."""
    raw = _filters(call, request) + json.dumps(after, separators=(",", ":")).encode()
    return base64.b64encode(raw, altchars=b"-_").decode()


def bad_page_token() -> BadRequest:
    """Return the error for a page token of another call."""
    return BadRequest(
        "not a page token of this method with these filters", reason="INVALID_PAGE_TOKEN", field="page_token"
    )


def _filters(call: Call, request: Message) -> bytes:
    """Return the hash of what a page token belongs to."""
    bare = type(request)()
    bare.CopyFrom(request)
    bare.ClearField("page_size")
    bare.ClearField("page_token")
    return blake2b(f"{call.method}\n".encode() + bare.SerializeToString(deterministic=True), digest_size=8).digest()
