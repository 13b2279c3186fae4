"""What is not needed any more goes; what people made, and what leads to what is kept, stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agenthive_server.storage.backup.journal import FOLDER, Begin, Segment, number_of, segments
from agenthive_server.storage.backup.place import list_backups
from agenthive_server.storage.backup.prune import prune
from agenthive_server.storage.backup.work import Token
from agenthive_server.storage.sqlite import SqliteStore


def names(place: Path) -> list[str]:
    return [found.path.name for found in list_backups(place)]


async def test_the_newest_backup_before_the_horizon_stays_with_the_journal_from_there(
    filled: SqliteStore, place: Path, back_up: Callable[[str], Path], tampered: Callable[..., None]
) -> None:
    log_id, _ = filled.position
    for name, group_count, automatic in (
        ("by-hand", 5, False),
        ("10", 10, True),
        ("20", 20, True),
        ("30", 30, True),
        ("40", 40, True),
    ):
        tampered(back_up(name), create_time=float(group_count), group_count=group_count, automatic=automatic)
        Segment(place / FOLDER / log_id, Begin(1, "", "", log_id, group_count, group_count, float(group_count))).close()
    prune(place, log_id, 35.0, 14, Token())
    assert names(place) == ["by-hand", "30", "40"]
    assert [number_of(segment) for segment in segments(place / FOLDER / log_id)] == [30, 40]
    prune(place, log_id, 0.0, 14, Token())
    assert names(place) == ["by-hand", "30", "40"]
    prune(place, log_id, 0.0, 1, Token())
    assert names(place) == ["by-hand", "40"]


async def test_nothing_goes_while_there_is_no_backup_of_the_archive(
    filled: SqliteStore, place: Path, back_up: Callable[[str], Path]
) -> None:
    log_id, _ = filled.position
    back_up("by-hand")
    Segment(place / FOLDER / log_id, Begin(1, "", "", log_id, 1, 0, 0.0)).close()
    prune(place, log_id, 1e12, 14, Token())
    assert names(place) == ["by-hand"]
    assert len(segments(place / FOLDER / log_id)) == 1
