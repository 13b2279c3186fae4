"""What a new hive begins with is what the callers know."""

from __future__ import annotations

from agenthive_plugins.production.alerts import AlertSeverity, Comparison
from agenthive_plugins.production.defaults import RULES, TARGETS
from agenthive_plugins.production.metrics import METRICS
from agenthive_plugins.production.sla import Indicator


def test_fourteen_rules() -> None:
    found = {rule.id: (rule.metric, rule.comparison.name, rule.threshold, rule.severity.name) for rule in RULES}
    assert found == {
        "high_cpu_usage": ("cpu_usage_percent", "GREATER", 80, "HIGH"),
        "critical_cpu_usage": ("cpu_usage_percent", "GREATER", 95, "CRITICAL"),
        "high_memory_usage": ("memory_usage_percent", "GREATER", 85, "HIGH"),
        "critical_memory_usage": ("memory_usage_percent", "GREATER", 95, "CRITICAL"),
        "high_response_time": ("response_time_p95_ms", "GREATER", 2_000, "HIGH"),
        "high_error_rate": ("error_rate_percent", "GREATER", 5, "HIGH"),
        "critical_error_rate": ("error_rate_percent", "GREATER", 10, "CRITICAL"),
        "high_db_connections": ("db_pool_usage_percent", "GREATER", 80, "HIGH"),
        "slow_db_queries": ("db_query_time_ms", "GREATER", 500, "MEDIUM"),
        "agent_failure_rate": ("failed_tasks_last_hour", "GREATER", 10, "HIGH"),
        "no_active_agents": ("active_agents", "LESS", 1, "CRITICAL"),
        "high_failed_auth": ("failed_auth_attempts", "GREATER", 50, "HIGH"),
        "security_events_spike": ("security_events", "GREATER", 20, "MEDIUM"),
        "low_availability": ("availability_percent", "LESS", 99, "HIGH"),
    }
    assert {rule.metric for rule in RULES} <= set(METRICS)
    assert {rule.id for rule in RULES if rule.trend} == {"high_response_time", "slow_db_queries"}
    assert {rule.id for rule in RULES if rule.anomaly} == {"security_events_spike"}
    assert {(rule.window, rule.cooldown, rule.escalation[0].after) for rule in RULES} == {(300, 600, 1_800)}
    assert all(rule.built_in for rule in RULES)
    assert {Comparison.GREATER, Comparison.LESS} == {rule.comparison for rule in RULES}
    assert max(rule.escalation[0].severity for rule in RULES) == AlertSeverity.CRITICAL


def test_four_targets() -> None:
    assert {t.id: (t.indicator, t.target_value, t.window, t.breach_threshold_percent) for t in TARGETS} == {
        "system_availability": (Indicator.AVAILABILITY, 99.9, 86_400, 5.0),
        "response_time_p95": (Indicator.RESPONSE_TIME, 1_000.0, 86_400, 5.0),
        "error_rate": (Indicator.ERROR_RATE, 1.0, 86_400, 5.0),
        "task_completion_rate": (Indicator.TASK_COMPLETION, 95.0, 86_400, 5.0),
    }
