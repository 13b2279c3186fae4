"""One status from many components, and since when each is as it is."""

from __future__ import annotations

from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.health import Health, Reading, Status


def test_the_worst_component_that_matters_decides() -> None:
    readings = [("store", Reading()), ("runner/a", Reading(Status.DOWN, "not in contact"))]
    health = Health(ManualClock())
    health.add(lambda: readings)
    assert health.report().status is Status.DEGRADED
    readings[0] = ("store", Reading(Status.DOWN, "gone"))
    assert health.report().status is Status.DOWN


def test_since_moves_only_when_the_status_does() -> None:
    clock = ManualClock(100.0)
    readings = [("store", Reading())]
    health = Health(clock)
    health.add(lambda: readings)
    health.report()
    clock.move(50.0)
    assert health.report().components[0].since == 100.0
    readings[0] = ("store", Reading(Status.DEGRADED, "slow"))
    assert health.report().components[0].since == 150.0
    clock.move(10.0)
    readings[0] = ("store", Reading(Status.DEGRADED, "slower"))
    report = health.report().components[0]
    assert (report.since, report.reason) == (150.0, "slower")


def test_a_component_that_is_left_out_counts_for_nothing_but_since_when_it_is_so_is_known() -> None:
    clock = ManualClock(100.0)
    health = Health(clock)
    health.add(lambda: [("store", Reading()), ("replicas", Reading(Status.DEGRADED, "one is away"))])
    report = health.report("replicas")
    assert (report.status, [each.name for each in report.components]) == (Status.OK, ["store"])
    clock.move(50.0)
    report = health.report()
    assert (report.status, report.components[1].since) == (Status.DEGRADED, 100.0)
