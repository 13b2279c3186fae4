"""What follows a failed attempt, by class of error and policy."""

from __future__ import annotations

import pytest
from agenthive_server.kernel.retry import PROVIDER_WAIT, backoff, decide
from agenthive_server.kernel.tasks import ErrorClass, RetryPolicy, TaskError
from hypothesis import given
from hypothesis import strategies as st

POLICY = RetryPolicy(initial_interval=2.0, backoff_coefficient=3.0, maximum_interval=10.0, maximum_attempts=3)


def _error(kind: ErrorClass, reason: str = "ODD", delay: float | None = None) -> TaskError:
    return TaskError(error_class=kind, reason=reason, next_retry_delay=delay)


@pytest.mark.parametrize("kind", [ErrorClass.INVALID, ErrorClass.POLICY])
def test_what_was_asked_wrongly_is_never_retried(kind: ErrorClass) -> None:
    assert decide(POLICY, _error(kind, delay=1.0), 0, 0.5).delay is None


@pytest.mark.parametrize("kind", [ErrorClass.TOOL, ErrorClass.TIMEOUT])
def test_ordinary_failures_follow_the_policy_and_count(kind: ErrorClass) -> None:
    assert [decide(POLICY, _error(kind), n, 1.0).delay for n in range(3)] == [2.0, 6.0, None]
    assert decide(POLICY, _error(kind), 0, 0.5).counted


@pytest.mark.parametrize("kind", [ErrorClass.RATE_LIMITED, ErrorClass.QUOTA])
def test_a_provider_at_its_limit_is_waited_for_and_not_counted(kind: ErrorClass) -> None:
    waits = decide(POLICY, _error(kind), 99, 0.0)
    assert (waits.delay, waits.counted) == (PROVIDER_WAIT, False)
    assert decide(POLICY, _error(kind, delay=7.0), 99, 0.0).delay == 7.0


def test_infrastructure_is_tried_at_once_and_not_counted() -> None:
    found = decide(POLICY, _error(ErrorClass.INFRA), 99, 1.0)
    assert (found.delay, found.counted) == (0.0, False)


def test_a_full_context_is_tried_at_once_with_a_fresh_one_and_counted() -> None:
    found = decide(POLICY, _error(ErrorClass.CONTEXT_FULL), 0, 1.0)
    assert (found.delay, found.counted) == (0.0, True)


def test_a_reason_the_policy_names_is_not_retried() -> None:
    policy = RetryPolicy(non_retryable_reasons=("ODD",))
    assert decide(policy, _error(ErrorClass.TOOL), 0, 1.0).delay is None
    assert decide(policy, _error(ErrorClass.TOOL, "OTHER"), 0, 1.0).delay is not None


def test_a_worker_may_name_the_delay() -> None:
    assert decide(POLICY, _error(ErrorClass.TOOL, delay=42.0), 0, 0.0).delay == 42.0


@given(
    failures=st.integers(min_value=0, max_value=10_000), chance=st.floats(min_value=0, max_value=1, exclude_max=True)
)
def test_backoff_has_full_jitter_within_its_bound(failures: int, chance: float) -> None:
    span = backoff(POLICY, failures, chance)
    assert 0 <= span <= POLICY.maximum_interval
    assert span <= POLICY.initial_interval * POLICY.backoff_coefficient ** min(20, max(0, failures - 1))
