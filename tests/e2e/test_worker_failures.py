"""Workers that die, hang, come late or come back: who keeps the task, and that only one result counts."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from agenthive.client import Client
from agenthive.payload import value
from agenthive.v1 import error_pb2, event_pb2, task_pb2
from agenthive.v1 import worker_service_pb2 as pb
from agenthive_server.testing.harness import ServerProcess, WorkerProcess, open_process, open_served, open_worker
from agenthive_server.testing.history import facts, fold, read_log
from agenthive_server.testing.proxy import open_proxy
from agenthive_server.testing.raw_worker import accept, hello_of, open_raw, result
from agenthive_server.testing.waiting import eventually

GRACE = 1.0
SETTINGS: dict[str, object] = {
    "limits.reconnect_grace_seconds": GRACE,
    "limits.heartbeat_interval_seconds": 0.3,
    "limits.accept_timeout_seconds": 1.0,
}
SUCCEEDED, FAILED = task_pb2.TASK_STATE_SUCCEEDED, task_pb2.TASK_STATE_FAILED


def open_server(folder: Path) -> AbstractAsyncContextManager[ServerProcess]:
    return open_process(folder / "data", settings=SETTINGS)


async def began(worker: WorkerProcess, task_id: str, what: str = "begins") -> float:
    """Wait until a worker has noted this of a task; returns when it did."""
    notes = await eventually(
        lambda: [note["at"] for note in worker.journal() if (note["task_id"], note["what"]) == (task_id, what)],
        what=f"{worker.agent_id} {what} {task_id}",
    )
    return float(notes[-1])


async def finished(client: Client, task_id: str) -> task_pb2.Task:
    return await client.wait_task(task_id, timeout=20)


def sessions(log: list[event_pb2.Event]) -> list[str]:
    return [fact for event in log if (fact := event.WhichOneof("fact") or "").startswith("session_")]


async def test_the_task_of_a_killed_worker_goes_to_another_with_its_checkpoint(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with (
        open_server(tmp_path) as server,
        Client(server.target) as client,
        open_worker(server.target, "first", folder=tmp_path) as first,
    ):
        task = await client.delegate("until", {"file": str(gate)})
        await began(first, task.task_id)
        await eventually(lambda: has_checkpoint(client, task.task_id))
        await first.kill()
        async with open_worker(server.target, "second", folder=tmp_path) as second:
            await began(second, task.task_id)
            gate.touch()
            done = await finished(client, task.task_id)
        assert [(a.agent_id, a.counted) for a in done.attempts] == [("first", False), ("second", True)]
        assert done.attempts[0].error.error_class == task_pb2.TASK_ERROR_CLASS_INFRA
        answer = value(done.result)
        assert isinstance(answer, dict)
        assert (answer["attempt"], answer["agent_id"], answer["lease_epoch"]) == (2, "second", 2)
        log = await read_log(client)
        assert sessions(log)[:3] == ["session_opened", "session_suspect", "session_opened"]
        assert facts(log, task.task_id)[2:5] == ["task_started", "task_requeued", "task_assigned"]


async def is_queued(client: Client, task_id: str) -> bool:
    return (await client.get_task(task_id)).state == task_pb2.TASK_STATE_QUEUED


async def has_checkpoint(client: Client, task_id: str) -> bool:
    return bool((await client.get_task(task_id)).progress.checkpoint)


async def test_a_worker_that_hangs_while_its_pulse_goes_on_loses_the_task_to_the_progress_clock(tmp_path: Path) -> None:
    timeouts = task_pb2.TaskTimeouts()
    timeouts.progress_timeout.FromSeconds(1)
    retry = task_pb2.RetryPolicy(maximum_attempts=1)
    async with (
        open_server(tmp_path) as server,
        Client(server.target) as client,
        open_worker(server.target, "worker", "--slots", "2", folder=tmp_path) as worker,
    ):
        never = {"file": str(tmp_path / "never")}
        moving = await client.delegate("pulse", {"file": str(tmp_path / "gate")}, timeouts=timeouts)
        hanging = await client.delegate("until", never, timeouts=timeouts, retry_policy=retry)
        done = await finished(client, hanging.task_id)
        assert (done.state, done.error.error_class) == (FAILED, task_pb2.TASK_ERROR_CLASS_TIMEOUT)
        assert done.error.reason == "PROGRESS"
        await began(worker, hanging.task_id, "stopped")
        (tmp_path / "gate").touch()
        done = await finished(client, moving.task_id)
        assert (done.state, done.attempt) == (SUCCEEDED, 1)


async def test_a_suspended_worker_comes_late_with_an_old_epoch_and_changes_nothing(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with (
        open_server(tmp_path) as server,
        Client(server.target) as client,
        open_worker(server.target, "late", folder=tmp_path) as late,
    ):
        task = await client.delegate("until", {"file": str(gate)})
        await began(late, task.task_id)
        late.send_signal(signal.SIGSTOP)
        async with open_worker(server.target, "prompt", folder=tmp_path) as prompt:
            await began(prompt, task.task_id)
            gate.touch()
            await finished(client, task.task_id)
            done = await client.get_task(task.task_id)
            assert done.attempts[-1].agent_id == "prompt"
        before = facts(await read_log(client), task.task_id)

        late.send_signal(signal.SIGCONT)
        # It answers for its old lease, or is told first that it is over; the next task it gets comes after either.
        pinned = await client.delegate("echo", agent_id="late")
        assert (await finished(client, pinned.task_id)).attempts[-1].agent_id == "late"
        assert await client.get_task(task.task_id) == done
        assert facts(await read_log(client), task.task_id) == before


async def test_a_worker_that_comes_back_within_the_grace_keeps_its_task(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with (
        open_server(tmp_path) as server,
        Client(server.target) as client,
        open_proxy(server.target) as proxy,
        open_worker(proxy.target, "worker", folder=tmp_path) as worker,
    ):
        task = await client.delegate("until", {"file": str(gate)})
        await began(worker, task.task_id)
        for number in range(1, 4):
            proxy.cut(refuse=False)
            await eventually(partial(resumed, client, number))
        proxy.freeze()
        await asyncio.sleep(GRACE / 4)  # a swallowing network for less than the grace
        proxy.mend()
        gate.touch()
        done = await finished(client, task.task_id)
        assert (done.state, done.attempt, len(done.attempts)) == (SUCCEEDED, 1, 1)
        log = await read_log(client)
        assert sessions(log).count("session_resumed") >= 3
        assert "session_ended" not in sessions(log)
        assert [note["what"] for note in worker.journal()] == ["begins", "ends"]
        fold(log)


async def resumed(client: Client, times: int) -> bool:
    return sessions(await read_log(client)).count("session_resumed") == times


@pytest.mark.parametrize("silent", [False, True], ids=["cut", "swallowed"])
async def test_an_exclusive_task_is_stopped_by_its_worker_before_another_begins(tmp_path: Path, silent: bool) -> None:
    gate = tmp_path / "gate"
    async with (
        open_server(tmp_path) as server,
        Client(server.target) as client,
        open_proxy(server.target) as proxy,
        open_worker(proxy.target, "away", folder=tmp_path) as away,
    ):
        task = await client.delegate("until", {"file": str(gate)}, exclusive=True)
        await began(away, task.task_id)
        await eventually(lambda: has_checkpoint(client, task.task_id))
        if silent:
            proxy.freeze()
        else:
            proxy.cut()
        async with open_worker(server.target, "here", folder=tmp_path) as here:
            second = await began(here, task.task_id)
            first = await began(away, task.task_id, "stopped")
            assert first < second
            gate.touch()
            await finished(client, task.task_id)
        done = await client.get_task(task.task_id)
        assert [a.agent_id for a in done.attempts] == ["away", "here"]

        proxy.mend()
        pinned = await client.delegate("echo", agent_id="away")
        assert (await finished(client, pinned.task_id)).state == SUCCEEDED
        assert await client.get_task(task.task_id) == done


async def test_a_second_process_of_an_agent_takes_over_and_the_first_one_ends(tmp_path: Path) -> None:
    async with (
        open_server(tmp_path) as server,
        Client(server.target) as client,
        open_worker(server.target, "same", folder=tmp_path) as first,
    ):
        task = await client.delegate("until", {"file": str(tmp_path / "gate")})
        await began(first, task.task_id)
        assert first.process is not None
        async with open_worker(server.target, "same", folder=tmp_path) as second:
            assert await asyncio.wait_for(first.process.wait(), 20) != 0  # it says that it was fenced
            (tmp_path / "gate").touch()
            done = await finished(client, task.task_id)
            assert done.state == SUCCEEDED
            answer = value(done.result)
            assert isinstance(answer, dict)
            assert second.process is not None
            assert answer["pid"] == second.process.pid


async def test_a_worker_that_repeats_its_tail_changes_nothing_twice(tmp_path: Path) -> None:
    async with open_served(tmp_path / "data") as (app, client):
        target = f"127.0.0.1:{app.port}"
        task = await client.delegate("any")
        async with open_raw(target, hello_of("raw")) as worker:
            assignment = await worker.assignment()
            number = await worker.send(accept(assignment))
            tail = await worker.send(result(assignment))
            await worker.settled(tail)
            await worker.send(accept(assignment), number=number)  # an old frame again, on the same stream
            await worker.send(result(assignment), number=tail)
            session_id = worker.welcome.session_id
            assert await worker.say(result(assignment)) == []  # the same in a new frame: acknowledged again
        async with open_raw(target, hello_of("raw", session_id=session_id)) as worker:
            assert worker.welcome.resumed
            assert worker.welcome.acknowledged_frame == tail + 1
            await worker.send(result(assignment), number=tail)
            assert await worker.say(result(assignment)) == []
        async with open_raw(target, hello_of("raw", leases=[(task.task_id, assignment.lease_epoch)])) as worker:
            assert not worker.welcome.resumed
            assert await worker.say(result(assignment)) == []  # in another session too
            refused = await worker.say(result(assignment, "another", epoch=assignment.lease_epoch + 1))
            assert [each.reason for each in refused] == [error_pb2.ERROR_REASON_STALE_ATTEMPT]
        log = await read_log(client)
        assert facts(log, task.task_id) == ["task_delegated", "task_assigned", "task_started", "task_succeeded"]
        assert (await client.get_task(task.task_id)).result.data == b"done"


async def test_a_worker_that_never_answers_assignments_loses_its_session_after_three(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"limits__accept_timeout_seconds": 0.3, "limits__heartbeat_interval_seconds": 5.0}
    async with open_served(tmp_path / "data", **settings) as (app, client):
        task = await client.delegate("any")
        async with open_raw(f"127.0.0.1:{app.port}", hello_of("mute")) as worker:
            assert await worker.end() == grpc.StatusCode.NOT_FOUND
        log = await read_log(client)
        story = facts(log, task.task_id)
        assert story == ["task_delegated", *["task_assigned", "task_requeued"] * 3]
        stood = await client.get_task(task.task_id)
        assert (stood.state, stood.counted_attempts) == (task_pb2.TASK_STATE_QUEUED, 0)


async def test_a_silent_session_is_told_to_connect_again_and_keeps_its_leases(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"limits__heartbeat_interval_seconds": 0.3, "limits__reconnect_grace_seconds": 10.0}
    async with open_served(tmp_path / "data", **settings) as (app, client):
        target = f"127.0.0.1:{app.port}"
        await client.delegate("any")
        async with open_raw(target, hello_of("quiet")) as worker:
            assignment = await worker.assignment()
            await worker.say(accept(assignment))
            session_id = worker.welcome.session_id
            assert await worker.end() == grpc.StatusCode.DEADLINE_EXCEEDED
        held = (assignment.task_id, assignment.lease_epoch)
        async with open_raw(target, hello_of("quiet", session_id=session_id, leases=[held])) as worker:
            assert [(each.task_id, each.lease_epoch) for each in worker.welcome.valid_leases] == [held]
            assert await worker.say(result(assignment)) == []


async def test_a_fourth_attempt_is_not_given_to_a_task_that_kills_its_workers(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server, Client(server.target) as client:
        task = await client.delegate("any")
        for number in range(3):
            await eventually(lambda: is_queued(client, task.task_id))
            async with open_raw(server.target, hello_of(f"victim-{number}")) as worker:
                await worker.say(accept(await worker.assignment()))
        ended = await finished(client, task.task_id)
        assert ended.state == task_pb2.TASK_STATE_QUARANTINED
        assert ended.counted_attempts == 0
        await client.retry_task(task.task_id)
        async with open_raw(server.target, hello_of("survivor")) as worker:
            assert await worker.say(result(await worker.assignment())) == []
        assert (await finished(client, task.task_id)).state == SUCCEEDED


async def test_what_is_handed_back_together_with_a_drain_does_not_come_back(tmp_path: Path) -> None:
    async with open_served(tmp_path / "data") as (app, client):
        task = await client.delegate("any")
        async with open_raw(f"127.0.0.1:{app.port}", hello_of("leaving")) as worker:
            held = await worker.assignment()
            back = pb.TaskHandBack(task_id=held.task_id, lease_epoch=held.lease_epoch, checkpoint=b"half")
            await worker.say(accept(held))
            await worker.send(pb.WorkerItem(hand_back=back), pb.WorkerItem(drain=pb.Drain()))
            await worker.until(lambda item: item.HasField("goodbye"))
        assert facts(await read_log(client), task.task_id)[3:] == ["task_requeued"]
        async with open_raw(f"127.0.0.1:{app.port}", hello_of("other")) as worker:
            assert (await worker.assignment()).checkpoint == b"half"
