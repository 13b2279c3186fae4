"""Checks of request fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agenthive_server.kernel.errors import BadRequest
from agenthive_server.rpc import validate
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", ["a", "A-1_.x", "x" * 128])
def test_ids(value: str) -> None:
    assert validate.required_id(value, "f") == value
    assert validate.is_id(value)


@pytest.mark.parametrize("value", ["", "x" * 129, "a b", "a/b", "ä", "a\n", "\x00"])
def test_what_is_no_id(value: str) -> None:
    assert not validate.is_id(value)
    with pytest.raises(BadRequest) as refused:
        validate.required_id(value, "f")
    assert refused.value.field == "f"


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (validate.optional_id, ["", "a"], ["a b"]),
        (validate.blob_id, ["sha256:" + "0" * 64], ["", "sha256:0", "sha256:" + "G" * 64]),
        (validate.variable, ["PATH", "_x1"], ["", "1x", "a-b", "a=b"]),
        (validate.text, ["", "x" * 255], ["x" * 256, "\x00"]),
        (validate.required_text, ["x"], ["", "x" * 256]),
        (validate.page_size, [0, 1_000], []),
    ],
)
def test_plain_checks(check: Callable[..., Any], good: list[Any], bad: list[Any]) -> None:
    for value in good:
        check(value, "f") if check is not validate.page_size else check(value)
    for value in bad:
        with pytest.raises(BadRequest):
            check(value, "f")


@pytest.mark.parametrize(
    ("seconds", "nanos", "span"),
    [(0, 0, 0.0), (1, 500_000_000, 1.5), (366 * 86_400, 0, 366 * 86_400.0), (366 * 86_400, 1, 366 * 86_400.0)],
)
def test_durations(seconds: int, nanos: int, span: float) -> None:
    assert validate.span(Duration(seconds=seconds, nanos=nanos), "f") == span


@pytest.mark.parametrize(("seconds", "nanos"), [(-1, 0), (0, -1), (0, 10**9), (366 * 86_400 + 1, 0), (2**63 - 1, 0)])
def test_what_is_no_duration(seconds: int, nanos: int) -> None:
    with pytest.raises(BadRequest):
        validate.span(Duration(seconds=seconds, nanos=nanos), "f")


@pytest.mark.parametrize(("seconds", "nanos"), [(-1, 0), (0, -1), (253_402_300_800, 0)])
def test_what_is_no_time(seconds: int, nanos: int) -> None:
    assert validate.instant(Timestamp(seconds=5, nanos=500_000_000), "f") == 5.5
    with pytest.raises(BadRequest):
        validate.instant(Timestamp(seconds=seconds, nanos=nanos), "f")


@pytest.mark.parametrize("value", [NAN, INF, -INF, 0.5, 2.5])
def test_what_is_no_number_within_bounds(value: float) -> None:
    assert validate.real_or_default(0.0, 7.0, 1.0, 2.0, "f") == 7.0
    assert validate.real_or_default(1.5, 7.0, 1.0, 2.0, "f") == 1.5
    with pytest.raises(BadRequest):
        validate.real_or_default(value, 7.0, 1.0, 2.0, "f")


def test_labels() -> None:
    assert validate.labels({"k": "", "ä" * 127: "v"}, "f") == {"k": "", "ä" * 127: "v"}
    for bad in ({"": "v"}, {"ä" * 128: "v"}, {"k": "x" * 256}, {"k": "\x00"}, {str(n): "" for n in range(65)}):
        with pytest.raises(BadRequest):
            validate.labels(bad, "f")


def test_lists_are_bounded_and_name_the_one_at_fault() -> None:
    assert validate.ids([], "f") == ()
    assert validate.texts(["a", "b"], "f", 2) == ("a", "b")
    with pytest.raises(BadRequest) as refused:
        validate.ids(["a", ""], "f")
    assert refused.value.field == "f[1]"
    with pytest.raises(BadRequest) as refused:
        validate.texts(["a", ""], "f", 2)
    assert refused.value.field == "f[1]"
    with pytest.raises(BadRequest):
        validate.ids(["a"] * 257, "f")
    assert validate.message_ids(["a/b", "c"], "f") == ("a/b", "c")
    for bad in ([], ["a/b/c"], ["a"] * 257):
        with pytest.raises(BadRequest):
            validate.message_ids(bad, "f")


def nested(levels: int) -> Struct:
    value: Any = 1.0
    for n in range(levels):
        value = {"k": value} if n % 2 else [value]
    struct = Struct()
    struct.update({"k": value})
    return struct


def test_json_is_bounded_in_depth_and_finite() -> None:
    validate.depth(nested(30), "f")
    with pytest.raises(BadRequest):
        validate.depth(nested(32), "f")
    struct = Struct()
    struct.fields["k"].number_value = NAN
    with pytest.raises(BadRequest):
        validate.depth(struct, "f")
