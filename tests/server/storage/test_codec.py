"""What is written is read again, also by the version before and the version after."""

from __future__ import annotations

import msgspec
import pytest
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.kernel.records import Kind, Record
from agenthive_server.kernel.tasks import ErrorClass, Task, TaskError
from agenthive_server.storage.codec import Unreadable, pack_body, pack_events, pack_spec, unpack, unpack_events
from agenthive_server.testing.store_model import full_records, task


def there_and_back(record: Record) -> Record:
    spec = pack_spec(record) if isinstance(record, Task) else None
    return unpack(record.kind, record.namespace, record.id, record.revision, pack_body(record), spec)


@pytest.mark.parametrize("record", full_records(), ids=lambda record: record.kind)
def test_a_record_comes_back_as_it_was(record: Record) -> None:
    assert there_and_back(record) == record


def test_what_has_its_default_is_left_out() -> None:
    assert msgspec.msgpack.decode(pack_body(task())) == {"state": "QUEUED", "create_time": 100.0}
    assert msgspec.msgpack.decode(pack_spec(task())) == {"type": "review"}


def test_a_field_of_a_later_version_is_skipped_and_one_it_left_out_has_its_default() -> None:
    body = msgspec.msgpack.encode({"state": "QUEUED", "shape_of_things_to_come": {"a": [1]}})
    spec = msgspec.msgpack.encode({"type": "t", "input": {"data": b"x", "colour": "red"}})
    read = unpack(Kind.TASK, "n", "t", 3, body, spec)
    assert isinstance(read, Task)
    assert (read.revision, read.create_time, read.spec.timeouts) == (3, 0.0, task().spec.timeouts)
    assert read.spec.input is not None
    assert read.spec.input.data == b"x"


def test_records_that_were_read_share_no_mutable_default() -> None:
    first, second = there_and_back(task()), there_and_back(task())
    assert isinstance(first, Task)
    assert isinstance(second, Task)
    assert first.spec.labels is not second.spec.labels


@pytest.mark.parametrize("body", [b"", b"\xc1", msgspec.msgpack.encode({"state": "NO_SUCH_STATE"})])
def test_what_cannot_be_understood_is_unreadable(body: bytes) -> None:
    with pytest.raises(Unreadable):
        unpack(Kind.TASK, "n", "t", 1, body, pack_spec(task()))


def test_the_events_of_a_change_set_come_back_as_they_were() -> None:
    error = TaskError(error_class=ErrorClass.TOOL, reason="EXIT_CODE", message="exit code 2")
    told = [
        Event(
            type=EventType.TASK_FAILED,
            namespace="n",
            task_id="t",
            agent_id="a",
            session_id="s",
            role="r",
            labels={"team": "one"},
            ancestors=("root", "parent"),
            data={"attempt": 2, "error": error},
        ),
        Event(type=EventType.AGENT_WAKING, namespace="n"),
    ]
    back = unpack_events(8, 7, 12.5, pack_events(told))
    assert [(event.sequence, event.last, event.time) for event in back] == [(7, 8, 12.5), (8, 8, 12.5)]
    for event, original in zip(back, told, strict=True):
        original.sequence, original.last, original.time = event.sequence, event.last, event.time
    assert back == told


@pytest.mark.parametrize("error", [None, "", {"message": "m"}])
def test_what_is_called_an_error_and_is_none_comes_back(error: object) -> None:
    told = Event(type=EventType.TASK_FAILED, namespace="n", data={"error": error}, sequence=1, last=1)
    assert unpack_events(1, 1, 0.0, pack_events([told])) == [told]


def test_an_event_of_an_unknown_type_is_unreadable() -> None:
    body = pack_events([Event(type=EventType.AGENT_WAKING, namespace="n")])
    entries = msgspec.msgpack.decode(body)
    entries[0][0] = 9999
    with pytest.raises(Unreadable, match="9999"):
        unpack_events(1, 1, 0.0, msgspec.msgpack.encode(entries))
