"""The journal: what was committed after a backup, one entry for each group of change sets, in segments.

A segment is a file of entries. An entry is its length, a CRC-32 of the length, a CRC-32 of the content, and the content
in MessagePack. So an entry that was cut off by the end of a process or of power is told from one that was damaged:
nothing follows the first. Groups are numbered without a hole by the store itself; whoever reads checks that.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from agenthive_server.kernel.changes import ChangeSet
from agenthive_server.kernel.errors import DataLoss
from agenthive_server.kernel.records import Record
from agenthive_server.kernel.tasks import Task
from agenthive_server.storage.codec import pack_body, pack_events, pack_spec

from .manifest import FORMAT

SUFFIX = ".journal"
FOLDER = "journal"

_HEAD = struct.Struct("<III")
_LONGEST = 256 * 2**20


class Entry(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """What a segment holds; later versions add fields at the end."""


class Begin(Entry, frozen=True, tag="begin"):
    """The first entry of a segment. `group_count` is the number of the last group before it."""

    format: int
    software: str
    schema: str
    log_id: str
    segment: int
    group_count: int
    time: float


class Put(msgspec.Struct, array_like=True, frozen=True):
    """A record as it became; of a task its specification too, when it was made."""

    kind: str
    namespace: str
    id: str
    revision: int
    body: bytes
    spec: bytes | None = None


class Removed(msgspec.Struct, array_like=True, frozen=True):
    """A record that was removed, as it was."""

    kind: str
    namespace: str
    id: str
    revision: int


class Changes(msgspec.Struct, array_like=True, frozen=True):
    """A change set. `first` and `last` are those of its events; zero where it has none."""

    first: int
    last: int
    events: bytes
    puts: list[Put]
    removed: list[Removed]


class Group(Entry, frozen=True, tag="group"):
    """A group as it was committed, at a time."""

    group_count: int
    time: float
    members: list[Changes]


class Chunk(Entry, frozen=True, tag="chunk"):
    """A piece of an upload."""

    upload_id: str
    number: int
    content: bytes


class Blob(Entry, frozen=True, tag="blob"):
    """A blob that is there from now on; without an upload it was there, and has a new time."""

    namespace: str
    id: str
    size: int
    content_type: str
    create_time: float
    upload_id: str = ""


class End(Entry, frozen=True, tag="end"):
    """The last entry of a segment that was ended in order, after all that was committed until then."""

    group_count: int


AnyEntry = Begin | Group | Chunk | Blob | End

_pack = msgspec.msgpack.Encoder().encode
_unpack: Callable[[bytes], AnyEntry] = msgspec.msgpack.Decoder(AnyEntry).decode


def entry_of(changes: ChangeSet) -> Changes:
    """Return a change set that was committed, as the journal keeps it."""
    events = changes.events
    return Changes(
        first=events[0].sequence if events else 0,
        last=events[-1].sequence if events else 0,
        events=pack_events(events) if events else b"",
        puts=[_put(record) for record in changes.puts.values()],
        removed=[Removed(record.kind.value, *record.key, record.revision) for record in changes.deletes.values()],
    )


def _put(record: Record) -> Put:
    # What never changes is written once; replaying finds it in the row.
    spec = pack_spec(record) if record.revision == 1 and isinstance(record, Task) else None
    return Put(record.kind.value, *record.key, record.revision, pack_body(record), spec)


def framed(entry: Entry) -> bytes:
    """Return an entry as a segment holds it."""
    content = _pack(entry)
    length = len(content).to_bytes(4, "little")
    return _HEAD.pack(len(content), zlib.crc32(length), zlib.crc32(content)) + content


class Segment:
    """The segment that is being written."""

    def __init__(self, folder: Path, begin: Begin) -> None:
        """Make the file; raises OSError."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = folder / f"{begin.segment:08d}{SUFFIX}"
        self.size = 0
        self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self.write([framed(begin)])

    def write(self, frames: Iterable[bytes]) -> None:
        """Hand entries to the system; they survive the end of this process. Raises OSError."""
        content = memoryview(b"".join(frames))
        while content:
            written = os.write(self._handle, content)
            self.size += written
            content = content[written:]

    def sync(self) -> None:
        """Return when everything written is on disk; raises OSError, also when somebody has taken the file away."""
        os.fdatasync(self._handle)
        if not os.path.samestat(os.fstat(self._handle), self.path.stat()):
            raise FileNotFoundError(errno.ENOENT, "another file has its name", str(self.path))

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


