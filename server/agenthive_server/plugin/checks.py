"""Checks of what plugins hand to the verbs, as the edge checks what callers send."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from agenthive_server.kernel.bounds import check_record, is_id
from agenthive_server.kernel.errors import BadRequest
from agenthive_server.kernel.ports import Query
from agenthive_server.kernel.records import Payload

MAX_PAGE: Final = 1_000


def check_new(record_id: str, spec: object, of: type) -> None:
    """Raise `BadRequest` unless an agent or task may be made with this id and specification."""
    if record_id and not is_id(record_id):
        raise BadRequest("an id has 1 to 128 letters, digits and `-_.`", field="id")
    _check(spec, of)


def check_payload(payload: object) -> None:
    """Raise `BadRequest` for what is no payload."""
    _check(payload, Payload)


def _check(record: object, of: type) -> None:
    try:
        check_record(record, of)
    except ValueError as error:
        raise BadRequest(str(error), field=str(error).partition(":")[0]) from None


def check_text(text: object, field: str, most: int) -> None:
    """Raise `BadRequest` for a text that is none, or too long."""
    if not isinstance(text, str) or len(text) > most or "\x00" in text:
        raise BadRequest(f"expected a text of at most {most} characters, without NUL", field=field)


def check_name(name: object, field: str) -> None:
    """Raise `BadRequest` for what cannot name a namespace."""
    if not is_id(name):
        raise BadRequest("a name has 1 to 128 letters, digits and `-_.`", field=field)


def check_span(seconds: float | None, field: str) -> None:
    """Raise `BadRequest` for a span that is too long, or negative; None is none."""
    if seconds is not None and not 0 <= seconds <= 86_400:
        raise BadRequest("not between 0 and 86,400 seconds", field=field)


def bounded(query: Query) -> Query:
    """Return a query for a page of at most 1,000."""
    return query if 0 <= query.limit <= MAX_PAGE else replace(query, limit=MAX_PAGE)
