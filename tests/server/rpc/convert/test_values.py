"""Times, enums, payloads, JSON and hashes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive.v1 import payload_pb2, task_pb2
from agenthive_server.kernel.errors import BadRequest
from agenthive_server.kernel.records import Payload
from agenthive_server.rpc.convert.values import (
    digest_of,
    fill_json,
    fill_payload,
    json_from,
    payload_from,
    set_span,
    set_time,
)
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-1e300, 1e300) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.floats(0, 253_402_300_799))
def test_times_keep_their_microseconds(seconds: float) -> None:
    message = Timestamp()
    set_time(message, seconds)
    assert message.seconds + message.nanos / 1e9 == pytest.approx(seconds, abs=1e-6)
    assert 0 <= message.nanos < 10**9


@given(st.floats(0, 3e7))
def test_durations_keep_their_microseconds(seconds: float) -> None:
    message = Duration()
    set_span(message, seconds)
    assert message.seconds + message.nanos / 1e9 == pytest.approx(seconds, abs=1e-6)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_json_comes_back_as_it_went(value: dict[str, Any]) -> None:
    struct = Struct()
    fill_json(struct, json.dumps(value))
    again = json.loads(json_from(struct, "f"))
    assert again == value


def test_whole_numbers_are_written_as_such() -> None:
    struct = Struct()
    struct.update({"a": 3, "b": 0.5, "c": 1e300, "d": [None, True, "ä"]})
    assert json_from(struct, "f") == '{"a":3,"b":0.5,"c":1e+300,"d":[null,true,"ä"]}' or json.loads(
        json_from(struct, "f")
    ) == {"a": 3, "b": 0.5, "c": 1e300, "d": [None, True, "ä"]}


@pytest.mark.parametrize(
    "payload",
    [
        Payload(),
        Payload(content_type="text/plain"),
        Payload(data=b""),
        Payload(data=b"x", content_type="a/b"),
        Payload(json='{"a":1}'),
        Payload(blob_id="sha256:" + "0" * 64),
    ],
)
def test_payloads_come_back_as_they_went(payload: Payload) -> None:
    message = payload_pb2.Payload()
    fill_payload(message, payload)
    assert payload_from(payload_pb2.Payload.FromString(message.SerializeToString()), "f") == payload


def test_a_content_type_is_bounded_in_bytes() -> None:
    with pytest.raises(BadRequest):
        payload_from(payload_pb2.Payload(content_type="ä" * 200), "f")


def request(**fields: Any) -> pb.DelegateTaskRequest:
    made = pb.DelegateTaskRequest(request_id="r", spec=task_pb2.TaskSpec(type="t"), **fields)
    made.spec.labels.update({str(n): "v" for n in range(10)})
    return made


def test_the_hash_leaves_out_the_request_id_and_the_waits_and_the_request_stays_as_it_was() -> None:
    plain, waiting = request(), request(wait_for=pb.WAIT_FOR_RESULT)
    waiting.wait_timeout.seconds = 5
    waiting.request_id = "other"
    before = waiting.SerializeToString(deterministic=True)
    assert digest_of(plain) == digest_of(waiting)
    assert waiting.SerializeToString(deterministic=True) == before
    assert digest_of(request(task_id="t")) != digest_of(plain)


def test_the_hash_does_not_depend_on_the_order_of_maps() -> None:
    turned = request()
    turned.spec.labels.clear()
    turned.spec.labels.update({str(n): "v" for n in reversed(range(10))})
    assert digest_of(turned) == digest_of(request())
