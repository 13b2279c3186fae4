"""The interceptor: what it times, what it leaves out, what it costs."""

from __future__ import annotations

import timeit
from collections.abc import Iterable, Mapping
from typing import Any

from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive_plugins.production.calls import Calls
from agenthive_server.plugin.api import OK, Audience, Call, Load, ManualClock, Outcome, Policy

LOOK = Policy(audience=Audience.VIEWER)
ACT = Policy(audience=Audience.OPERATOR, longest_deadline=86_400.0)
DELEGATE = "/agenthive.v1.OrchestratorService/DelegateTask"


class Nowhere:
    def peer(self) -> str:
        return "nowhere"

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {}


def call(method: str, policy: Policy, started: float, request: Any = None) -> Call:
    made = Call(method, policy, Nowhere(), (), "default", request)
    made.started = started
    return made


def test_times_are_kept_by_method_and_told_once() -> None:
    clock = ManualClock()
    calls = Calls(clock.monotonic)
    for milliseconds in (5, 5, 800):
        began = call("/a/Get", LOOK, clock.monotonic())
        calls.before(began)
        clock.move(milliseconds / 1e3)
        calls.after(began, OK)
    ((method, series, bucket),) = calls.take()
    assert (method, series, bucket.count) == ("/a/Get", "viewer_response_time_ms", 3)
    assert 790 < bucket.most < 810
    assert bucket.above(100) == 1
    assert list(calls.take()) == []


def test_what_waits_by_design_or_was_given_up_is_not_timed() -> None:
    clock = ManualClock()
    calls = Calls(clock.monotonic)
    waiting = Policy(audience=Audience.VIEWER, longest_deadline=86_400.0)
    stream = Policy(audience=Audience.VIEWER, load=Load.STREAM, longest_deadline=0.0)
    now = clock.monotonic()
    calls.after(call("/a/Wait", waiting, now), OK)
    calls.after(call("/grpc.health.v1.Health/Check", Policy(audience=Audience.ANYONE, load=Load.FREE), now), OK)
    calls.after(call("/a/Stream", stream, now), OK)
    calls.after(call("/a/Get", LOOK, now), Outcome("CANCELLED"))
    result = pb.DelegateTaskRequest(wait_for=pb.WAIT_FOR_RESULT)
    calls.after(call(DELEGATE, ACT, now, result), OK)
    assert list(calls.take()) == []
    calls.after(call(DELEGATE, ACT, now, pb.DelegateTaskRequest()), OK)
    assert [method for method, _, _ in calls.take()] == [DELEGATE]


def test_a_call_costs_less_than_two_microseconds() -> None:
    """Against an empty pair of methods in the same run, so that a busy machine is no failure."""

    class Empty:
        def before(self, call: Call) -> None: ...

        def after(self, call: Call, outcome: Outcome) -> None: ...

    clock = ManualClock()
    calls, empty, made = Calls(clock.monotonic), Empty(), call("/a/Get", LOOK, clock.monotonic())

    def through(one: Calls | Empty) -> float:
        def run() -> None:
            one.before(made)
            one.after(made, OK)

        return min(timeit.repeat(run, number=2_000, repeat=7)) / 2_000

    assert through(calls) < through(empty) + 2e-6
