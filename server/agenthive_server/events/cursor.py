"""Cursors as callers see them: opaque, versioned, safe in a URL."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agenthive_server.kernel.errors import BadRequest

_CURSOR = re.compile(r"c1\.([A-Za-z0-9_.~-]{1,64})\.(-|[0-9a-z]{1,13})", re.ASCII)
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in one log. Without a sequence it stands before a snapshot: to resume is to take a new one."""

    log_id: str
    sequence: int | None

    def __str__(self) -> str:
        """Return the text a caller keeps."""
        position = "-" if self.sequence is None else _base36(self.sequence)
        return f"c1.{self.log_id}.{position}"


def parse_cursor(text: str) -> Cursor:
    """Return the cursor a caller kept; raises `BadRequest` with INVALID_CURSOR when it was not made by us."""
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise invalid_cursor("after_cursor is not a cursor of an event stream")
    log_id, position = match.groups()
    return Cursor(log_id, None if position == "-" else int(position, 36))


def invalid_cursor(message: str) -> BadRequest:
    """Return the error for a cursor that cannot be one of this log."""
    return BadRequest(message, reason="INVALID_CURSOR", field="after_cursor")


def _base36(number: int) -> str:
    digits = ""
    while number >= 36:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return _DIGITS[number] + digits
