"""Checks of request fields: small functions that return the value or raise `BadRequest` naming the field.

Everything a caller can send is bounded here, so that what comes in malformed leaves as INVALID_ARGUMENT and never
reaches the kernel or the store.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from agenthive_server.kernel.errors import BadRequest

MAX_SPAN: Final = 366 * 86_400.0
MAX_COUNT: Final = 256
MAX_LABELS: Final = 64
MAX_LABEL_BYTES: Final = 255
MAX_CAPABILITIES: Final = 64
MAX_PAGE: Final = 1_000
DEFAULT_PAGE: Final = 50
MAX_DEPTH: Final = 32
MAX_CHECKPOINT: Final = 64 * 1024
NAME: Final = 255
REASON_TEXT: Final = 1_024
LONG_TEXT: Final = 4_096

ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_BLOB_ID: Final = re.compile(r"sha256:[0-9a-f]{64}")
_MESSAGE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}(?:/[A-Za-z0-9._-]{1,128})?")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


def is_id(value: object) -> bool:
    """Whether a value is an id as callers may choose it."""
    return isinstance(value, str) and ID.fullmatch(value) is not None


def optional_id(value: str, field: str) -> str:
    """Return an id, or nothing."""
    if value and ID.fullmatch(value) is None:
        raise BadRequest("an id has 1 to 128 letters, digits and `-_.`", field=field)
    return value


def required_id(value: str, field: str) -> str:
    """Return an id that has to be there."""
    if not value:
        raise BadRequest("required", field=field)
    return optional_id(value, field)


def ids(values: Collection[str], field: str, most: int = MAX_COUNT) -> tuple[str, ...]:
    """Return at most `most` ids."""
    count(values, field, most)
    return tuple(required_id(value, f"{field}[{n}]") for n, value in enumerate(values))


def blob_id(value: str, field: str) -> str:
    """Return the id of a blob."""
    if _BLOB_ID.fullmatch(value) is None:
        raise BadRequest("a blob id is `sha256:` and 64 lower-case hexadecimal digits", field=field)
    return value


def message_ids(values: Collection[str], field: str) -> tuple[str, ...]:
    """Return at least one and at most 256 ids of messages."""
    if not values:
        raise BadRequest("required", field=field)
    count(values, field, MAX_COUNT)
    for n, value in enumerate(values):
        if _MESSAGE_ID.fullmatch(value) is None:
            raise BadRequest("not the id of a message", field=f"{field}[{n}]")
    return tuple(values)


def variable(value: str, field: str) -> str:
    """Return the name of an environment variable."""
    if _VARIABLE.fullmatch(value) is None:
        raise BadRequest("a variable's name has letters, digits and underscore, and no digit first", field=field)
    return value


def text(value: str, field: str, most: int = NAME) -> str:
    """Return a text of at most `most` characters without NUL."""
    if len(value) > most:
        raise BadRequest(f"longer than {most} characters", field=field)
    if "\x00" in value:
        raise BadRequest("contains a NUL character", field=field)
    return value


def required_text(value: str, field: str, most: int = NAME) -> str:
    """Return a text that has to be there."""
    if not value:
        raise BadRequest("required", field=field)
    return text(value, field, most)


def texts(values: Collection[str], field: str, most: int, length: int = NAME) -> tuple[str, ...]:
    """Return at most `most` texts, none of them empty."""
    if not values:
        return ()
    count(values, field, most)
    return tuple(required_text(value, f"{field}[{n}]", length) for n, value in enumerate(values))


def count(values: Collection[object], field: str, most: int) -> None:
    """Refuse more than `most` values."""
    if len(values) > most:
        raise BadRequest(f"more than {most}", field=field)


def labels(values: Mapping[str, str], field: str) -> dict[str, str]:
    """Return labels: at most 64, keys and values of at most 255 bytes, no key empty."""
    if not values:
        return {}
    count(values, field, MAX_LABELS)
    for key, value in values.items():
        if not key:
            raise BadRequest("a label's key is empty", field=field)
        if len(key.encode()) > MAX_LABEL_BYTES or len(value.encode()) > MAX_LABEL_BYTES:
            raise BadRequest(f"a key or value has more than {MAX_LABEL_BYTES} bytes", field=field)
        if "\x00" in key or "\x00" in value:
            raise BadRequest("contains a NUL character", field=field)
    return dict(values)


def between(value: int, least: int, most: int, field: str) -> int:
    """Return a number within bounds."""
    if not least <= value <= most:
        raise BadRequest(f"not between {least} and {most}", field=field)
    return value


def or_default(value: int, default: int, least: int, most: int, field: str) -> int:
    """Return a number within bounds; zero means the default."""
    return between(value, least, most, field) if value else default


def real(value: float, least: float, most: float, field: str) -> float:
    """Return a finite number within bounds; NaN and infinities are not."""
    if not least <= value <= most:
        raise BadRequest(f"not a number between {least:g} and {most:g}", field=field)
    return value


def real_or_default(value: float, default: float, least: float, most: float, field: str) -> float:
    """Return a finite number within bounds; zero means the default."""
    return real(value, least, most, field) if value else default


def span(value: Duration, field: str) -> float:
    """Return a duration in seconds: well-formed, not negative, at most 366 days."""
    seconds, nanos = value.seconds, value.nanos
    if not 0 <= seconds <= MAX_SPAN or not 0 <= nanos <= 999_999_999:
        raise BadRequest("not a duration between 0 and 366 days", field=field)
    return min(seconds + nanos / 1e9, MAX_SPAN) if nanos else float(seconds)


def instant(value: Timestamp, field: str) -> float:
    """Return a time in seconds since 1970, between the years 1970 and 9999."""
    if not 0 <= value.seconds <= 253_402_300_799 or not 0 <= value.nanos <= 999_999_999:
        raise BadRequest("not a time between 1970 and 9999", field=field)
    return value.seconds + value.nanos / 1e9


def page_size(value: int) -> int:
    """Return how many records a page has."""
    return between(value, 0, MAX_PAGE, "page_size") or DEFAULT_PAGE


def depth(value: Struct, field: str) -> None:
    """Refuse JSON that nests deeper than 32 levels, or holds what JSON cannot."""
    layer: Iterable[Value] = value.fields.values()
    for _ in range(MAX_DEPTH):
        layer = [inner for item in layer for inner in _inside(item, field)]
        if not layer:
            return
    raise BadRequest(f"nests deeper than {MAX_DEPTH} levels", field=field)


def _inside(value: Value, field: str) -> Iterable[Value]:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return value.struct_value.fields.values()
    if kind == "list_value":
        return list_values(value.list_value)
    if kind == "number_value" and not math.isfinite(value.number_value):
        raise BadRequest("holds a number that JSON does not know", field=field)
    return ()


def list_values(value: ListValue) -> Iterable[Value]:
    """Return the values of a list."""
    return value.values
