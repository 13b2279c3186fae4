"""Fields: what is refused, and page tokens that belong to one list."""

from __future__ import annotations

import pytest
from agenthive.v1 import production_service_pb2 as pb
from agenthive_plugins.production import fields
from agenthive_plugins.production.alerts import AlertSeverity
from agenthive_server.plugin.api import BadRequest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp


@pytest.mark.parametrize("value", ["", "a b", "ä", "x" * 129, "a/b", "a\x00"])
def test_ids(value: str) -> None:
    with pytest.raises(BadRequest) as caught:
        fields.required_id(value, "rule.rule_id")
    assert caught.value.field == "rule.rule_id"


def test_texts_numbers_spans_and_times() -> None:
    assert fields.text("fine", "t") == "fine"
    assert fields.real(0.5, 0, 1, "n") == 0.5
    assert fields.span(Duration(seconds=2, nanos=500_000_000), "d") == 2.5
    assert fields.instant(Timestamp(seconds=5), "t") == 5.0
    for refused in (
        lambda: fields.text("x" * 1_025, "f"),
        lambda: fields.text("a\x00b", "f"),
        lambda: fields.real(float("nan"), 0, 1, "f"),
        lambda: fields.real(float("inf"), 0, 1, "f"),
        lambda: fields.real(2, 0, 1, "f"),
        lambda: fields.span(Duration(seconds=-1), "f"),
        lambda: fields.span(Duration(nanos=-1), "f"),
        lambda: fields.span(Duration(seconds=5), "f", 10.0),
        lambda: fields.span(Duration(seconds=400 * 86_400), "f"),
        lambda: fields.instant(Timestamp(seconds=-1), "f"),
        lambda: fields.member(AlertSeverity, 0, "f"),
        lambda: fields.member(AlertSeverity, 99, "f"),
        lambda: fields.members(AlertSeverity, [1, 99], "f"),
    ):
        with pytest.raises(BadRequest) as caught:
            refused()
        assert caught.value.field.startswith("f")


def test_page_sizes() -> None:
    assert [fields.page_size(size) for size in (0, 1, 1_000)] == [50, 1, 1_000]
    for size in (-1, 1_001):
        with pytest.raises(BadRequest):
            fields.page_size(size)


def test_a_page_token_belongs_to_one_list_with_its_filters() -> None:
    request = pb.ListAlertsRequest(rule_id="r", page_size=10)
    token = fields.page_token(request, "key/ä")
    assert fields.page_after(pb.ListAlertsRequest(rule_id="r", page_size=99, page_token=token)) == "key/ä"
    for other in (
        pb.ListAlertsRequest(rule_id="s", page_token=token),
        pb.ListAlertRulesRequest(page_token=token),
        pb.ListAlertsRequest(rule_id="r", page_token="nonsense"),
        pb.ListAlertsRequest(rule_id="r", page_token="////"),
    ):
        with pytest.raises(BadRequest) as caught:
            fields.page_after(other)
        assert caught.value.reason == "INVALID_PAGE_TOKEN"
    assert fields.page_token(request, "") == ""
    assert fields.page_after(pb.ListAlertsRequest()) == ""