def segments(folder: Path) -> list[Path]:
    """Return the segments in the folder of a log, in order."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def number_of(segment: Path) -> int:
    """Return the number of a segment."""
    return int(segment.name.removesuffix(SUFFIX))


def first_segment(folder: Path, group_count: int, time: float) -> int:
    """Return the number of the segment that goes on after a group, as things stood at a time; 0 when there is none.

    A log may go back: where commits are not synced, a loss of power takes the last ones from the database, but not from
    here. So a segment that began later is not asked.
    """
    found = 0
    for path in segments(folder):
        begin = read_begin(path)
        if begin is not None and begin.group_count <= group_count and begin.time <= time:
            found = begin.segment
    return found


def read_begin(path: Path) -> Begin | None:
    """Return the first entry of a segment; None when it was cut off. Raises as `read_segment`."""
    entry = next(read_segment(path), None)
    return entry if isinstance(entry, Begin) else None


def read_segment(path: Path) -> Iterator[AnyEntry]:
    """Yield the entries of a segment up to its end, or to an entry that was cut off while it was written.

    Raises `DataLoss` when an entry is damaged, or the segment is of a newer version; OSError.
    """
    with path.open("rb") as file:
        while head := file.read(_HEAD.size):
            at = file.tell() - len(head)
            content = _read_content(head, file)
            if content is None:
                if _something_follows(file):
                    raise DataLoss(f"{path} is damaged at byte {at}")
                return
            try:
                entry = _unpack(content)
            except msgspec.MsgspecError as error:
                raise DataLoss(f"{path} cannot be understood at byte {at}: {error}") from None
            if isinstance(entry, Begin) and entry.format > FORMAT:
                raise DataLoss(f"{path} was written by a newer version of Agent Hive")
            yield entry


def ended_with(path: Path) -> int | None:
    """Return the number of the last group before a segment that was ended in order; None for one that was cut off.

    Only looks at the heads of its entries and at the last one. Raises OSError.
    """
    with path.open("rb") as file:
        end, at, last = file.seek(0, os.SEEK_END), 0, 0
        while at + _HEAD.size <= end:
            file.seek(at)
            length, length_crc, _ = _HEAD.unpack(file.read(_HEAD.size))
            if zlib.crc32(length.to_bytes(4, "little")) != length_crc:
                return None
            at, last = at + _HEAD.size + length, at
        file.seek(last)
        content = _read_content(file.read(_HEAD.size), file) if at == end else None
    try:
        entry = _unpack(content) if content else None
    except msgspec.MsgspecError:
        return None
    return entry.group_count if isinstance(entry, End) else None


def _read_content(head: bytes, file: BinaryIO) -> bytes | None:
    """Return the content of an entry, None when it is not as it was written."""
    if len(head) < _HEAD.size:
        return None
    length, length_crc, content_crc = _HEAD.unpack(head)
    if zlib.crc32(head[:4]) != length_crc or length > _LONGEST:
        return None
    content = file.read(length)
    return content if len(content) == length and zlib.crc32(content) == content_crc else None


def _something_follows(file: BinaryIO) -> bool:
    """Whether more than the zeros follow that a loss of power leaves at the end of a file."""
    while piece := file.read(1024 * 1024):
        if piece.strip(b"\0"):
            return True
    return False
