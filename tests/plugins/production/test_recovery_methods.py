"""Backups over a real port: made of a live store, read whole, restored, drilled; what is damaged is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agenthive.v1 import orchestrator_service_pb2, task_pb2
from agenthive.v1 import orchestrator_service_pb2_grpc as orchestrator
from agenthive.v1 import production_service_pb2 as pb
from agenthive_server.testing.harness import open_app
from grpc import aio

Serve = Callable[..., Any]


async def delegate(port: int, task_id: str) -> None:
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = orchestrator_service_pb2.DelegateTaskRequest(task_id=task_id, spec=task_pb2.TaskSpec(type="x"))
        await orchestrator.OrchestratorServiceStub(channel).DelegateTask(request)


async def has_task(port: int, task_id: str) -> bool:
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = orchestrator_service_pb2.GetTaskRequest(task_id=task_id)
        try:
            await orchestrator.OrchestratorServiceStub(channel).GetTask(request)
        except aio.AioRpcError:
            return False
        return True


async def test_a_backup_of_a_live_hive_comes_back_as_a_new_one(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path / "hive") as hive:
        await delegate(hive.app.port, "before")
        made = (await hive.stub.CreateBackup(pb.CreateBackupRequest(request_id="b1", verify=True))).backup
        assert (made.state, list(made.problems)) == (pb.BACKUP_STATE_VERIFIED, [])
        assert made.event_count > 0
        again = (await hive.stub.CreateBackup(pb.CreateBackupRequest(request_id="b1", verify=True))).backup
        assert again == made
        await delegate(hive.app.port, "after")
        status = await hive.stub.GetProductionStatus(pb.GetProductionStatusRequest())
        assert status.recovery.can_recover
        assert status.recovery.last_backup_id == made.backup_id
        assert status.recovery.events_behind == 1
        listed = (await hive.stub.ListBackups(pb.ListBackupsRequest())).backups
        assert [each.backup_id for each in listed] == [made.backup_id]
        restored = await hive.stub.RestoreBackup(
            pb.RestoreBackupRequest(backup_id=made.backup_id, directory_name="second")
        )
        assert restored.sequence == made.sequence
        twice = hive.stub.RestoreBackup(pb.RestoreBackupRequest(backup_id=made.backup_id, directory_name="second"))
        assert await hive.reason(twice) == ("FAILED_PRECONDITION", "ILLEGAL_TRANSITION")
    async with open_app(Path(restored.path)) as second:
        assert await has_task(second.port, "before")
        assert not await has_task(second.port, "after")


async def test_a_drill_says_how_long_it_takes_and_what_would_be_lost(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path / "hive") as hive:
        first = (await hive.stub.CreateBackup(pb.CreateBackupRequest())).backup
        assert first.state == pb.BACKUP_STATE_COMPLETE
        for n in range(3):
            await delegate(hive.app.port, f"t{n}")
        found = await hive.stub.HandleDisasterRecovery(pb.HandleDisasterRecoveryRequest(drill=True))
        assert found.backup.backup_id == first.backup_id
        assert (found.lost_event_count, found.path) == (3, "")
        assert found.recovery_time.ToNanoseconds() > 0
        assert found.recovery_point.ToNanoseconds() > 0
        plugin = tmp_path / "hive" / "plugins" / "production"
        assert [path.name for path in plugin.iterdir()] == ["backups"]
        real = await hive.stub.HandleDisasterRecovery(pb.HandleDisasterRecoveryRequest())
        assert (Path(real.path) / "hive.db").exists()
        status = await hive.stub.GetProductionStatus(pb.GetProductionStatusRequest())
        assert status.recovery.recovery_time.ToNanoseconds() > 0


async def test_a_damaged_backup_is_found_and_the_one_before_it_taken(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path / "hive") as hive:
        good = (await hive.stub.CreateBackup(pb.CreateBackupRequest())).backup
        bad = (await hive.stub.CreateBackup(pb.CreateBackupRequest())).backup
        database = Path(bad.path) / "hive.db"
        raw = bytearray(database.read_bytes())
        raw[len(raw) // 2] ^= 1
        database.write_bytes(raw)
        found = await hive.stub.HandleDisasterRecovery(pb.HandleDisasterRecoveryRequest(drill=True))
        assert found.backup.backup_id == good.backup_id
        assert list(found.damaged_backup_ids) == [bad.backup_id]
        verified = (await hive.stub.VerifyBackup(pb.VerifyBackupRequest(backup_id=bad.backup_id))).backup
        assert verified.state == pb.BACKUP_STATE_DAMAGED
        assert verified.problems
        restore = hive.stub.RestoreBackup(pb.RestoreBackupRequest(backup_id=bad.backup_id))
        assert await hive.reason(restore) == ("DATA_LOSS", "DIGEST_MISMATCH")
        named = hive.stub.HandleDisasterRecovery(pb.HandleDisasterRecoveryRequest(backup_id=bad.backup_id))
        assert (await hive.reason(named))[0] == "FAILED_PRECONDITION"


async def test_pages_of_backups(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path / "hive") as hive:
        made = [(await hive.stub.CreateBackup(pb.CreateBackupRequest())).backup.backup_id for _ in range(3)]
        first = await hive.stub.ListBackups(pb.ListBackupsRequest(page_size=2))
        rest = await hive.stub.ListBackups(pb.ListBackupsRequest(page_size=2, page_token=first.next_page_token))
        found = [backup.backup_id for page in (first, rest) for backup in page.backups]
        assert found == made[::-1]
        assert rest.next_page_token == ""


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", "../x", "x" * 129])
async def test_nothing_is_restored_elsewhere(serve: Serve, tmp_path: Path, name: str) -> None:
    async with serve(tmp_path / "hive") as hive:
        refused = hive.stub.RestoreBackup(pb.RestoreBackupRequest(backup_id="b", directory_name=name))
        assert await hive.reason(refused) == ("INVALID_ARGUMENT", "INVALID_FIELD")


async def test_what_is_not_there(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path / "hive") as hive:
        for call in (
            hive.stub.VerifyBackup(pb.VerifyBackupRequest(backup_id="nobody")),
            hive.stub.RestoreBackup(pb.RestoreBackupRequest(backup_id="nobody")),
        ):
            assert await hive.reason(call) == ("NOT_FOUND", "RECORD_NOT_FOUND")
        nothing = hive.stub.HandleDisasterRecovery(pb.HandleDisasterRecoveryRequest())
        assert (await hive.reason(nothing))[0] == "FAILED_PRECONDITION"


async def test_a_hive_in_memory_has_nothing_to_back_up(serve: Serve) -> None:
    async with serve() as hive:
        assert (await hive.reason(hive.stub.CreateBackup(pb.CreateBackupRequest())))[0] == "UNIMPLEMENTED"
