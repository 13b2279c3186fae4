"""What a session owes the server is bounded, numbered, and forgotten when it is acknowledged."""

from __future__ import annotations

import pytest
from agenthive.outbox import MAX_ITEM_BYTES, Lease, Outbox, split_heartbeat
from agenthive.v1 import task_pb2
from agenthive.v1 import worker_service_pb2 as pb


def output(offset: int, size: int = 1000, task_id: str = "t-1") -> pb.WorkerItem:
    chunk = pb.TaskOutputChunk(task_id=task_id, lease_epoch=1, offset=offset, data=b"x" * size)
    return pb.WorkerItem(output=chunk)


def offsets(frame: pb.ConnectRequest | None) -> list[int]:
    assert frame is not None
    return [item.output.offset for item in frame.items]


def test_beyond_its_bound_the_oldest_output_is_dropped() -> None:
    outbox = Outbox(max_output_bytes=3500)
    for offset in range(0, 5000, 1000):
        outbox.put(output(offset))
    assert offsets(outbox.next_frame(0)) == [2000, 3000, 4000]


def test_output_that_was_sent_is_dropped_before_it_is_repeated() -> None:
    outbox = Outbox(max_output_bytes=3500)
    for offset in range(0, 3000, 1000):
        outbox.put(output(offset))
    assert offsets(outbox.next_frame(0)) == [0, 1000, 2000]
    outbox.put(output(3000))
    outbox.resume(0)
    assert offsets(outbox.next_frame(0)) == [1000, 2000]
    assert offsets(outbox.next_frame(0)) == [3000]


def test_acknowledged_output_makes_room() -> None:
    outbox = Outbox(max_output_bytes=3500)
    for offset in range(0, 3000, 1000):
        outbox.put(output(offset))
    outbox.next_frame(0)
    outbox.acknowledge(1)
    for offset in range(3000, 6000, 1000):
        outbox.put(output(offset))
    assert offsets(outbox.next_frame(0)) == [3000, 4000, 5000]


def test_only_output_is_ever_dropped() -> None:
    outbox = Outbox(max_output_bytes=100)
    outbox.put(pb.WorkerItem(accept=pb.TaskAccept(task_id="t-1", lease_epoch=1)))
    outbox.put(output(0))
    frame = outbox.next_frame(0)
    assert frame is not None
    assert [item.WhichOneof("item") for item in frame.items] == ["accept"]


def test_a_frame_holds_about_a_mebibyte() -> None:
    outbox = Outbox()
    for number in range(20):
        outbox.put(output(number, size=60_000))
    first, second = outbox.next_frame(0), outbox.next_frame(0)
    assert first is not None
    assert second is not None
    assert first.ByteSize() <= 1024 * 1024 + 1024
    assert len(first.items) + len(second.items) == 20


def test_an_item_no_server_would_take_is_refused_at_once() -> None:
    outbox = Outbox()
    with pytest.raises(ValueError, match="too big"):
        outbox.put(output(0, size=MAX_ITEM_BYTES + 1))
    assert outbox.next_frame(0) is None


def test_an_acknowledgement_in_the_middle_of_a_repeat_is_not_sent_again() -> None:
    outbox = Outbox()
    for offset in range(3):
        outbox.put(output(offset))
        outbox.next_frame(0)
    outbox.resume(0)
    assert offsets(outbox.next_frame(0)) == [0]
    outbox.acknowledge(2)
    assert offsets(outbox.next_frame(0)) == [2]
    assert outbox.next_frame(0) is None


def test_a_restart_keeps_the_beats_of_valid_leases() -> None:
    outbox = Outbox()
    beats = [pb.TaskBeat(task_id="t-1", lease_epoch=1, checkpoint=b"1"), pb.TaskBeat(task_id="t-2", lease_epoch=1)]
    outbox.put(pb.WorkerItem(heartbeat=pb.Heartbeat(tasks=beats)))
    outbox.restart({Lease("t-1", 1)})
    frame = outbox.next_frame(0)
    assert frame is not None
    assert [(each.task_id, each.checkpoint) for each in frame.items[0].heartbeat.tasks] == [("t-1", b"1")]


def test_a_heartbeat_with_many_checkpoints_is_split() -> None:
    beats = [pb.TaskBeat(task_id=f"t-{number}", checkpoint=b"x" * 60_000) for number in range(40)]
    parts = list(split_heartbeat(pb.Heartbeat(tasks=beats)))
    assert [beat.task_id for part in parts for beat in part.tasks] == [beat.task_id for beat in beats]
    assert max(part.ByteSize() for part in parts) < 1024 * 1024 + 1024
    assert list(split_heartbeat(pb.Heartbeat())) == [pb.Heartbeat()]  # an empty beat is a pulse too


def test_leases_whose_end_is_on_its_way_are_told() -> None:
    outbox = Outbox()
    failed = pb.TaskResult(task_id="t-1", lease_epoch=1, error=task_pb2.TaskError(message="no"))
    outbox.put(pb.WorkerItem(result=failed))
    outbox.put(pb.WorkerItem(hand_back=pb.TaskHandBack(task_id="t-2", lease_epoch=2)))
    outbox.put(pb.WorkerItem(accept=pb.TaskAccept(task_id="t-3", lease_epoch=3)))
    outbox.next_frame(0)
    assert outbox.ended_leases() == {("t-1", 1), ("t-2", 2)}
    outbox.acknowledge(1)
    assert outbox.ended_leases() == set()
