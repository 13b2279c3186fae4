"""ProductionService: backups and the way back."""

from __future__ import annotations

from agenthive.v1 import production_service_pb2 as pb
from agenthive_server.plugin.api import BadRequest, Call

from .convert import fill_backup
from .fields import page_after, page_size, page_token, required_id, set_span
from .ledger import Ledger
from .recovery import Recovery


class RecoveryMethods:
    """Backups, for callers."""

    def __init__(self, ledger: Ledger, recovery: Recovery) -> None:
        self._ledger = ledger
        self._recovery = recovery

    async def CreateBackup(self, request: pb.CreateBackupRequest, call: Call) -> pb.CreateBackupResponse:
        """Make a backup."""

        async def act() -> pb.CreateBackupResponse:
            response = pb.CreateBackupResponse()
            fill_backup(response.backup, await self._recovery.create(verify=request.verify))
            return response

        return await self._ledger.once_after(call, request, pb.CreateBackupResponse, act)

    async def ListBackups(self, request: pb.ListBackupsRequest, call: Call) -> pb.ListBackupsResponse:
        """List backups, newest first."""
        size, after = page_size(request.page_size), page_after(request)
        found = await self._recovery.all()
        ids = [backup.id for backup in found]
        # One that was removed meanwhile was among the oldest: what follows it has gone, too.
        first = ids.index(after) + 1 if after in ids else len(ids) if after else 0
        page = found[first : first + size]
        more = page and first + size < len(found)
        response = pb.ListBackupsResponse(next_page_token=page_token(request, page[-1].id) if more else "")
        for backup in page:
            fill_backup(response.backups.add(), backup)
        return response

    async def VerifyBackup(self, request: pb.VerifyBackupRequest, call: Call) -> pb.VerifyBackupResponse:
        """Read a backup whole."""
        response = pb.VerifyBackupResponse()
        fill_backup(response.backup, await self._recovery.verify(required_id(request.backup_id, "backup_id")))
        return response

    async def RestoreBackup(self, request: pb.RestoreBackupRequest, call: Call) -> pb.RestoreBackupResponse:
        """Restore a backup into a new directory."""
        backup_id = required_id(request.backup_id, "backup_id")
        name = required_id(request.directory_name, "directory_name") if request.directory_name else ""
        if name.startswith("."):
            raise BadRequest("begins with a dot", field="directory_name")
        if request.until_sequence < 0:
            raise BadRequest("negative", field="until_sequence")

        async def act() -> pb.RestoreBackupResponse:
            restored = await self._recovery.restore(backup_id, name, request.until_sequence or None)
            response = pb.RestoreBackupResponse(path=str(restored.path), sequence=restored.sequence)
            set_span(response.duration, restored.seconds)
            return response

        return await self._ledger.once_after(call, request, pb.RestoreBackupResponse, act)

    async def HandleDisasterRecovery(
        self, request: pb.HandleDisasterRecoveryRequest, call: Call
    ) -> pb.HandleDisasterRecoveryResponse:
        """Prepare the way back, or drill it."""
        backup_id = required_id(request.backup_id, "backup_id") if request.backup_id else ""

        async def act() -> pb.HandleDisasterRecoveryResponse:
            restored = await self._recovery.recover(backup_id, drill=request.drill)
            response = pb.HandleDisasterRecoveryResponse(
                path=str(restored.path or ""),
                lost_event_count=restored.lost_events,
                damaged_backup_ids=restored.damaged,
            )
            fill_backup(response.backup, restored.backup)
            set_span(response.recovery_time, restored.seconds)
            set_span(response.recovery_point, restored.lost_seconds)
            return response

        return await self._ledger.once_after(call, request, pb.HandleDisasterRecoveryResponse, act)
