"""Backups by themselves: when one is due, which are kept, and what happens when none can be made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from agenthive_plugins.production.alerts import AlertState
from agenthive_plugins.production.desk import ALERTS
from agenthive_plugins.production.ledger import Ledger
from agenthive_plugins.production.recovery import NOTES, Backup, BackupNote, Recovery, surplus
from agenthive_server.plugin.api import BackupReport, ManualClock, StoreUnavailable
from hypothesis import given, settings
from hypothesis import strategies as st

DAY = 86_400.0
NOW = 1_700_000_000.0


def report(path: Path, time: float) -> BackupReport:
    return BackupReport(
        path=path, create_time=time, log_id="l", last_sequence=1, size=1, records=1, events=1, blobs=0, digest="d"
    )


@dataclass
class Disk:
    """What makes backups here: folders with nothing in them. The real thing is in `test_recovery_methods.py`."""

    clock: ManualClock
    made: dict[str, float] = field(default_factory=dict)
    failure: str = ""
    damaged: set[str] = field(default_factory=set)

    async def create_backup(self, path: Path) -> BackupReport:
        if self.failure:
            raise StoreUnavailable(self.failure)
        await asyncio.to_thread(path.mkdir, parents=True)
        self.made[path.name] = self.clock.now()
        return report(path, self.clock.now())

    async def list_backups(self, place: Path) -> list[BackupReport]:
        return [report(place / name, time) for name, time in self.made.items() if (place / name).exists()]

    async def verify_backup(self, path: Path) -> BackupReport:
        found = report(path, self.made[path.name])
        return found if path.name not in self.damaged else BackupReport(**{**_fields(found), "problems": ("rust",)})


def _fields(found: BackupReport) -> dict[str, Any]:
    return {name: getattr(found, name) for name in BackupReport.__slots__}


@dataclass
class Story:
    recovery: Recovery
    disk: Disk
    ledger: Ledger
    clock: ManualClock


@pytest.fixture
def story(
    desks: Callable[..., Any], ledger: Ledger, clock: ManualClock, new_id: Callable[[], str], tmp_path: Path
) -> Story:
    disk = Disk(clock)

    async def prepare() -> None:
        return

    recovery = Recovery(
        disk,  # type: ignore[arg-type]  # only what backups need
        ledger,
        desks().desk,
        clock,
        tmp_path,
        new_id=new_id,
        every=6 * 3_600.0,
        keep=30 * DAY,
        last_sequence=lambda: 5,
        prepare=prepare,
    )
    return Story(recovery, disk, ledger, clock)


async def test_one_is_made_when_it_is_due_and_read_at_once(story: Story) -> None:
    await story.recovery.turn()
    await story.recovery.turn()
    (only,) = await story.recovery.all()
    assert only.note.verify_time
    assert only.note.made_here
    story.clock.move(6 * 3_600)
    await story.recovery.turn()
    assert len(await story.recovery.all()) == 2


async def test_a_failure_alerts_until_one_can_be_made_again(story: Story) -> None:
    story.disk.failure = "the disk is gone"
    await story.recovery.turn()
    (alert,) = await story.ledger.all(ALERTS)
    assert alert.title.startswith("backup_failure")
    assert alert.description == "the disk is gone"
    assert (await story.recovery.readiness()).note.last_failure == "the disk is gone"
    story.disk.failure = ""
    await story.recovery.turn()
    (alert,) = await story.ledger.all(ALERTS)
    assert alert.state is AlertState.RESOLVED
    ready = await story.recovery.readiness()
    assert (ready.can_recover, ready.note.last_failure) == (True, "")


async def test_a_month_of_backups_is_thinned_out(story: Story) -> None:
    for _ in range(45 * 4):
        await story.recovery.turn()
        story.clock.move(6 * 3_600)
    found = await story.recovery.all()
    assert 30 <= len(found) <= 36
    ages = [(story.clock.now() - each.report.create_time) / DAY for each in found]
    assert max(ages) <= 31
    assert len([age for age in ages if age <= 1]) == 4
    assert len(await story.ledger.all(NOTES)) == len(found)


moments = st.lists(st.floats(0, 60), max_size=40)


@given(moments, st.sets(st.integers(0, 39)), st.sets(st.integers(0, 39)))
@settings(max_examples=150, deadline=None)
def test_what_is_removed_is_ours_and_never_the_last_that_is_whole(
    ages: list[float], foreign: set[int], damaged: set[int]
) -> None:
    found = [
        Backup(
            str(n),
            report(Path(str(n)), NOW - age * DAY),
            BackupNote(made_here=n not in foreign, problems=("rust",) if n in damaged else ()),
        )
        for n, age in enumerate(sorted(ages))
    ]
    gone = {each.id for each in surplus(found, NOW, 30 * DAY)}
    whole = [each.id for each in found if not each.note.problems]
    assert not whole or whole[0] not in gone
    for n, each in enumerate(found):
        age = (NOW - each.report.create_time) / DAY
        if n in foreign or age < 1:
            assert each.id not in gone
