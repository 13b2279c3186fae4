"""What a new hive begins with: fourteen alert rules, four service level targets, and how alerts of other causes go."""

from __future__ import annotations

from typing import Final

from .alerts import AlertRule, AlertSeverity, Comparison, EscalationStep, Plan
from .sla import Indicator, SlaTarget

ESCALATE_AFTER: Final = 1_800.0

ABOVE: Final = Comparison.GREATER
BELOW: Final = Comparison.LESS
CRITICAL: Final = AlertSeverity.CRITICAL
HIGH: Final = AlertSeverity.HIGH
MEDIUM: Final = AlertSeverity.MEDIUM


def escalation_of(severity: AlertSeverity) -> tuple[EscalationStep, ...]:
    """Return the usual escalation: after half an hour, one severity up."""
    return (EscalationStep(after=ESCALATE_AFTER, severity=min(severity + 1, CRITICAL)),)


def usual_plan(severity: AlertSeverity) -> Plan:
    """Return how alerts that no rule describes go."""
    return Plan(escalation=escalation_of(severity))


def _rule(
    rule_id: str,
    metric: str,
    comparison: Comparison,
    threshold: float,
    severity: AlertSeverity,
    description: str,
    *,
    trend: bool = False,
    anomaly: bool = False,
) -> AlertRule:
    return AlertRule(
        id=rule_id,
        metric=metric,
        comparison=comparison,
        threshold=threshold,
        severity=severity,
        description=description,
        escalation=escalation_of(severity),
        trend=trend,
        anomaly=anomaly,
        built_in=True,
    )


RULES: Final[tuple[AlertRule, ...]] = (
    _rule("high_cpu_usage", "cpu_usage_percent", ABOVE, 80, HIGH, "The machine's processors are busy."),
    _rule("critical_cpu_usage", "cpu_usage_percent", ABOVE, 95, CRITICAL, "The machine's processors are used up."),
    _rule("high_memory_usage", "memory_usage_percent", ABOVE, 85, HIGH, "The machine's memory is nearly used up."),
    _rule("critical_memory_usage", "memory_usage_percent", ABOVE, 95, CRITICAL, "The machine's memory is used up."),
    _rule("high_response_time", "response_time_p95_ms", ABOVE, 2_000, HIGH, "Calls take long.", trend=True),
    _rule("high_error_rate", "error_rate_percent", ABOVE, 5, HIGH, "The server fails calls."),
    _rule("critical_error_rate", "error_rate_percent", ABOVE, 10, CRITICAL, "The server fails many calls."),
    _rule("high_db_connections", "db_pool_usage_percent", ABOVE, 80, HIGH, "The database writes nearly all the time."),
    _rule("slow_db_queries", "db_query_time_ms", ABOVE, 500, MEDIUM, "The database is slow.", trend=True),
    _rule("agent_failure_rate", "failed_tasks_last_hour", ABOVE, 10, HIGH, "Many tasks fail."),
    _rule("no_active_agents", "active_agents", BELOW, 1, CRITICAL, "No agent is in contact: nothing can be done."),
    _rule("high_failed_auth", "failed_auth_attempts", ABOVE, 50, HIGH, "Many calls come without valid credentials."),
    _rule(
        "security_events_spike", "security_events", ABOVE, 20, MEDIUM, "Many calls were not permitted.", anomaly=True
    ),
    _rule("low_availability", "availability_percent", BELOW, 99, HIGH, "The server was not up all the time."),
)

TARGETS: Final[tuple[SlaTarget, ...]] = (
    SlaTarget(
        id="system_availability",
        indicator=Indicator.AVAILABILITY,
        target_value=99.9,
        description="Share of the time in which the server is up.",
        built_in=True,
    ),
    SlaTarget(
        id="response_time_p95",
        indicator=Indicator.RESPONSE_TIME,
        target_value=1_000.0,
        description="Of a hundred calls ninety-five are answered within this many milliseconds.",
        built_in=True,
    ),
    SlaTarget(
        id="error_rate",
        indicator=Indicator.ERROR_RATE,
        target_value=1.0,
        description="Share of the calls the server fails.",
        built_in=True,
    ),
    SlaTarget(
        id="task_completion_rate",
        indicator=Indicator.TASK_COMPLETION,
        target_value=95.0,
        description="Share of the ended tasks that succeeded.",
        built_in=True,
    ),
)

BRUTE_FORCE: Final = ("security_brute_force_attack", "failed_auth_attempts", 100.0)
EVENT_SPIKE: Final = ("security_security_event_spike", "security_events", 50.0)
DENIAL_OF_SERVICE: Final = ("security_potential_ddos", "blocked_requests", 1_000.0)
SECURITY_SIGNS: Final = (BRUTE_FORCE, EVENT_SPIKE, DENIAL_OF_SERVICE)
"""Alert, metric and threshold over five minutes of what looks like an attack; all of high severity."""
