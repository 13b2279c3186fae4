"""Which rate applies to whom."""

from __future__ import annotations

import pytest
from agenthive_plugins.security.limits import Exceeded, Limits, RateLimits
from agenthive_server.plugin.api import LocalBuckets, Rate


def test_the_defaults_are_those_of_the_system_before_this_one() -> None:
    limits = Limits()
    assert (limits.per_principal, limits.per_method, limits.failed_logins) == (Rate(100), Rate(50), Rate(10))
    assert limits.per_principal.seconds == 60.0


def test_a_method_is_limited_before_the_principal_is() -> None:
    rates = RateLimits(Limits(), LocalBuckets())
    assert [rates.call("p", "/S/A", "change", 0.0) for _ in range(50)] == [None] * 50
    exceeded = rates.call("p", "/S/A", "change", 0.0)
    assert exceeded is not None
    assert exceeded.quota == "method"
    assert exceeded.retry_after <= 60 / 50 + 0.01
    # What was refused did not use up what the principal may do altogether.
    assert [rates.call("p", "/S/B", "admin", 0.0) for _ in range(50)] == [None] * 50
    exceeded = rates.call("p", "/S/C", "change", 0.0)
    assert exceeded is not None
    assert exceeded.quota == "principal"
    assert exceeded.retry_after == pytest.approx(60 / 100)
    assert rates.call("another", "/S/A", "change", 0.0) is None


def test_reading_counts_a_part_of_a_call() -> None:
    rates = RateLimits(Limits(), LocalBuckets())
    assert sum(rates.call("p", "/S/Look", "read", 0.0) is None for _ in range(2_000)) == 1_000
    assert sum(rates.call("p", "/S/Look2", "read", 0.0) is None for _ in range(2_000)) == 1_000
    assert rates.call("p", "/S/Look3", "read", 0.0) is not None
    as_before = RateLimits(Limits(read_cost=1.0), LocalBuckets())
    assert sum(as_before.call("p", "/S/Look", "read", 0.0) is None for _ in range(100)) == 50


def test_classes_and_principals_can_have_rates_of_their_own() -> None:
    limits = Limits(by_class=(("change", Rate(2)),), by_principal=(("bulk", Rate(500)), ("free", Rate(0))))
    rates = RateLimits(limits, LocalBuckets())
    assert rates.call("p", "/S/A", "change", 0.0) is None
    assert rates.call("p", "/S/B", "change", 0.0) is None
    assert rates.call("p", "/S/C", "change", 0.0) == Exceeded("change", 30.0)
    assert rates.call("p", "/S/C", "read", 0.0) is None
    assert sum(rates.call("bulk", "/S/A", "change", 0.0) is None for _ in range(600)) == 500
    assert all(rates.call("free", "/S/A", "change", 0.0) is None for _ in range(5_000))


def test_logins_that_fail_are_limited_by_address_and_method() -> None:
    rates = RateLimits(Limits(), LocalBuckets())
    for _ in range(10):
        assert rates.login("10.0.0.7", "/S/A", 0.0) is None
        rates.failed_login("10.0.0.7", "/S/A", 0.0)
    exceeded = rates.login("10.0.0.7", "/S/A", 0.0)
    assert exceeded is not None
    assert exceeded.quota == "failed_logins"
    assert rates.login("10.0.0.8", "/S/A", 0.0) is None
    assert rates.login("10.0.0.7", "/S/B", 0.0) is None
    assert rates.login("10.0.0.7", "/S/A", 60.0) is None
