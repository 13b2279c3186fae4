"""Payloads and tasks as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agenthive.v1 import payload_pb2, task_pb2, worker_service_pb2
from agenthive_server.runner.payloads import (
    checkpoint_as_json,
    cut_text,
    json_line,
    payload_as_json,
    result_payload,
    seconds,
    task_as_json,
)
from google.protobuf import duration_pb2


def payload(content_type: str, data: bytes) -> payload_pb2.Payload:
    return payload_pb2.Payload(content_type=content_type, data=data)


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        (payload("application/json", b'{"n": 12345678901234567890}'), {"n": 12345678901234567890}),
        (payload("application/json; charset=utf-8", b"[1]"), [1]),
        (payload("application/problem+json", b"1.5"), 1.5),
        (payload("text/markdown", "# ä".encode()), "# ä"),
        (payload("text/plain", b"\xff"), {"base64": "/w=="}),
        (payload("application/json", b"{broken"), {"base64": "e2Jyb2tlbg=="}),
        (payload("application/json", b"[" * 100_000), {"base64": "W1tb" * 33333 + "Ww=="}),
        (payload("image/png", b"png"), {"base64": "cG5n"}),
        (payload("", b""), {"base64": ""}),
        (payload_pb2.Payload(blob_id="sha256:1"), {"blob_id": "sha256:1"}),
        (payload_pb2.Payload(), None),
    ],
)
def test_a_payload_is_seen_as_what_it_is(given: payload_pb2.Payload, seen: Any) -> None:
    assert payload_as_json(given) == seen


def test_a_struct_is_seen_as_json() -> None:
    given = payload_pb2.Payload()
    given.json.update({"n": 1, "list": [None, True, "x"]})
    assert payload_as_json(given) == {"n": 1, "list": [None, True, "x"]}


def test_checkpoints_and_answers_travel_with_the_task() -> None:
    assignment = worker_service_pb2.TaskAssignment(checkpoint=b"half", answers=[payload("text/plain", b"yes")])
    task = task_as_json(assignment)
    assert (task["checkpoint"], task["answers"]) == ("half", ["yes"])
    assert checkpoint_as_json(b"\xff") == {"base64": "/w=="}


def test_a_line_is_one_line_whatever_is_in_it() -> None:
    line = json_line({"text": "a\nb\u2028\ud800"})
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"text": "a\nb\u2028\ud800"}


def test_a_result_is_json_unless_it_is_a_text_of_another_type() -> None:
    assert result_payload("a") == payload("application/json", b'"a"')
    assert result_payload("a", "text/markdown") == payload("text/markdown", b"a")
    assert result_payload("ä\ud800") == payload("application/json", b'"\\u00e4\\ud800"')
    assert result_payload("ä") == payload("application/json", '"ä"'.encode())
    assert result_payload({"a": 1}, "text/markdown") == payload("application/json", b'{"a":1}')


def test_texts_are_cut_to_valid_utf_8() -> None:
    assert cut_text("äää", 3) == "ä"
    task_pb2.TaskError(message=cut_text("\ud800", 10))


def test_a_duration_that_is_not_set_is_the_default() -> None:
    assert seconds(duration_pb2.Duration(), 7.0) == 7.0
    assert seconds(duration_pb2.Duration(nanos=500_000_000), 7.0) == 0.5
