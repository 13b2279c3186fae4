"""Recorded callers and the checker against one embedded server: what they write down is checked, and can be wrong."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from agenthive.client import Client
from agenthive.v1 import task_pb2
from agenthive_server.testing.bookkeeper import Bookkeeper
from agenthive_server.testing.fleet.checks import Record, check_linearizable
from agenthive_server.testing.fleet.load import Board, FleetCaller
from agenthive_server.testing.fleet.recorder import Recorder
from agenthive_server.testing.followers import Follower
from agenthive_server.testing.harness import open_served
from agenthive_server.testing.history import head, read_log
from agenthive_server.testing.task_operations import Call
from agenthive_server.testing.waiting import eventually


async def record(client: Client, target: str, *, calls: int, seed: int, callers: int) -> Record:
    """Let callers and a worker live against a server until there were so many calls."""
    recorder, board, keeper, follower = Recorder(), Board(), Bookkeeper("books"), Follower(target)
    made = [
        FleetCaller(f"caller-{n}", {"server": client}, board, recorder, seed + 10 * n, pace=0.01)
        for n in range(callers)
    ]
    async with asyncio.TaskGroup() as group:
        beside = [group.create_task(keeper.run(target)), group.create_task(follower.run())]
        calling = [group.create_task(caller.run()) for caller in made]
        await eventually(lambda: len(recorder.calls) >= calls, what="enough calls")
        for caller in made:
            caller.stopped = True
        await asyncio.gather(*calling)
        for task_id in board.tasks:
            await made[0].finish(task_id)
        last = await head(client)
        await eventually(lambda: follower.events and follower.events[-1].sequence == last)
        for each in beside:
            each.cancel()
    tasks = {task_id: await client.get_task(task_id) for task_id in board.tasks}
    return Record(last, await read_log(client), tasks, recorder.calls, list(keeper.reports.values()), {"one": follower})


async def test_what_an_embedded_server_does_is_linearizable_and_what_it_did_not_is_found() -> None:
    async with open_served() as (app, client):
        found = await record(client, f"127.0.0.1:{app.port}", calls=300, seed=1, callers=6)
    assert {call.verb for call in found.calls} >= {"delegate", "get", "wait", "cancel", "pause", "resume", "retry"}
    assert any(report.acknowledged for report in found.reports)
    check_linearizable(found)

    # A reader is shown the past.
    (old,) = [call for call in found.calls if call.verb == "delegate" and call.task is not None][:1]
    last = max(call.end for call in found.calls)
    stale = replace(old, caller="reader", verb="get", start=last, asked=last, end=last)
    with pytest.raises(AssertionError, match="reader get") as caught:
        check_linearizable(replace(found, calls=[*found.calls, stale]))
    assert f"task {old.task_id} is not linearizable" in str(caught.value)

    # The store has forgotten what was acknowledged.
    kept = {task_id: task for task_id, task in found.tasks.items() if task_id != old.task_id}
    with pytest.raises(AssertionError, match="store store -> NOT_FOUND"):
        check_linearizable(replace(found, tasks=kept))

    # A task ends otherwise than its log tells.
    other = task_pb2.Task()
    other.CopyFrom(found.tasks[old.task_id])
    other.state, other.revision = task_pb2.TASK_STATE_EXPIRED, other.revision + 1
    with pytest.raises(AssertionError, match="EXPIRED"):
        check_linearizable(replace(found, tasks={**found.tasks, old.task_id: other}))


async def test_a_seed_makes_the_same_calls_again() -> None:
    async def plan() -> list[tuple[str, str]]:
        async with open_served() as (app, client):
            found = await record(client, f"127.0.0.1:{app.port}", calls=40, seed=5, callers=1)
        return [(call.verb, call.task_id) for call in found.calls[:40]]

    assert await plan() == await plan()


async def test_an_answer_that_never_came_is_written_down_as_unknown_and_a_repeat_as_one_call() -> None:
    recorder = Recorder()
    async with Client("127.0.0.1:1") as nobody:
        asked = recorder.call("c", "pause", "t", lambda: ("nobody", nobody.pause_task("t", timeout=0.05)), patience=0.3)
        assert await asked is None
        read = recorder.call("c", "get", "t", lambda: ("nobody", nobody.get_task("t", timeout=0.05)), patience=0.0)
        assert await read is None
    # A read that was not answered says nothing.
    (call,) = recorder.calls
    assert isinstance(call, Call)
    assert (call.verb, call.task, call.refusal, call.end) == ("pause", None, "", float("inf"))
    assert recorder.repeated >= 1
