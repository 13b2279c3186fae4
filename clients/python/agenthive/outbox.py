"""What a session still owes the server: items waiting to be sent, and frames sent but not acknowledged."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from agenthive.v1 import worker_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Set

MAX_FRAME_ITEMS: Final = 1024
MAX_FRAME_BYTES: Final = 1024 * 1024
MAX_ITEM_BYTES: Final = 3 * 1024 * 1024
"""A larger item would make a frame the server refuses (4 MiB), again after every reconnect."""
MAX_OUTPUT_BYTES: Final = 8 * 1024 * 1024

_LEASED: Final = ("accept", "reject", "hand_back", "output", "result", "input_request")
_ENDS: Final = ("hand_back", "result")


class Lease(NamedTuple):
    """What a lease is told by."""

    task_id: str
    epoch: int


def lease_of(item: pb.WorkerItem) -> Lease | None:
    """Return the lease an item is about, or None when it is about none or, as a heartbeat, about many."""
    kind = item.WhichOneof("item")
    if kind not in _LEASED:
        return None
    about = getattr(item, kind)
    return Lease(about.task_id, about.lease_epoch)


def split_heartbeat(heartbeat: pb.Heartbeat) -> Iterator[pb.Heartbeat]:
    """Yield a heartbeat in parts of at most about a mebibyte: a thousand checkpoints are too much for one frame."""
    part, size = pb.Heartbeat(), 0
    for beat in heartbeat.tasks:
        if part.tasks and size + beat.ByteSize() > MAX_FRAME_BYTES:
            yield part
            part, size = pb.Heartbeat(), 0
        part.tasks.append(beat)
        size += beat.ByteSize()
    yield part


def greeting(base: pb.Hello, session_id: str, received: int, ended: Set[Lease], credential: str) -> pb.Hello:
    """Return the hello of a stream: what the host says, the session it goes on with, and the one secret it needs.

    `received` is the last frame of the server that was dealt with; `ended` are leases whose end it has not heard of.
    """
    hello = pb.Hello()
    hello.CopyFrom(base)
    hello.session_id = session_id
    hello.acknowledged_frame = received if session_id else 0
    if credential:
        hello.credential = credential
        hello.ClearField("join_token")
    named = {Lease(each.task_id, each.lease_epoch) for each in hello.leases}
    for lease in sorted(ended - named):
        hello.leases.add(task_id=lease.task_id, lease_epoch=lease.epoch)
    return hello


class _Slot:
    """An item until it is acknowledged; then, or when it was dropped, the item is None."""

    __slots__ = ("item", "serial", "size")

    def __init__(self, item: pb.WorkerItem, serial: int) -> None:
        self.item: pb.WorkerItem | None = item
        self.size = item.ByteSize()
        self.serial = serial


class _Frame(NamedTuple):
    number: int
    slots: list[_Slot]


class Outbox:
    """Numbers items into frames and keeps them until they are acknowledged. Plain: it neither waits nor sends.

    Output is bounded: beyond `max_output_bytes` the oldest chunks are dropped; the offsets show the gap.
    """

    def __init__(self, max_output_bytes: int = MAX_OUTPUT_BYTES) -> None:
        """Begin empty, with frame number 1."""
        self._max_output_bytes = max_output_bytes
        self._waiting: deque[_Slot] = deque()
        self._frames: deque[_Frame] = deque()
        self._resend = 0  # frames at the end of _frames that are to be sent once more
        self._number = 0
        self._serial = 0
        self._outputs: deque[_Slot] = deque()
        self._output_bytes = 0

    def put(self, item: pb.WorkerItem) -> int:
        """Add an item; return its serial. Raises ValueError when it is too big for any frame."""
        if item.ByteSize() > MAX_ITEM_BYTES:
            raise ValueError(f"an item of {item.ByteSize()} bytes is too big; at most {MAX_ITEM_BYTES}")
        self._serial += 1
        slot = _Slot(item, self._serial)
        self._waiting.append(slot)
        if item.HasField("output"):
            self._outputs.append(slot)
            self._output_bytes += slot.size
            self._bound_output()
        return self._serial

    def next_frame(self, acknowledged: int) -> pb.ConnectRequest | None:
        """Return the next frame to send, acknowledging the server's frame of that number, or None."""
        if self._resend:
            frame = self._frames[-self._resend]
            self._resend -= 1
        elif self._waiting:
            frame = self._gather()
        else:
            return None
        frame.slots[:] = [slot for slot in frame.slots if slot.item is not None]
        items = [slot.item for slot in frame.slots if slot.item is not None]
        return pb.ConnectRequest(frame_number=frame.number, acknowledged_frame=acknowledged, items=items)

    def acknowledge(self, number: int) -> None:
        """Forget the frames up to this number."""
        while self._frames and self._frames[0].number <= number:
            for slot in self._frames.popleft().slots:
                self._settle(slot)
        self._resend = min(self._resend, len(self._frames))

    def resume(self, acknowledged: int) -> None:
        """Go on in a new stream of the same session: what the server has not dealt with is sent once more."""
        self.acknowledge(acknowledged)
        self._resend = len(self._frames)

    def restart(self, valid: Set[Lease]) -> None:
        """Go on in a new session: number from 1, without what is about leases that are not valid."""
        kept = [slot for slot in self._open() if self._keep(slot, valid)]
        self._frames.clear()
        self._waiting = deque(kept)
        self._number = self._resend = 0

    def settled(self, serial: int) -> bool:
        """Say whether everything up to this serial was acknowledged or dropped."""
        first = next(self._open(), None)
        return first is None or first.serial > serial

    @property
    def last_serial(self) -> int:
        """The serial of the newest item."""
        return self._serial

    def ended_leases(self) -> set[Lease]:
        """Return the leases whose end (a result, a hand-back) is not acknowledged: still held, for the server."""
        items = (slot.item for slot in self._open() if slot.item is not None)
        return {lease for item in items if item.WhichOneof("item") in _ENDS and (lease := lease_of(item)) is not None}

    def find(self, number: int, index: int) -> pb.WorkerItem | None:
        """Return an item of a frame that is not acknowledged, or None."""
        for frame in self._frames:
            if frame.number == number and index < len(frame.slots):
                return frame.slots[index].item
        return None

    def _open(self) -> Iterator[_Slot]:
        slots: Iterable[_Slot] = (slot for frame in self._frames for slot in frame.slots)
        yield from (slot for slot in slots if slot.item is not None)
        yield from (slot for slot in self._waiting if slot.item is not None)

    def _gather(self) -> _Frame:
        slots: list[_Slot] = []
        size = 0
        while self._waiting and len(slots) < MAX_FRAME_ITEMS:
            size += self._waiting[0].size
            if slots and size > MAX_FRAME_BYTES:
                break
            slots.append(self._waiting.popleft())
        self._number += 1
        frame = _Frame(self._number, slots)
        self._frames.append(frame)
        return frame

    def _settle(self, slot: _Slot) -> None:
        if slot.item is not None and slot.item.HasField("output"):
            self._output_bytes -= slot.size
        slot.item = None
        while self._outputs and self._outputs[0].item is None:
            self._outputs.popleft()

    def _bound_output(self) -> None:
        while self._output_bytes > self._max_output_bytes and self._outputs:
            self._settle(self._outputs[0])

    def _keep(self, slot: _Slot, valid: Set[Lease]) -> bool:
        if slot.item is None:
            return False
        if slot.item.HasField("heartbeat"):
            beats = [each for each in slot.item.heartbeat.tasks if Lease(each.task_id, each.lease_epoch) in valid]
            slot.item = pb.WorkerItem(heartbeat=pb.Heartbeat(tasks=beats)) if beats else None
            return bool(beats)
        lease = lease_of(slot.item)
        if lease is not None and lease not in valid:
            self._settle(slot)
            return False
        return True
