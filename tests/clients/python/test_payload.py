"""What goes into a payload comes out of it."""

from __future__ import annotations

import pytest
from agenthive.payload import JsonValue, payload, value
from agenthive.v1 import payload_pb2
from google.protobuf import struct_pb2


@pytest.mark.parametrize(
    ("given", "content_type"),
    [
        ({"a": [1, 2.5, None, True, "ü"]}, "application/json"),
        ([1, 2], "application/json"),
        (9007199254740993, "application/json"),  # JSON as bytes keeps what a double would not
        ("text ü", "text/plain; charset=utf-8"),
        (b"\x00\xff", "application/octet-stream"),
        (None, ""),
    ],
)
def test_it_comes_out_as_it_went_in(given: JsonValue | bytes, content_type: str) -> None:
    made = payload(given)
    assert made.content_type == content_type
    assert value(made) == given
    assert made.WhichOneof("content") in (None, "data")


def test_a_payload_stays_as_it_is() -> None:
    made = payload_pb2.Payload(content_type="image/png", data=b"png")
    assert payload(made) is made
    assert value(made) == b"png"


def test_json_made_by_hand_is_read() -> None:
    struct = struct_pb2.Struct()
    struct.update({"n": 1, "deep": {"list": ["x"]}})
    assert value(payload_pb2.Payload(json=struct)) == {"n": 1, "deep": {"list": ["x"]}}


def test_a_vendor_json_type_is_json() -> None:
    assert value(payload_pb2.Payload(content_type="application/problem+json; v=1", data=b'{"a":1}')) == {"a": 1}


@pytest.mark.parametrize("bad", [float("nan"), object(), {"x": {1, 2}}])
def test_what_json_cannot_hold_is_refused(bad: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        payload(bad)


@pytest.mark.parametrize(
    "bad",
    [
        payload_pb2.Payload(blob_id="sha256:0"),
        payload_pb2.Payload(content_type="application/json", data=b"{"),
        payload_pb2.Payload(content_type="text/plain", data=b"\xff"),
    ],
)
def test_content_that_is_not_what_it_says_is_an_error(bad: payload_pb2.Payload) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - every kind of it
        value(bad)
