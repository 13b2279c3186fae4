"""ProductionService: alert rules and alerts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TypeVar

from agenthive.v1 import production_service_pb2 as pb
from agenthive_server.plugin.api import BadRequest, Call, Conflict
from google.protobuf.message import Message

from .alerts import Alert, AlertRule, AlertSeverity, AlertState, Notice, Track
from .convert_alerts import fill_alert, fill_rule, rule_from
from .desk import ALERTS, TRACKS, Desk
from .fields import member, members, page_after, page_size, page_token, required_id, text
from .ledger import Ledger, Rows
from .rules import fingerprint
from .watch import RULES
from .webhook import Delivery

M = TypeVar("M", bound=Message)
OPEN = frozenset({AlertState.FIRING, AlertState.ACKNOWLEDGED})

Done = tuple[M, list[Notice], list[Delivery]]


def check_revision(given: int, current: int) -> None:
    """Raise `Conflict` unless the revision given is the present one, or zero."""
    if given and given != current:
        raise Conflict(
            f"revision {given} is not the current one, which is {current}",
            reason="REVISION_MISMATCH",
            metadata={"revision": str(current)},
        )


class AlertMethods:
    """Alert rules and alerts, for callers."""

    def __init__(self, ledger: Ledger, desk: Desk, webhooks: Collection[str]) -> None:
        self._ledger = ledger
        self._desk = desk
        self._webhooks = webhooks

    async def CreateAlertRule(self, request: pb.CreateAlertRuleRequest, call: Call) -> pb.CreateAlertRuleResponse:
        """Add a rule."""
        rule = self._checked(rule_from(request.rule))
        await self._ledger.has_room(RULES)

        def decide(rows: Rows) -> pb.CreateAlertRuleResponse:
            if rows.find(RULES, rule.id) is not None:
                raise RULES.taken(rule.id)
            rows.put(RULES, rule.id, rule)
            return _with_rule(pb.CreateAlertRuleResponse(), rule, None)

        return await self._ledger.once(call, request, pb.CreateAlertRuleResponse, decide)

    def _checked(self, rule: AlertRule) -> AlertRule:
        """Return the rule; raises `BadRequest` for a webhook nobody has set up."""
        named = {*rule.webhooks, *(name for step in rule.escalation for name in step.webhooks)}
        unknown = sorted(named - set(self._webhooks))
        if unknown:
            known = ", ".join(sorted(self._webhooks)) or "none"
            raise BadRequest(f"no webhook {unknown[0]!r} is set up; there are {known}", field="rule.webhooks")
        return rule

    async def GetAlertRule(self, request: pb.GetAlertRuleRequest, call: Call) -> pb.GetAlertRuleResponse:
        """Get a rule."""
        rule = await self._ledger.get(RULES, required_id(request.rule_id, "rule_id"))
        return _with_rule(pb.GetAlertRuleResponse(), rule, await self._track(rule))

    async def _track(self, rule: AlertRule) -> Track | None:
        return await self._ledger.find(TRACKS, fingerprint(rule.id))

    async def ListAlertRules(self, request: pb.ListAlertRulesRequest, call: Call) -> pb.ListAlertRulesResponse:
        """List the rules, by id."""
        rules, last = await self._ledger.page(RULES, page_after(request), page_size(request.page_size))
        response = pb.ListAlertRulesResponse(next_page_token=page_token(request, last))
        for rule in rules:
            fill_rule(response.rules.add(), rule, await self._track(rule))
        return response

    async def UpdateAlertRule(self, request: pb.UpdateAlertRuleRequest, call: Call) -> pb.UpdateAlertRuleResponse:
        """Replace a rule."""
        given = self._checked(rule_from(request.rule))

        def decide(rows: Rows) -> pb.UpdateAlertRuleResponse:
            old = rows.get(RULES, given.id)
            check_revision(request.revision, old.revision)
            rule = replace(given, revision=old.revision + 1, built_in=old.built_in)
            rows.put(RULES, rule.id, rule)
            return _with_rule(pb.UpdateAlertRuleResponse(), rule, rows.find(TRACKS, fingerprint(rule.id)))

        return await self._ledger.once(call, request, pb.UpdateAlertRuleResponse, decide)

    async def DeleteAlertRule(self, request: pb.DeleteAlertRuleRequest, call: Call) -> pb.DeleteAlertRuleResponse:
        """Remove a rule and resolve its alert."""
        rule_id = required_id(request.rule_id, "rule_id")

        def decide(rows: Rows) -> Done[pb.DeleteAlertRuleResponse]:
            rows.get(RULES, rule_id)
            rows.delete(RULES, rule_id)
            return pb.DeleteAlertRuleResponse(), *self._desk.removed(rows, fingerprint(rule_id), call.principal)

        return await self._once(call, request, pb.DeleteAlertRuleResponse, decide)

    async def ListAlerts(self, request: pb.ListAlertsRequest, call: Call) -> pb.ListAlertsResponse:
        """List alerts, newest first."""
        states = members(AlertState, request.states, "states") or OPEN
        least = member(AlertSeverity, request.minimum_severity, "minimum_severity") if request.minimum_severity else 0
        rule_id = text(request.rule_id, "rule_id", 128)

        def wanted(alert: Alert) -> bool:
            return alert.state in states and alert.severity >= least and rule_id in ("", alert.rule_id)

        size = page_size(request.page_size)
        alerts, last = await self._ledger.page(ALERTS, page_after(request), size, wanted=wanted)
        response = pb.ListAlertsResponse(next_page_token=page_token(request, last))
        for alert in alerts:
            fill_alert(response.alerts.add(), alert)
        return response

    async def GetAlert(self, request: pb.GetAlertRequest, call: Call) -> pb.GetAlertResponse:
        """Get an alert."""
        alert = await self._ledger.get(ALERTS, required_id(request.alert_id, "alert_id"))
        return _with_alert(pb.GetAlertResponse(), alert)

    async def AcknowledgeAlert(self, request: pb.AcknowledgeAlertRequest, call: Call) -> pb.AcknowledgeAlertResponse:
        """Say that somebody looks after an alert."""
        alert_id, note = required_id(request.alert_id, "alert_id"), text(request.note, "note")

        def decide(rows: Rows) -> Done[pb.AcknowledgeAlertResponse]:
            alert, notices, deliveries = self._desk.acknowledged(rows, alert_id, call.principal, note)
            return _with_alert(pb.AcknowledgeAlertResponse(), alert), notices, deliveries

        return await self._once(call, request, pb.AcknowledgeAlertResponse, decide)

    async def ResolveAlert(self, request: pb.ResolveAlertRequest, call: Call) -> pb.ResolveAlertResponse:
        """End an alert by hand."""
        alert_id, note = required_id(request.alert_id, "alert_id"), text(request.note, "note")

        def decide(rows: Rows) -> Done[pb.ResolveAlertResponse]:
            alert, notices, deliveries = self._desk.resolved(rows, alert_id, call.principal, note)
            return _with_alert(pb.ResolveAlertResponse(), alert), notices, deliveries

        return await self._once(call, request, pb.ResolveAlertResponse, decide)

    async def _once(self, call: Call, request: Message, answer: type[M], decide: Callable[[Rows], Done[M]]) -> M:
        """Change something once, and tell of it when it is durable. A repeat changes and tells nothing."""
        told: list[tuple[list[Notice], list[Delivery]]] = []

        def run(rows: Rows) -> M:
            told.clear()
            made, notices, deliveries = decide(rows)
            told.append((notices, deliveries))
            return made

        response = await self._ledger.once(call, request, answer, run)
        for notices, deliveries in told:
            await self._desk.told(notices, deliveries)
        return response


R = TypeVar("R", pb.CreateAlertRuleResponse, pb.GetAlertRuleResponse, pb.UpdateAlertRuleResponse)
A = TypeVar("A", pb.GetAlertResponse, pb.AcknowledgeAlertResponse, pb.ResolveAlertResponse)


def _with_rule(response: R, rule: AlertRule, track: Track | None) -> R:
    fill_rule(response.rule, rule, track)
    return response


def _with_alert(response: A, alert: Alert) -> A:
    fill_alert(response.alert, alert)
    return response
