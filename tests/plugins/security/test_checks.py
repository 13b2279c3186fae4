"""Everything a caller can send is bounded, and a page token counts where it was made."""

from __future__ import annotations

from typing import Any

import pytest
from agenthive.v1 import security_service_pb2 as pb
from agenthive_plugins.security import checks
from agenthive_plugins.security.roles import Role
from agenthive_server.plugin.api import BadRequest, Call
from hypothesis import given
from hypothesis import strategies as st


def call(method: str = "/S/List") -> Any:
    made: Any = Call.__new__(Call)
    made.method = method
    return made


@given(st.recursive(st.none() | st.integers() | st.text(max_size=20), lambda inner: st.lists(inner, max_size=3)))
def test_a_page_token_brings_back_what_it_was_made_of(after: Any) -> None:
    request = pb.ListTokensRequest(principal="ann", page_size=7)
    request.page_token = checks.page_token(call(), request, after)
    assert checks.page_after(call(), request) == after
    # The size of the page may change, what is asked for may not.
    request.page_size = 9
    assert checks.page_after(call(), request) == after
    for wrong in (pb.ListTokensRequest(principal="bob", page_token=request.page_token),):
        with pytest.raises(BadRequest) as caught:
            checks.page_after(call(), wrong)
        assert caught.value.reason == "INVALID_PAGE_TOKEN"
    with pytest.raises(BadRequest):
        checks.page_after(call("/S/Other"), request)


@given(st.text(max_size=60))
def test_a_page_token_that_is_none_is_refused(text: str) -> None:
    request = pb.ListTokensRequest(page_token=text.replace("\ud800", ""))
    if not request.page_token:
        assert checks.page_after(call(), request) is None
        return
    with pytest.raises(BadRequest):
        checks.page_after(call(), request)


@pytest.mark.parametrize("size", [-1, 1_001])
def test_a_page_has_bounds(size: int) -> None:
    with pytest.raises(BadRequest):
        checks.page_size(pb.ListTokensRequest(page_size=size))
    assert checks.page_size(pb.ListTokensRequest()) == 50


@given(st.text(max_size=300))
def test_a_principal_is_printable_and_bounded(text: str) -> None:
    try:
        assert checks.principal(text) == text
    except BadRequest:
        return
    assert 0 < len(text) <= 255
    assert text.isascii()
    assert text.isprintable()
    assert " " not in text


@pytest.mark.parametrize("name", [f"{prefix}x" for prefix in checks.RESERVED])
def test_names_that_are_proven_otherwise_are_not_given_by_tokens(name: str) -> None:
    assert checks.principal(name) == name
    with pytest.raises(BadRequest):
        checks.principal(name, issued=True)


def test_roles_and_namespaces() -> None:
    assert checks.roles([1, 4, 1]) == (Role.VIEWER, Role.ADMIN)
    assert checks.roles([]) == ()
    with pytest.raises(BadRequest):
        checks.roles([], required=True)
    assert checks.namespaces(["a", "*"]) == ("a", "*")
    for wrong in (["a/b"], [""], ["a"] * 65):
        with pytest.raises(BadRequest):
            checks.namespaces(wrong)


def test_times_are_within_the_calendar() -> None:
    wanted = pb.AuditFilter()
    assert checks.milliseconds(wanted, "start_time", "f") == 0
    wanted.start_time.seconds, wanted.start_time.nanos = 5, 7_000_000
    assert checks.milliseconds(wanted, "start_time", "f") == 5_007
    wanted.start_time.seconds = -1
    with pytest.raises(BadRequest):
        checks.milliseconds(wanted, "start_time", "f")
