"""What plugins hand to the verbs is checked where it comes in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from agenthive_server.kernel.errors import BadRequest
from agenthive_server.kernel.ports import Query
from agenthive_server.kernel.records import Payload
from agenthive_server.kernel.tasks import TaskSpec
from agenthive_server.plugin.checks import (
    bounded,
    check_name,
    check_new,
    check_payload,
    check_span,
    check_text,
)


def test_what_is_right_passes() -> None:
    check_new("", TaskSpec(type="t"), TaskSpec)
    check_new("a-1", TaskSpec(type="t"), TaskSpec)
    check_payload(Payload(json="{}"))
    check_text("", "reason", 10)
    check_name("default", "namespace")
    check_span(None, "grace")
    check_span(0, "grace")


@pytest.mark.parametrize(
    ("check", "field"),
    [
        (lambda: check_new("a b", TaskSpec(type="t"), TaskSpec), "id"),
        (lambda: check_new("", TaskSpec(type="t", priority=7), TaskSpec), "priority"),
        (lambda: check_payload(Payload(json="x")), "json"),
        (lambda: check_text(7, "reason", 10), "reason"),
        (lambda: check_text("x" * 11, "reason", 10), "reason"),
        (lambda: check_name("", "namespace"), "namespace"),
        (lambda: check_span(-1, "grace"), "grace"),
        (lambda: check_span(float("nan"), "grace"), "grace"),
    ],
)
def test_what_is_wrong_is_refused_by_its_field(check: Callable[[], None], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check()
    assert caught.value.field == field


def test_a_page_has_a_bound() -> None:
    assert bounded(Query(namespace="n", limit=7)).limit == 7
    assert bounded(Query(namespace="n", limit=10**9)).limit == 1_000
    assert bounded(Query(namespace="n", limit=-1)).limit == 1_000
