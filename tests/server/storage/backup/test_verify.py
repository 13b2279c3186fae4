"""Whatever is broken in a backup is found, and said in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.errors import BadRequest
from agenthive_server.storage.backup.manifest import DATABASE, MANIFEST
from agenthive_server.storage.backup.verify import MOST_PROBLEMS, verify_backup
from agenthive_server.storage.backup.work import GivenUp, Token
from agenthive_server.storage.sqlite import SqliteStore

BackUp = Callable[[], Path]
Tamper = Callable[..., None]


def problems(backup: Path) -> str:
    return "\n".join(verify_backup(backup, Token(), ManualClock()).problems)


async def test_a_good_backup_has_no_problems_and_reading_it_leaves_nothing_behind(
    filled: SqliteStore, back_up: BackUp
) -> None:
    backup = back_up()
    found = verify_backup(backup, Token(), ManualClock())
    assert found.whole, found.problems
    assert found.manifest is not None
    assert {path.name for path in backup.glob("*")} == {DATABASE, MANIFEST}


async def test_a_flipped_byte_anywhere_is_found(filled: SqliteStore, back_up: BackUp) -> None:
    backup = back_up()
    for name in (DATABASE, MANIFEST):
        good = (backup / name).read_bytes()
        for place in range(50, len(good), len(good) // 7):
            (backup / name).write_bytes(good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :])
            assert problems(backup), f"{name} at {place}"
        (backup / name).write_bytes(good)
    assert problems(backup) == ""


async def test_files_that_are_missing_or_cut_are_named(filled: SqliteStore, back_up: BackUp) -> None:
    backup = back_up()
    content = (backup / DATABASE).read_bytes()
    (backup / DATABASE).write_bytes(content[:-4096])
    assert f"{DATABASE} has {len(content) - 4096} bytes, not {len(content)}" in problems(backup)
    (backup / DATABASE).unlink()
    assert problems(backup) == f"{DATABASE}: No such file or directory"
    (backup / MANIFEST).unlink()
    with pytest.raises(BadRequest, match="is not a backup"):
        problems(backup)


# What was broken before it was backed up, so that the digests fit


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("DELETE FROM event WHERE last = 4", "the log has a hole: event 5 follows event 3"),
        ("DELETE FROM event WHERE last = (SELECT max(last) FROM event)", "the log ends with event 9, its head is 10"),
        ("UPDATE event SET time = 5 WHERE last = 4", "the time of event 4 is before that of the event before it"),
        ("UPDATE event SET body = x'c1' WHERE last = 4", "events 4 to 4 cannot be read"),
        ("UPDATE event SET body = x'90' WHERE last = 4", "events 4 to 4 should be 1, and are 0"),
        ("UPDATE task SET body = x'93'", "the record task 'task-1' cannot be read"),
        ("UPDATE blob SET size = 1", "bytes, not 1"),
        ("UPDATE blob_chunk SET content = zeroblob(length(content))", "the content of the blob sha256:"),
        ("DELETE FROM blob_chunk WHERE number = 0", "bytes, not"),
        ("UPDATE meta SET log_id = 'x'", "the database is of log x up to event 10"),
        ("UPDATE alembic_version SET version_num = '9999'", "use a newer Agent Hive"),
        ("DROP TABLE blob_chunk", "tables are missing: blob_chunk"),
    ],
)
async def test_what_is_wrong_inside_is_told(
    filled: SqliteStore, back_up: BackUp, tampered: Tamper, statement: str, told: str
) -> None:
    backup = back_up()
    tampered(backup, statement)
    assert told in problems(backup)


async def test_a_page_that_is_damaged_is_told_by_the_database_itself(
    filled: SqliteStore, back_up: BackUp, tampered: Tamper
) -> None:
    backup = back_up()
    content = bytearray((backup / DATABASE).read_bytes())
    content[3 * 4096 : 3 * 4096 + 64] = bytes(64)
    (backup / DATABASE).write_bytes(content)
    tampered(backup)
    assert "the database" in problems(backup)


async def test_not_more_is_told_than_anybody_reads(filled: SqliteStore, back_up: BackUp, tampered: Tamper) -> None:
    backup = back_up()
    rows = "WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 2 FROM n WHERE i < 200)"
    tampered(backup, f"{rows} INSERT INTO event SELECT i, i, 2000.0, x'90' FROM n")
    assert len(verify_backup(backup, Token(), ManualClock()).problems) == MOST_PROBLEMS


async def test_it_can_be_given_up(filled: SqliteStore, back_up: BackUp) -> None:
    backup, token = back_up(), Token()
    token.give_up()
    with pytest.raises(GivenUp):
        verify_backup(backup, token, ManualClock())
