"""Durations, labels, names and content as people write them."""

from __future__ import annotations

import pytest
import typer
from agenthive.cli import text
from agenthive.cli.values import content, duration, enum_value, moment, pairs, short_name
from agenthive.v1 import task_pb2


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86400), ("500ms", 0.5), ("1h30m", 5400), ("5", 5), ("0", 0),
     ("1.5s", 1.5), (" 10M ", 600)],
)  # fmt: skip
def test_durations(written: str, seconds: float) -> None:
    assert duration(written) == seconds


@pytest.mark.parametrize("written", ["", "ten", "10x", "-5s", "1h 30", "nan", "inf", "99999999999d", "m"])
def test_what_is_no_duration_is_refused(written: str) -> None:
    with pytest.raises(typer.BadParameter):
        duration(written)


def test_moments_are_spans_ago_or_dates_of_this_time_zone() -> None:
    assert abs(moment("10m") - (text.now() - 600)) < 5
    assert moment("2026-03-01T14:00Z") - moment("2026-03-01T12:00+00:00") == 7200
    assert moment("2026-03-02") - moment("2026-03-01") == 86400
    for wrong in ("yesterday", "2026-13-01", "-5m", ""):
        with pytest.raises(typer.BadParameter):
            moment(wrong)


def test_labels() -> None:
    assert pairs(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}
    for wrong in ("a", "=1"):
        with pytest.raises(typer.BadParameter, match="--label"):
            pairs([wrong])


@pytest.mark.parametrize("written", ["retry-wait", "RETRY_WAIT", "TASK_STATE_RETRY_WAIT", "Retry_Wait"])
def test_names_of_enums(written: str) -> None:
    assert enum_value(task_pb2.TaskState.DESCRIPTOR, written) == task_pb2.TASK_STATE_RETRY_WAIT


def test_a_value_of_a_newer_server_is_its_number() -> None:
    assert short_name(task_pb2.TaskState.DESCRIPTOR, 99) == "99"


@pytest.mark.parametrize(
    ("written", "media_type"),
    [('{"a": 1}', "application/json"), ("7", "application/json"), ("NaN", "text/plain; charset=utf-8"),
     ("{a: 1}", "text/plain; charset=utf-8"), ("", "text/plain; charset=utf-8"),
     ("[" * 100_000, "text/plain; charset=utf-8")],
)  # fmt: skip
def test_content_is_json_only_when_it_is(written: str, media_type: str) -> None:
    assert content(written).content_type == media_type


def test_spans_and_sizes() -> None:
    assert [text.span(length) for length in (0.0, 3.14, 42, 600, 10_000, 200_000)] == [
        "0s", "3.1s", "42s", "10m", "3h", "2d"
    ]  # fmt: skip
    assert [text.size(count) for count in (5, 2048, 3 << 20, 5 << 30)] == ["5 B", "2.0 KiB", "3.0 MiB", "5.0 GiB"]
