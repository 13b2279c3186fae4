"""What the kernel needs from outside: a store, a notifier, ids, chance, and links to sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from agenthive_server.telemetry import Histogram

from .changes import ChangeSet, Outcome
from .events import Event
from .records import Key, Kind, Record, Ref


@dataclass(frozen=True, kw_only=True)
class Query:
    """A page of records of one namespace. Empty conditions are not applied.

    Order: agents and sessions by id, everything else newest first by (create_time, id). `after` is the sort key of
    the last record of the
    page before (`(create_time, id)`, or `("", id)` where only the id counts); None begins.
    """

    namespace: str
    states: frozenset[str] = frozenset()
    role: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    parent_task_id: str = ""
    type: str = ""
    agent_id: str = ""
    # What the id begins with.
    prefix: str = ""
    after: tuple[float | str, str] | None = None
    limit: int = 50


@dataclass(frozen=True, kw_only=True)
class LogBounds:
    """The event log's ends: `oldest` is the sequence of the first event kept (head + 1 when it is empty)."""

    oldest: int
    head: int
    # Identity of this log; a restored backup has another.
    log_id: str


@dataclass(frozen=True, kw_only=True)
class BlobInfo:
    """What is known of a blob. `id` is `sha256:<hex>`; it is content-addressed and belongs to a namespace."""

    namespace: str
    id: str
    size: int
    content_type: str
    create_time: float


class Store(Protocol):
    """Keeps records, events and blobs.

    Every method raises `StoreUnavailable` when the database cannot be reached or written; then nothing was changed. A
    commit whose outcome is at first unknown is looked up before it returns.
    """

    async def open(self) -> None:
        """Open, migrated and exclusive; raises `StoreUnusable` with a sentence for the operator when that cannot be."""

    async def close(self) -> None:
        """Close; what was committed stays."""

    async def commit(self, group: Sequence[ChangeSet]) -> Sequence[Outcome]:
        """Write change sets in order in one transaction, each whole or not at all; later ones see earlier ones.

        Assigns sequence, last and time of the events of those that are committed. If the database refuses the data of
        the group, its members go one by one. Returns one outcome for each. Cancelling the caller does not stop it.
        """

    async def get(self, kind: Kind, keys: Sequence[Key]) -> list[Record | None]:
        """Return the committed records of these keys, None where there is none."""

    async def scan(self, kind: Kind, *, open_only: bool = False) -> list[Record]:
        """Return all records of a kind (with `open_only`, tasks that are not terminal), for filling the memory."""

    async def query(self, kind: Kind, query: Query) -> list[Record]:
        """Return at most `query.limit` records in the query's order."""

    async def expired(self, kind: Kind, before: float, limit: int) -> list[Record]:
        """Return records past their time: requests and terminal tasks older than `before`, expired messages."""

    async def read_events(self, after: int, limit: int) -> list[Event]:
        """Return events after a sequence in order, about `limit` of them, never ending inside a change set.

        Raises `CursorCompacted` when `after + 1` is no longer kept.
        """

    async def sequence_at(self, time: float) -> int:
        """Return the sequence before the first kept event at or after a time (the head when there is none)."""

    async def bounds(self) -> LogBounds:
        """Return the ends of the event log."""

    async def compact(self, before: int, limit: int = 5_000) -> int:
        """Remove up to `limit` events with a sequence below `before`, at change set boundaries.

        Returns the new oldest sequence.
        """

    async def put_blob(self, info: BlobInfo, chunks: AsyncIterator[bytes]) -> BlobInfo:
        """Store a blob durably; if it exists already, the existing one is returned and its time renewed."""

    async def find_blob(self, namespace: str, blob_id: str) -> BlobInfo | None:
        """Return what is known of a blob, or None."""

    def read_blob(self, namespace: str, blob_id: str, offset: int = 0) -> AsyncIterator[bytes]:
        """Yield the content from an offset in chunks of at most 1 MiB."""

    async def expire_blobs(self, before: float, limit: int = 100) -> int:
        """Remove up to `limit` blobs last stored before a time; returns how many."""

    async def ping(self) -> float:
        """Check that the database can be read; returns the seconds it took."""

    @property
    def writable(self) -> str:
        """Empty while commits succeed, else why the last one did not."""

    @property
    def in_doubt(self) -> str:
        """Why it is not known what became of the commit under way, and still looked up; empty otherwise."""

    def give_up(self) -> None:
        """Look up commits in doubt once and no longer: who waits for one hears `OutcomeUnknown`. Before closing."""

    @property
    def free_bytes(self) -> int | None:
        """Free space where the data lie, or None when that is not known."""

    @property
    def syncs(self) -> Histogram:
        """How long making commits durable took, in seconds; nothing where that is not done."""


class Touched(NamedTuple):
    """What a group did to one record of those that replicas keep in memory."""

    ref: Ref
    revision: int
    """The new one; 0 when it was removed, negative when it is over with that revision, and need not be in memory."""
    body: bytes = b""
    spec: bytes = b""
    """How it was written, for `Feed.record`."""


class Change(NamedTuple):
    """What one group of change sets did and told."""

    number: int
    """Groups of a log are counted from 1, without holes."""
    head: int
    """Where the log stood afterwards."""
    touched: Sequence[Touched]
    """In order; a record that was removed and made anew is in it twice."""
    events: Sequence[Event]


class Feed(Protocol):
    """What all replicas of a database change, in the order of their commits.

    Every method raises `StoreUnavailable`.
    """

    @property
    def written(self) -> tuple[int, int]:
        """The number of groups before the last commit of this replica, and with it; equal when it wrote nothing."""

    async def position(self) -> tuple[int, int]:
        """Return how many groups were committed, and where the log stands."""

    async def cut(self, kinds: Sequence[Kind]) -> tuple[int, list[list[Record]]]:
        """Return where the log stands, and all records of some kinds as of then; of tasks those that are not over."""

    async def changes(self, after: int, without: Collection[int] = ()) -> Sequence[Change]:
        """Return some of the groups after one, in order, without those of some numbers.

        They do not begin with `after + 1` where that is not known any more.
        """

    def record(self, touched: Touched, known: Record | None) -> Record | None:
        """Return a record as a group wrote it, given the state of it that is known; None when it has to be read."""


class StoreUnusable(Exception):
    """The store cannot be opened: a sentence for the operator."""


class Notifier(Protocol):
    """Wakes readers of the log; carries no data."""

    def ring(self, head: int) -> None:
        """Tell everyone that the log has grown to `head`."""

    async def wait(self, beyond: int, timeout: float) -> bool:  # noqa: ASYNC109 - a poll's span is part of its meaning
        """Wait until the log has grown beyond a sequence; False after `timeout` seconds."""


class Log(Protocol):
    """The event log as the kernel's own readers see it: its tail from memory, what is older from the store."""

    async def read(self, after: int, limit: int) -> list[Event]:
        """Return events after a sequence, as `Store.read_events` does."""

    async def compact(self, before: int) -> int:
        """Remove some events below a sequence; returns the new oldest sequence."""


Release = Callable[[int, int], int]
"""Asked before compaction, on behalf of others that follow the log: up to which sequence events may go, at most the
first argument. Who has not come to the second is told of what is going, and then waited for no longer."""

NewId = Callable[[], str]
"""Makes an id that was never used before."""

Chance = Callable[[], float]
"""Uniform in [0, 1); the source of jitter."""
