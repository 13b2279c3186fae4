"""The sampler: what it sees of the system, and what has changed since."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from agenthive_plugins.production.blame import Blame
from agenthive_plugins.production.calls import Calls
from agenthive_plugins.production.machine import Machine
from agenthive_plugins.production.metrics import value_of
from agenthive_plugins.production.sampler import Sampler
from agenthive_plugins.production.series import SeriesSet
from agenthive_plugins.production.uptime import Uptime
from agenthive_server.plugin.api import OK, Call, ManualClock, VitalsReading

START = 1_700_000_000.0


class Story:
    def __init__(self) -> None:
        self.clock = ManualClock(START)
        self.series, self.blame = SeriesSet(START), Blame()
        self.calls = Calls(self.clock.monotonic)
        self.uptime = Uptime(self.series, 10.0)
        self.uptime.begin(None, "me", START)
        self.vitals = VitalsReading(time=START)
        self.machine = Machine(busy=0, ticks=0, memory_percent=40.0, disk_percent=70.0, sent=0)
        self.sampler = Sampler(
            self.series,
            self.blame,
            self.calls,
            self.uptime,
            vitals=lambda: self.vitals,
            machine=lambda: self.machine,
        )

    def look(self, **vitals: object) -> None:
        self.vitals = replace(self.vitals, **vitals)  # type: ignore[arg-type]  # tests write fields by name
        self.sampler.look()

    def value(self, metric: str) -> float | None:
        now = self.vitals.time
        return value_of(self.series, metric, now - 300, now + 1, now + 1)


def test_readings_of_the_moment() -> None:
    story = Story()
    story.look(
        agents={"IDLE": 2, "BUSY": 3, "STOPPED": 9},
        sessions=4,
        queue_depth=7,
        held_tasks=3,
        store_latency=0.02,
        event_loop_lag=0.005,
        resident_bytes=50_000_000,
    )
    found = {name: story.value(name) for name in ("active_agents", "busy_agents", "total_sessions", "pending_tasks")}
    assert found == {"active_agents": 5, "busy_agents": 3, "total_sessions": 4, "pending_tasks": 7}
    assert (story.value("memory_usage_percent"), story.value("disk_usage_percent")) == (40.0, 70.0)
    assert (story.value("db_query_time_ms"), story.value("event_loop_lag_ms")) == (20.0, 5.0)
    assert story.value("server_memory_mb") == 50.0
    assert story.value("cpu_usage_percent") is None


def test_what_grew_between_two_looks() -> None:
    story = Story()
    story.look(cpu_seconds=1.0, commits=100, store_latency=0.002)
    story.machine = replace(story.machine, busy=400, ticks=1_000, sent=1_250_000)
    story.look(time=START + 10, cpu_seconds=6.0, commits=2_100)
    assert story.value("server_cpu_percent") == 50.0
    assert story.value("cpu_usage_percent") == 40.0
    assert story.value("network_throughput_mbps") == 1.0
    # 200 commits a second of 2 ms each: the utilisation law.
    assert story.value("db_pool_usage_percent") == pytest.approx(40.0)
    assert story.value("availability_percent") == 100.0


def test_calls_by_their_codes() -> None:
    story = Story()
    story.look(calls={("/a/B", "OK"): 90})
    story.look(
        time=START + 10,
        calls={
            ("/a/B", "OK"): 180,
            ("/a/B", "INTERNAL"): 6,
            ("/a/C", "UNAVAILABLE"): 4,
            ("/a/C", "UNAUTHENTICATED"): 3,
            ("/a/C", "PERMISSION_DENIED"): 2,
            ("/a/C", "RESOURCE_EXHAUSTED"): 5,
            ("/a/C", "INVALID_ARGUMENT"): 90,
            ("/grpc.health.v1.Health/Check", "OK"): 500,
        },
    )
    assert story.value("calls") == 200
    assert story.value("error_rate_percent") == 5.0
    assert [story.value(name) for name in ("failed_auth_attempts", "security_events", "blocked_requests")] == [3, 2, 7]
    assert story.blame.worst("fault", START, START + 60, START + 60) == [("/a/B", 6), ("/a/C", 4)]


def test_counters_that_began_anew_count_nothing_negative() -> None:
    story = Story()
    story.look(calls={("/a/B", "OK"): 90}, cpu_seconds=5.0, commits=50)
    story.look(time=START + 10, calls={("/a/B", "OK"): 10}, cpu_seconds=1.0, commits=10, store_latency=0.1)
    assert story.value("calls") == 0
    assert story.value("server_cpu_percent") == 0.0
    assert story.value("db_pool_usage_percent") == 0.0


def test_slow_calls_are_blamed_on_their_method(call: Callable[..., Call]) -> None:
    story = Story()
    for milliseconds in (10, 20, 5_000):
        made = call("/a/Slow")
        made.started = story.clock.monotonic()
        story.clock.move(milliseconds / 1e3)
        story.calls.after(made, OK)
    story.look(time=START + 10)
    assert story.value("response_time_p99_ms") == pytest.approx(5_000, rel=0.26)
    assert story.value("operator_response_time_ms") == pytest.approx(1_676.7, rel=0.01)
    assert story.blame.worst("slow", START, START + 60, START + 60) == [("/a/Slow", 1)]
