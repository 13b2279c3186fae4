"""Cursors: text and back, and everything that is no cursor."""

from __future__ import annotations

import pytest
from agenthive_server.events.cursor import Cursor, parse_cursor
from agenthive_server.kernel.errors import BadRequest
from hypothesis import given
from hypothesis import strategies as st


@given(st.one_of(st.none(), st.integers(0, 2**63)), st.from_regex(r"[A-Za-z0-9_.~-]{1,64}", fullmatch=True))
def test_a_cursor_survives_as_text(sequence: int | None, log_id: str) -> None:
    assert parse_cursor(str(Cursor(log_id, sequence))) == Cursor(log_id, sequence)


@given(st.text(max_size=100))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_cursor(f"{text}!")


@pytest.mark.parametrize(
    "text", ["", "c1", "c1.log", "c1.log.", "c2.log.1", "c1..1", "c1.log.1_0", "c1.log.+1", "c1.log.1\n"]
)
def test_what_was_not_made_here_is_refused(text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_cursor(text)
    assert caught.value.reason == "INVALID_CURSOR"
    assert caught.value.field == "after_cursor"
