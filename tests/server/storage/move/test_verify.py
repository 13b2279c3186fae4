"""What differs is found and named, whatever it is; what is found is a failure of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.errors import Refused
from agenthive_server.kernel.ports import BlobInfo, StoreUnusable
from agenthive_server.storage.move.moving import Move
from agenthive_server.storage.move.parts import PARTS
from agenthive_server.storage.move.verify import Differs
from agenthive_server.storage.postgres.dial import Connection
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.storage.sqlite import SqliteStore

MakeMove = Callable[..., Move]

TAMPERED = [
    {
        "UPDATE task SET body = body || '\\x00' WHERE id = 'task-ü'": (
            "task: 2 rows different",
            "(default/task-ü, ü2/task-ü)",
        ),
        "UPDATE agent SET labels = '{}'": ("agent: 6 rows different", "(a2/agent-a, b2/agent-b, default/agent-a, …)"),
        "UPDATE state SET revision = 2 WHERE namespace = 'a2'": ("state: 1 row different", "(a2/state-a)"),
        "DELETE FROM session WHERE namespace = 'b2'": ("session: 1 row missing", "(b2/session-b)"),
        "DELETE FROM event WHERE last = 20": ("event: 1 row missing", "a hole: event 21 follows event 18"),
        "UPDATE blob_chunk SET content = content || 'x' WHERE number = 2": ("blob_chunk: 2 rows different", "/2,"),
    },
    {
        "UPDATE task SET spec = '' WHERE namespace = 'a2'": ("task: 1 row different", "(a2/task-a)"),
        "INSERT INTO cursor VALUES ('n', 'new', 1, '')": ("cursor: 1 row too many", "(n/new)"),
        "DELETE FROM event WHERE last = 60": ("event: 1 row missing", "the log ends with event 58, its head is 60"),
        "UPDATE blob SET create_time = 2 WHERE namespace = 'other'": ("blob: 1 row different", "(other/sha256:"),
    },
    {
        "UPDATE task SET due_time = 17.5 WHERE id = 'task-b'": (
            "task: 2 rows different",
            "(b2/task-b, default/task-b)",
        ),
        "UPDATE event SET time = time + 1 WHERE last = 8": ("event: 1 row different", "(8)"),
    },
]


@pytest.mark.parametrize("tampered", TAMPERED)
async def test_whatever_is_changed_in_the_target_is_named(
    filled: Path, move: MakeMove, admin: Connection, tampered: dict[str, tuple[str, str]]
) -> None:
    await move().run()
    await move().compare()
    await admin.execute("; ".join(tampered))
    with pytest.raises(Differs, match="source and target differ: ") as caught:
        await move().compare()
    message = caught.value.message
    for sentence, names in tampered.values():
        assert f"{sentence} in the target (" in message
        assert names in message
    # Nothing else is; the end and the holes of the log are told beside the rows.
    assert len(caught.value.differences) == len(tampered) + message.count("the log")


async def test_what_differs_at_the_end_keeps_the_target_from_being_served(
    filled: Path, move: MakeMove, admin: Connection, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of what never changes is believed by its key; the comparison of the end believes nothing."""
    await move().run()
    await move().take_back()
    await admin.execute("UPDATE event SET body = body || '\\x00' WHERE last = 8")
    with pytest.raises(Differs, match="event: 1 row different"):
        await move().run()
    with pytest.raises(StoreUnusable, match="being moved here"):
        await PostgresStore(url, clock=ManualClock())._database.prepare()
    store = SqliteStore(filled, clock=ManualClock())
    await store.open()
    await store.close()
    # What is wrong removed, the move goes on.
    await admin.execute("DELETE FROM event WHERE last = 8")
    assert (await move().run()).written == 1


async def test_a_blob_that_is_not_what_it_is_called_is_named(
    path: Path, move: MakeMove, clock: ManualClock, upload: Callable[..., Awaitable[BlobInfo]]
) -> None:
    store = SqliteStore(path, clock=clock)
    await store.open()
    one = await upload(store, b"content" * 400_000)
    other = await upload(store, b"other")
    await store.close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE blob_chunk SET content = ? WHERE number = 1", (b"x" * 2**20,))
        db.execute("UPDATE blob SET size = 6 WHERE id = ?", (other.id,))
    with pytest.raises(Differs) as caught:
        await move().run()
    assert set(caught.value.differences) == {
        f"the content of the blob {one.id} of default is another, in the source too",
        f"the blob {other.id} of default has 5 bytes, not 6, in the source too",
    }


async def test_sums_tell_of_what_was_compared(filled: Path, move: MakeMove) -> None:
    moved = await move().run()
    assert [each.table for each in moved.sums] == [part.name for part in PARTS]
    compared = await move().compare()
    assert compared.sums == moved.sums
    assert len({each.digest for each in moved.sums}) == len(PARTS)


async def test_only_what_stands_still_is_compared(filled: Path, move: MakeMove, clock: ManualClock) -> None:
    with pytest.raises(Refused, match="holds nothing of this hive"):
        await move().compare()
    await move().run()
    await move().take_back()
    store = SqliteStore(filled, clock=clock)
    await store.open()
    with pytest.raises(Refused, match="a server runs on"):
        await move().compare()
    await store.close()
