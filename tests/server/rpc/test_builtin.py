"""The interceptors that are always on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping

import pytest
from agenthive_server import telemetry
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.errors import Overloaded
from agenthive_server.plugin.api import OK, Audience, Call, Load, Outcome, Policy
from agenthive_server.rpc.builtin import AccessLog, BuiltIn, CallId, ConcurrencyLimit, DeadlineCap, Deadlines

POLICY = Policy(audience=Audience.VIEWER)


class Loopback:
    """A connection from here."""

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {}


def new_call(method: str = "/s/M", policy: Policy = POLICY, remaining: float | None = None) -> Call:
    call = Call(method, policy, Loopback(), (("x-key", "1"), ("x-key", "2")), "default")
    call.remaining = remaining
    return call


def test_call_ids_differ_and_go_to_log_and_caller() -> None:
    interceptor = CallId("p")
    first, second = new_call(), new_call()
    interceptor.before(first)
    interceptor.before(second)
    assert first.call_id != second.call_id
    assert second.trailing == (("agenthive-call-id", second.call_id),)
    record = logging.LogRecord("n", logging.INFO, "f", 1, "m", None, None)
    assert telemetry.CallIdFilter().filter(record)
    assert record.__dict__["call_id"] == second.call_id


def test_calls_are_counted_by_method_and_code_and_timed() -> None:
    clock = ManualClock()
    log = AccessLog(clock)
    for outcome in (OK, OK, Outcome("NOT_FOUND", "TASK_NOT_FOUND")):
        call = new_call()
        log.before(call)
        clock.move(0.5)
        log.after(call, outcome)
    stream = new_call("/s/Stream", Policy(audience=Audience.VIEWER, load=Load.STREAM))
    log.before(stream)
    log.after(stream, OK)
    method = ("method", "/s/M")
    found = {(sample.name, sample.labels): sample.value for sample in log.metrics()}
    assert {key: count for key, count in found.items() if key[0] == telemetry.RPC_CALLS} == {
        (telemetry.RPC_CALLS, (method, ("code", "OK"))): 2,
        (telemetry.RPC_CALLS, (method, ("code", "NOT_FOUND"))): 1,
        (telemetry.RPC_CALLS, (("method", "/s/Stream"), ("code", "OK"))): 1,
    }
    duration = telemetry.RPC_DURATION
    assert (found[f"{duration}_sum", (method,)], found[f"{duration}_count", (method,)]) == (1.5, 3)
    assert found[f"{duration}_bucket", (method, ("le", "0.25"))] == 0
    assert found[f"{duration}_bucket", (method, ("le", "0.5"))] == 3
    assert not any(("method", "/s/Stream") in labels for name, labels in found if name.startswith(duration))


def test_a_call_is_a_line_only_for_those_who_debug(caplog: pytest.LogCaptureFixture) -> None:
    log = AccessLog(ManualClock())
    log.after(new_call(), OK)
    assert not caplog.records
    with caplog.at_level(logging.DEBUG, "agenthive_server.access"):
        log.after(new_call(), OK)
    assert caplog.records[0].__dict__["method"] == "/s/M"


def test_too_many_calls_at_once_are_refused_and_counted() -> None:
    limit = ConcurrencyLimit(unary=2, streams=1)
    calls = [new_call() for _ in range(3)]
    limit.before(calls[0])
    limit.before(calls[1])
    with pytest.raises(Overloaded) as refused:
        limit.before(calls[2])
    assert refused.value.retry_after == 1.0
    limit.after(calls[0], OK)
    limit.before(calls[2])
    found = {(sample.name, sample.labels[0][1]): sample.value for sample in limit.metrics()}
    assert found[telemetry.RPC_IN_FLIGHT, "unary"] == 2
    assert found[telemetry.RPC_REFUSED, "unary"] == 1


def test_streams_have_a_bound_of_their_own_and_sessions_and_probes_none() -> None:
    limit = ConcurrencyLimit(unary=0, streams=1)
    for load in (Load.STREAM, Load.SESSION, Load.SESSION, Load.FREE, Load.FREE):
        limit.before(new_call(policy=Policy(audience=Audience.VIEWER, load=load)))
    with pytest.raises(Overloaded):
        limit.before(new_call(policy=Policy(audience=Audience.VIEWER, load=Load.STREAM)))
    assert limit.in_flight(Load.SESSION) == 2


@pytest.mark.parametrize(
    ("remaining", "expected", "watched"),
    [(None, 30.0, True), (5.0, 5.0, False), (7_200.0, 3_600.0, True)],
)
async def test_a_deadline_is_the_callers_or_the_default_and_never_beyond_the_longest(
    remaining: float | None, expected: float, watched: bool
) -> None:
    deadlines = Deadlines()
    cap = DeadlineCap(deadlines)
    call = new_call(remaining=remaining)
    now = asyncio.get_running_loop().time()
    cap.before(call)
    assert call.deadline == pytest.approx(now + expected, abs=0.5)
    assert (deadlines.expire(now - 1.0) is not None) == watched
    cap.after(call, OK)
    assert deadlines.expire(now + 1e6) is None


async def test_streams_have_no_deadline_but_the_callers() -> None:
    cap = DeadlineCap()
    endless = Policy(audience=Audience.VIEWER, default_deadline=0.0, longest_deadline=0.0)
    call = new_call(policy=endless)
    cap.before(call)
    assert call.deadline == 0.0
    call = new_call(policy=endless, remaining=1e6)
    cap.before(call)
    assert call.deadline > 0.0


async def test_one_timer_ends_exactly_those_whose_time_is_up() -> None:
    deadlines = Deadlines()
    loop = asyncio.get_running_loop()
    now = loop.time()
    ended: list[str] = []

    async def serve(name: str, span: float, answered: bool) -> None:
        call = new_call(name)
        call.deadline = now + span
        call.answered = answered
        deadlines.watch(call, span, loop)
        try:
            await loop.create_future()
        except asyncio.CancelledError:
            ended.append(f"{name} {call.expired}")
            raise

    plan = [("short", 10.0, False), ("long", 20.0, False), ("answered", 10.0, True)]
    tasks = [asyncio.create_task(serve(*one)) for one in plan]
    await asyncio.sleep(0)
    assert deadlines.expire(now + 5) == pytest.approx(now + 10)
    assert deadlines.expire(now + 11) == pytest.approx(now + 20)
    await asyncio.sleep(0)
    assert ended == ["short True"]
    assert deadlines.expire(now + 21) is None
    await asyncio.sleep(0)
    assert ended == ["short True", "long True"]
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_headers_notes_and_order_of_what_is_built_in() -> None:
    call = new_call()
    assert (call.header("x-key"), call.header("other")) == ("1", None)
    call.notes["plugin"] = 1
    assert call.notes == {"plugin": 1}
    built_in = BuiltIn(clock=ManualClock(), new_id=lambda: "0123456789")
    names = [type(interceptor).__name__ for interceptor in built_in.interceptors]
    assert names == ["CallId", "AccessLog", "DeadlineCap", "ConcurrencyLimit"]
    assert {sample.name for sample in built_in.metrics()} == {telemetry.RPC_IN_FLIGHT, telemetry.RPC_REFUSED}
