"""Backups as verbs: made of a running server, and told in plain words."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from agenthive_server.app import App
from agenthive_server.kernel.clock import SystemClock
from agenthive_server.kernel.errors import DataLoss, NotImplementedHere
from agenthive_server.recovery import Recovery
from agenthive_server.testing.harness import open_served


def recovery(app: App) -> Recovery:
    return Recovery(app.store, SystemClock(), software="1", minimum_free=0)


def list_folder(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.exists() else []


async def test_a_running_server_is_backed_up_verified_and_restored(tmp_path: Path) -> None:
    async with open_served(tmp_path / "data") as (app, client):
        await client.delegate("work", task_id="t")
        verbs = recovery(app)
        made = await verbs.create_backup(tmp_path / "backups" / "one")
        assert (made.log_id, made.last_sequence, made.events) == (app.log.log_id, app.log.head, app.log.head)
        assert made.records >= 1
        assert [each.path for each in await verbs.list_backups(tmp_path / "backups")] == [made.path]
        verified = await verbs.verify_backup(made.path)
        assert (verified.problems, verified.digest) == ((), made.digest)
        restored = await verbs.restore_backup(made.path, tmp_path / "new")
        assert restored.path == tmp_path / "new"
        assert restored.last_sequence == made.last_sequence
        assert restored.log_id != made.log_id
        # The one that runs is not touched.
        assert (await client.get_task("t")).task_id == "t"
    async with open_served(tmp_path / "new") as (app, client):
        assert (await client.get_task("t")).task_id == "t"
        assert app.log.log_id == restored.log_id


async def test_what_is_damaged_is_told_and_not_restored(tmp_path: Path) -> None:
    async with open_served(tmp_path / "data") as (app, _):
        verbs = recovery(app)
        made = await verbs.create_backup(tmp_path / "one")
        (made.path / "hive.db").write_bytes(b"nothing")
        (problem, *_) = (await verbs.verify_backup(made.path)).problems
        assert "has 7 bytes" in problem
        with pytest.raises(DataLoss, match="is damaged"):
            await verbs.restore_backup(made.path, tmp_path / "new")
        (made.path / "manifest.json").write_text("{}")
        assert (await verbs.verify_backup(made.path)).problems
        assert await verbs.list_backups(tmp_path) == []


async def test_a_store_in_memory_says_that_it_cannot(tmp_path: Path) -> None:
    async with open_served() as (app, _):
        with pytest.raises(NotImplementedHere, match="in memory only"):
            await recovery(app).create_backup(tmp_path / "one")
    assert not (tmp_path / "one").exists()


async def test_a_call_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async with open_served(tmp_path / "data") as (app, _):
        making = asyncio.create_task(recovery(app).create_backup(tmp_path / "backups" / "one"))
        await asyncio.sleep(0)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        assert await recovery(app).list_backups(tmp_path / "backups") == []
    assert not list_folder(tmp_path / "backups")
