"""SecurityService: the audit trail and the reports computed from it, and threats."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from agenthive.v1 import security_service_pb2 as pb
from agenthive_server.plugin.api import BadRequest, Call, KernelError

from . import checks
from .audit import Trail
from .compliance import Framework, Report, Settings
from .convert import (
    MAX_FAULTS,
    fill_chains,
    fill_control,
    fill_fault,
    fill_record,
    fill_threat,
    filter_from,
    heads_from,
    names_of,
    set_time,
)
from .incidents import Incidents
from .issuing import not_found
from .records import Unreadable, encode
from .requests import Request
from .threats import ThreatSeverity
from .token_methods import page_of
from .trail import EVERYTHING, Filter, Position, Reader

EXPORT_BYTES: Final = 256 * 1024
_FRAMEWORKS: Final = names_of(pb.ComplianceFramework, "COMPLIANCE_FRAMEWORK_")


class AuditMethods:
    """Reads the trail; what was noted up to the call is written first, so that the caller finds it."""

    def __init__(self, reader: Reader, trail: Trail, settings: Settings) -> None:
        self._reader = reader
        self._trail = trail
        self._settings = settings

    async def QueryAuditLog(self, request: pb.QueryAuditLogRequest, call: Call) -> pb.QueryAuditLogResponse:
        """List records, newest first."""
        wanted, size = filter_from(request.filter), checks.page_size(request)
        after = _position(checks.page_after(call, request))
        if after is None:
            await self._written()
        try:
            page = await self._reader.page(wanted, size, after)
        except Unreadable:
            raise _damaged() from None
        response = pb.QueryAuditLogResponse()
        for record in page.records:
            fill_record(response.records.add(), record)
        if page.after is not None:
            response.next_page_token = checks.page_token(call, request, {k: list(v) for k, v in page.after.items()})
        return response

    async def VerifyAuditLog(self, request: pb.VerifyAuditLogRequest, call: Call) -> pb.VerifyAuditLogResponse:
        """Say whether the chains hold."""
        await self._written()
        found = await self._reader.verify(heads_from(request.expected_heads))
        response = pb.VerifyAuditLogResponse(intact=not found.faults)
        fill_chains(response.chains, found)
        for fault in found.faults[:MAX_FAULTS]:
            fill_fault(response.faults.add(), fault)
        return response

    async def ExportAuditLog(
        self, request: pb.ExportAuditLogRequest, call: Call
    ) -> AsyncIterator[pb.ExportAuditLogResponse]:
        """Stream records as JSON lines, oldest first."""
        wanted = filter_from(request.filter)
        await self._written()
        gathered: list[bytes] = []
        size = 0
        try:
            async for records in self._reader.export(wanted):
                for line in (encode(record) + b"\n" for record in records):
                    if size + len(line) > EXPORT_BYTES and gathered:
                        yield pb.ExportAuditLogResponse(lines=b"".join(gathered))
                        gathered, size = [], 0
                    gathered.append(line)
                    size += len(line)
        except Unreadable:
            raise _damaged() from None
        if gathered:
            yield pb.ExportAuditLogResponse(lines=b"".join(gathered))

    async def GenerateComplianceReport(
        self, request: pb.GenerateComplianceReportRequest, call: Call
    ) -> pb.GenerateComplianceReportResponse:
        """Compute a report."""
        name = _FRAMEWORKS.get(request.framework)
        if name is None:
            raise BadRequest("no framework reports can be made for", field="framework")
        now = self._trail.now()
        start = checks.milliseconds(request, "start_time", "start_time")
        end = checks.milliseconds(request, "end_time", "end_time") or now
        if not request.HasField("start_time") or end <= start:
            raise BadRequest("a period has a beginning, and an end after it", field="start_time")
        most = checks.count(request.maximum_reference_count, 20, 1_000, "maximum_reference_count")
        await self._written()
        report = Report(Framework[name], start, end, self._settings, most=most)
        try:
            async for records in self._reader.export(Filter(start=start, end=end)):
                report.take(records)
        except Unreadable:
            raise _damaged() from None
        found = await self._reader.verify()
        response = pb.GenerateComplianceReportResponse()
        shown = response.report
        shown.framework = request.framework
        set_time(shown.start_time, start / 1_000)
        set_time(shown.end_time, end / 1_000)
        set_time(shown.create_time, now / 1_000)
        shown.record_count = report.count
        fill_chains(shown.chains, found)
        for control in report.finish(found, await self._first(), now):
            fill_control(shown.controls.add(), control)
        return response

    async def _written(self) -> None:
        """Write what was noted; where that fails, what is there is shown all the same."""
        with contextlib.suppress(KernelError, Unreadable):
            await self._trail.flush()

    async def _first(self) -> int:
        """Return the time of the oldest record, zero when there is none."""
        oldest = 0
        async for records in self._reader.export(EVERYTHING):
            oldest = min(oldest or records[0].time, records[0].time)
            break
        return oldest


class ThreatMethods:
    """Lists and resolves threats."""

    def __init__(self, incidents: Incidents) -> None:
        self._incidents = incidents

    async def ListThreats(self, request: pb.ListThreatsRequest, call: Call) -> pb.ListThreatsResponse:
        """List threats, newest first."""
        states = set(request.states)
        if not states <= {pb.THREAT_STATE_OPEN, pb.THREAT_STATE_RESOLVED}:
            raise BadRequest("no value of this enum", field="states")
        if request.minimum_severity not in (0, *ThreatSeverity):
            raise BadRequest("no value of this enum", field="minimum_severity")
        open_ = None if len(states) != 1 else states == {pb.THREAT_STATE_OPEN}
        least = ThreatSeverity(request.minimum_severity or ThreatSeverity.LOW)
        found = await self._incidents.list_threats(open_=open_, least=least)
        page, token = page_of(call, request, found, lambda threat: [threat.create_time, threat.id], newest=True)
        response = pb.ListThreatsResponse(next_page_token=token)
        for threat in page:
            fill_threat(response.threats.add(), threat)
        return response

    async def ResolveThreat(self, request: pb.ResolveThreatRequest, call: Call) -> pb.ResolveThreatResponse:
        """Close a threat."""
        comment = checks.text(request.comment, "comment")
        if not request.threat_id or len(request.threat_id) > 128:
            raise not_found("threat", request.threat_id[:128])
        threat_id = checks.an_id(request.threat_id, "threat_id")
        threat = await self._incidents.resolve(threat_id, comment, Request(call, request))
        response = pb.ResolveThreatResponse()
        fill_threat(response.threat, threat)
        return response


def _damaged() -> KernelError:
    return KernelError("the audit trail is damaged; VerifyAuditLog says where", reason="DIGEST_MISMATCH")


def _position(after: Any) -> Position | None:
    """Return where a page begins, as it was in its token."""
    if after is None:
        return None
    try:
        return {str(chain): (int(block), int(sequence)) for chain, (block, sequence) in after.items()}
    except (AttributeError, TypeError, ValueError):
        raise checks.bad_page_token() from None
