"""What a specification may hold when code of others made it: the kind of every field, down to the last, and bounds.

What callers send is checked at the edge, where it arrives as messages with types. A plugin hands over records, and an
agent with zero slots would divide the dispatcher by zero.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Final, NamedTuple, Union, get_args, get_origin, get_type_hints

from .records import Payload

MAX_TEXT: Final = 255
MAX_COUNT: Final = 256
MAX_LABELS: Final = 64
MAX_PAYLOAD: Final = 3 * 1024 * 1024
MAX_SPAN: Final = 366 * 86_400.0
_MAX_DRIVER_CONFIG: Final = 1024 * 1024

_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_ALWAYS_THERE: Final = frozenset({"type", "driver"})
_IDS: Final = frozenset({"agent_id", "parent_task_id", "depends_on", "driver"})
_NUMBERS: Final[Mapping[str, tuple[float, float]]] = {
    "priority": (1, 5),
    "slots": (1, 1_000),
    "weight": (0.001, 1_000),
    "fairness_weight": (0.01, 100),
    "backoff_coefficient": (1, 1_000),
    "maximum_attempts": (1, 1_000),
    "maximum_restarts": (1, 1_000),
}
"""All other numbers are spans of time."""


def is_id(text: object) -> bool:
    """Whether a text may be the id of an agent or a task."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def check_record(record: object, of: type) -> None:
    """Raise `ValueError` unless this is such a specification or payload, and every field of it as it has to be."""
    if not isinstance(record, of):
        raise ValueError(f"expected {of.__name__}, got {type(record).__name__}")
    check_fields(of, vars(record))


def check_fields(of: type, fields: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless these values may be fields of a record of this type; says which may not, and why."""
    kinds = _kinds(of)
    for name, value in fields.items():
        kind = kinds.get(name)
        if kind is None:
            raise ValueError(f"{name}: {of.__name__} has no such field")
        _check(kind, value, name)
    if of is Payload:
        _check_payload(fields)


class _Kind(NamedTuple):
    """What a field holds: an instance of `shape`, of which each member is a `member`."""

    shape: type
    optional: bool
    member: _Kind | None
    check: Callable[[_Kind, Any, str], None]


@cache
def _kinds(of: type) -> dict[str, _Kind]:
    return {name: _kind(hint) for name, hint in get_type_hints(of).items()}


def _kind(hint: Any) -> _Kind:
    optional = isinstance(hint, UnionType) or get_origin(hint) is Union
    if optional:
        (hint,) = (arm for arm in get_args(hint) if arm is not type(None))
    shape = get_origin(hint) or hint
    member = _kind(get_args(hint)[0]) if shape in (tuple, dict) else None
    return _Kind(shape, optional, member, _fields if is_dataclass(shape) else _CHECKS.get(shape, _fine))


def _check(kind: _Kind, value: Any, name: str) -> None:
    if value is None and kind.optional:
        return
    given, shape = type(value), kind.shape
    if given is not shape and not (given is int and shape is float) and not _is_a(value, shape):
        raise ValueError(f"{name}: expected {shape.__name__}, got {given.__name__}")
    kind.check(kind, value, name)


def _is_a(value: object, shape: type) -> bool:
    return isinstance(value, shape) and not isinstance(value, bool)


def _fields(kind: _Kind, value: Any, name: str) -> None:
    check_fields(kind.shape, vars(value))


def _fine(_: _Kind, _value: Any, _name: str) -> None:
    """An enum's value, or a flag."""


def _text(_: _Kind, value: str, name: str) -> None:
    if name == "json":
        return
    if len(value) > MAX_TEXT or "\x00" in value or not (value.isascii() or _can_be_written(value)):
        raise ValueError(f"{name}: at most {MAX_TEXT} characters, without NUL")
    if not value and name in _ALWAYS_THERE:
        raise ValueError(f"{name}: required")
    if value and name in _IDS and not is_id(value):
        raise ValueError(f"{name}: an id has 1 to 128 letters, digits and `-_.`")


def _can_be_written(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _number(_: _Kind, value: float, name: str) -> None:
    low, high = _NUMBERS.get(name, (0, MAX_SPAN))
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name}: not between {low:g} and {high:g}")


def _bytes(_: _Kind, value: bytes, name: str) -> None:
    most = MAX_PAYLOAD if name == "data" else _MAX_DRIVER_CONFIG
    if len(value) > most:
        raise ValueError(f"{name}: more than {most} bytes")


def _members(kind: _Kind, value: tuple[Any, ...], name: str) -> None:
    if len(value) > MAX_COUNT:
        raise ValueError(f"{name}: more than {MAX_COUNT}")
    assert kind.member is not None
    for member in value:
        _check(kind.member, member, name)
        if not member:
            raise ValueError(f"{name}: holds an empty one")


def _labels(kind: _Kind, value: dict[Any, Any], name: str) -> None:
    if len(value) > MAX_LABELS:
        raise ValueError(f"{name}: more than {MAX_LABELS}")
    assert kind.member is not None
    for part in (*value, *value.values()):
        _check(kind.member, part, name)


_CHECKS: Final[Mapping[Any, Callable[[_Kind, Any, str], None]]] = {
    str: _text,
    int: _number,
    float: _number,
    bytes: _bytes,
    tuple: _members,
    dict: _labels,
}


def _check_payload(fields: Mapping[str, Any]) -> None:
    data, text, blob_id = fields.get("data"), fields.get("json"), fields.get("blob_id")
    if sum(part is not None for part in (data, text, blob_id)) > 1:
        raise ValueError("payload: holds more than one of data, json and a blob's id")
    if text is None:
        return
    if len(text) > MAX_PAYLOAD:
        raise ValueError(f"json: more than {MAX_PAYLOAD} characters")
    try:
        value = json.loads(text)
    except ValueError:
        raise ValueError("json: no JSON text") from None
    if not isinstance(value, dict):
        raise ValueError("json: no JSON object")
