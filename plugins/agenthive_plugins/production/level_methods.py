"""ProductionService: service level targets and reports."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, TypeVar

from agenthive.v1 import production_service_pb2 as pb
from agenthive_server.plugin.api import Call

from .alert_methods import check_revision
from .alerts import Notice
from .convert_levels import fill_report, fill_target, target_from
from .desk import Desk
from .fields import page_after, page_size, page_token, required_id, span
from .ledger import Ledger, Rows
from .levels import HISTORIES, TARGETS, Levels, SlaHistory, fingerprints
from .series import FINE, HOURS
from .sla import SlaTarget
from .webhook import Delivery

R = TypeVar("R", pb.CreateSlaTargetResponse, pb.GetSlaTargetResponse, pb.UpdateSlaTargetResponse)

_MOST_AT_ONCE: Final = 200


class LevelMethods:
    """Service levels, for callers. `changed` is called when targets have changed."""

    def __init__(self, ledger: Ledger, desk: Desk, levels: Levels, changed: Callable[[], Awaitable[None]]) -> None:
        self._ledger = ledger
        self._desk = desk
        self._levels = levels
        self._changed = changed

    async def CreateSlaTarget(self, request: pb.CreateSlaTargetRequest, call: Call) -> pb.CreateSlaTargetResponse:
        """Add a target."""
        target = target_from(request.target)
        await self._ledger.has_room(TARGETS)

        def decide(rows: Rows) -> pb.CreateSlaTargetResponse:
            if rows.find(TARGETS, target.id) is not None:
                raise TARGETS.taken(target.id)
            rows.put(TARGETS, target.id, target)
            return _with_target(pb.CreateSlaTargetResponse(), target, None)

        response = await self._ledger.once(call, request, pb.CreateSlaTargetResponse, decide)
        await self._changed()
        return response

    async def GetSlaTarget(self, request: pb.GetSlaTargetRequest, call: Call) -> pb.GetSlaTargetResponse:
        """Get a target."""
        target = await self._ledger.get(TARGETS, required_id(request.target_id, "target_id"))
        history = await self._ledger.find(HISTORIES, target.id)
        return _with_target(pb.GetSlaTargetResponse(), target, history)

    async def ListSlaTargets(self, request: pb.ListSlaTargetsRequest, call: Call) -> pb.ListSlaTargetsResponse:
        """List the targets, by id."""
        targets, last = await self._ledger.page(TARGETS, page_after(request), page_size(request.page_size))
        response = pb.ListSlaTargetsResponse(next_page_token=page_token(request, last))
        for target in targets:
            history = await self._ledger.find(HISTORIES, target.id)
            fill_target(response.targets.add(), target, history)
        return response

    async def UpdateSlaTarget(self, request: pb.UpdateSlaTargetRequest, call: Call) -> pb.UpdateSlaTargetResponse:
        """Replace a target."""
        given = target_from(request.target)

        def decide(rows: Rows) -> pb.UpdateSlaTargetResponse:
            old = rows.get(TARGETS, given.id)
            check_revision(request.revision, old.revision)
            target = replace(given, revision=old.revision + 1, built_in=old.built_in)
            rows.put(TARGETS, target.id, target)
            return _with_target(pb.UpdateSlaTargetResponse(), target, rows.find(HISTORIES, target.id))

        response = await self._ledger.once(call, request, pb.UpdateSlaTargetResponse, decide)
        await self._changed()
        return response

    async def DeleteSlaTarget(self, request: pb.DeleteSlaTargetRequest, call: Call) -> pb.DeleteSlaTargetResponse:
        """Remove a target and resolve its alerts."""
        target_id = required_id(request.target_id, "target_id")
        told: list[tuple[list[Notice], list[Delivery]]] = []

        def decide(rows: Rows) -> pb.DeleteSlaTargetResponse:
            rows.get(TARGETS, target_id)
            rows.delete(TARGETS, target_id)
            rows.delete(HISTORIES, target_id)
            told[:] = [self._desk.removed(rows, cause, call.principal) for cause in fingerprints(target_id)]
            return pb.DeleteSlaTargetResponse()

        response = await self._ledger.once(call, request, pb.DeleteSlaTargetResponse, decide)
        for notices, deliveries in told:
            await self._desk.told(notices, deliveries)
        await self._changed()
        return response

    async def CheckSlaCompliance(
        self, request: pb.CheckSlaComplianceRequest, call: Call
    ) -> pb.CheckSlaComplianceResponse:
        """Say how the targets stand, and what broke them."""
        window = None
        if request.HasField("window"):
            window = span(request.window, "window", FINE.width, HOURS.kept)
        targets = await self._asked(request)
        response = pb.CheckSlaComplianceResponse(compliant=True, compliance_percent=100.0)
        for target in targets:
            report = await self._levels.report(target, window)
            fill_report(response.reports.add(), report)
            response.compliant &= report.standing.met
        if targets:
            response.compliance_percent = sum(r.compliance_percent for r in response.reports) / len(targets)
        return response

    async def _asked(self, request: pb.CheckSlaComplianceRequest) -> list[SlaTarget]:
        if not request.target_ids:
            return await self._ledger.all(TARGETS)
        ids = [required_id(each, f"target_ids[{n}]") for n, each in enumerate(request.target_ids[:_MOST_AT_ONCE])]
        return [await self._ledger.get(TARGETS, target_id) for target_id in sorted(set(ids))]


def _with_target(response: R, target: SlaTarget, history: SlaHistory | None) -> R:
    fill_target(response.target, target, history)
    return response
