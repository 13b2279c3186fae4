"""What follows a failed attempt: a pure decision from policy, error and chance."""

from __future__ import annotations

from dataclasses import dataclass

from .tasks import ErrorClass, RetryPolicy, TaskError

NEVER_RETRIED = frozenset({ErrorClass.INVALID, ErrorClass.POLICY})
NOT_COUNTED = frozenset({ErrorClass.INFRA, ErrorClass.RATE_LIMITED, ErrorClass.QUOTA})

PROVIDER_WAIT = 30.0
"""Seconds to wait for a provider's limit to reset when the worker did not say how long."""

POISON_LIMIT = 3
"""Attempts lost in a row to INFRA, without progress, after which a task is quarantined."""

LOST_AVOID = 5.0
"""Seconds for which a task lost to INFRA is not offered to the same agent again."""


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """`delay` seconds until the next attempt may begin, or None for no further one; whether the attempt counts."""

    delay: float | None
    counted: bool


def backoff(policy: RetryPolicy, failures: int, chance: float) -> float:
    """Return the wait after the nth counted failure, with full jitter.

    Exponential backoff with full jitter as in the AWS Architecture Blog, "Exponential Backoff And Jitter": uniform
    between zero and min(maximum, initial x coefficient^(n-1)).
    """
    try:
        span = policy.initial_interval * policy.backoff_coefficient ** max(0, failures - 1)
    except OverflowError:
        span = policy.maximum_interval
    return min(span, policy.maximum_interval) * chance


def decide(policy: RetryPolicy, error: TaskError, counted_attempts: int, chance: float) -> RetryDecision:
    """Decide what follows an attempt that ended with `error`; `counted_attempts` are those before it."""
    kind = error.error_class
    counted = kind not in NOT_COUNTED
    if kind in NEVER_RETRIED or (error.reason and error.reason in policy.non_retryable_reasons):
        return RetryDecision(None, True)
    if counted and counted_attempts + 1 >= policy.maximum_attempts:
        return RetryDecision(None, True)
    asked = error.next_retry_delay
    if kind is ErrorClass.INFRA:
        return RetryDecision(asked or 0.0, False)
    if asked is not None:
        return RetryDecision(asked, counted)
    if not counted:
        return RetryDecision(PROVIDER_WAIT * (1.0 + 0.2 * chance), False)
    if kind is ErrorClass.CONTEXT_FULL:
        return RetryDecision(0.0, True)
    return RetryDecision(backoff(policy, counted_attempts + 1, chance), True)
