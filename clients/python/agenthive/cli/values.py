"""What people write on a command line, turned into values: durations, labels, names of enums, input."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.descriptor import EnumDescriptor

    from agenthive.v1.payload_pb2 import Payload

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_LONGEST: Final = 3650 * 86400.0


def duration(text: str) -> float:
    """Return seconds: `500ms`, `90s`, `10m`, `1h30m`, or a bare number of seconds. Raises BadParameter."""
    text = str(text).strip().lower()
    if re.fullmatch(r"\d+(?:\.\d+)?", text):
        seconds = float(text)
    elif re.fullmatch(f"(?:{_PART.pattern})+", text):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    else:
        raise typer.BadParameter(f"{text!r} is no duration such as 500ms, 90s, 10m or 1h30m")
    if seconds > _LONGEST:
        raise typer.BadParameter(f"{text!r} is longer than ten years")
    return seconds


def moment(text: str) -> float:
    """Return seconds since 1970: `10m` is that long ago; `2026-03-01` and `2026-03-01T14:00` are in this time zone.

    Raises BadParameter.
    """
    from datetime import datetime

    from agenthive.cli.text import now

    if "-" not in text:
        return now() - duration(text)
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        raise typer.BadParameter(f"{text!r} is neither 10m ago nor a time such as 2026-03-01T14:00") from None


def pairs(texts: Iterable[str] | None, option: str = "--label") -> dict[str, str]:
    """Return `key=value` texts as a dictionary. Raises BadParameter for a text without a key or `=`."""
    made: dict[str, str] = {}
    for text in texts or ():
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"{option} {text!r} is not of the form key=value")
        made[key] = value
    return made


def _prefix(kind: EnumDescriptor) -> str:
    return kind.values_by_number[0].name.removesuffix("UNSPECIFIED")


def enum_names(kind: EnumDescriptor) -> dict[str, int]:
    """Return the values of an enum by their short names: `TASK_STATE_RETRY_WAIT` is `retry-wait`."""
    prefix = _prefix(kind)
    return {
        value.name.removeprefix(prefix).lower().replace("_", "-"): value.number
        for value in kind.values
        if value.number != 0
    }


def enum_value(kind: EnumDescriptor, text: str) -> Any:
    """Return the value a person means by `running`, `RUNNING` or `TASK_STATE_RUNNING`. Raises BadParameter."""
    names = enum_names(kind)
    short = text.upper().replace("-", "_").removeprefix(_prefix(kind)).lower().replace("_", "-")
    if short not in names:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(names)}")
    return names[short]


def short_name(kind: EnumDescriptor, number: int) -> str:
    """Return the name of a value without its prefix; a number this client does not know, as it is."""
    value = kind.values_by_number.get(number)
    return str(number) if value is None else value.name.removeprefix(_prefix(kind))


def read_bytes(text: str) -> bytes:
    """Return what a person gives as content: text, `@file`, `-` for stdin; `@@` begins a text with one @."""
    if text == "-":
        return sys.stdin.buffer.read()
    if text.startswith("@@"):
        return text[1:].encode()
    if text.startswith("@"):
        return Path(text[1:]).expanduser().read_bytes()
    return text.encode()


def content(text: str | None) -> Payload:
    """Return the payload a person means; JSON is recognised, other text is text, the rest is bytes.

    Raises OSError when a file cannot be read.
    """
    from agenthive.payload import BYTES, JSON, TEXT
    from agenthive.v1.payload_pb2 import Payload

    if text is None:
        return Payload()
    data = read_bytes(text)
    try:
        decoded = data.decode()
    except UnicodeDecodeError:
        return Payload(content_type=BYTES, data=data)
    return Payload(content_type=JSON if _is_json(decoded) else TEXT, data=data)


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
