"""The data directory of a hive at work is lost, and it comes back from its backups: what that costs, and what not.

A drill with real processes: a server with its runner and process agents, workers with the SDK, callers that repeat a
call under its request id until they see the end, and a reader of all events. The recovery time and the recovery point
are measured and printed; what is asserted is that nothing before the recovery point is lost, and nothing done twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from agenthive.client import Client
from agenthive.errors import CursorCompacted, HiveError, NotFound
from agenthive.payload import value
from agenthive.v1 import agent_pb2, task_pb2
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive.v1.event_pb2 import Event
from agenthive_server.testing.followers import Follower
from agenthive_server.testing.harness import ServerProcess, WorkerProcess, open_worker
from agenthive_server.testing.history import difference, fold, read_log
from agenthive_server.testing.processes import find_runner
from agenthive_server.testing.waiting import eventually

SETTINGS: dict[str, object] = {
    "limits.reconnect_grace_seconds": 5,
    "limits.heartbeat_interval_seconds": 1,
    "runner.orphan_timeout_seconds": 60,
    "server.drain_grace_seconds": 5,
}

PROMPT = 5.0
"""Seconds: what was acknowledged longer before the loss is in an archive, however busy this machine is."""

AGENTS = 3

NEW_EPOCHS = 10**12

AGENT = """
import json, sys, time
print('{"ready": true}', flush=True)
for line in sys.stdin:
    task = json.loads(line)
    if "task_id" in task and "input" in task:
        time.sleep(0.02)
        result = {"input": task["input"], "lease_epoch": task["lease_epoch"]}
        print(json.dumps({"result": result, "task_id": task["task_id"]}), flush=True)
"""


@dataclass
class Told:
    """What a caller was told about one of its requests."""

    task_id: str
    accepted: float
    ended: float = 0.0
    result: Any = None


@dataclass
class Callers:
    """Callers that delegate one task after the other; a call is repeated until it is answered.

    A task that is not there any more was lost with the hive: it is delegated again, under the same request id.
    """

    clients: list[Client]
    told: dict[str, Told] = field(default_factory=dict)
    done: int = 0
    stopped: bool = False

    async def run(self, number: int, capability: str) -> None:
        """Call until stopped, and finish what was begun."""
        client, count = self.clients[number % len(self.clients)], 0
        while not self.stopped:
            count += 1
            await self._insist(client, f"{capability}-{number}-{count}", capability)
            self.done += 1

    async def _insist(self, client: Client, request_id: str, capability: str) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                task = await client.delegate(
                    "echo", request_id, required_capabilities=[capability], request_id=request_id
                )
                told = self.told[request_id] = Told(task.task_id, loop.time())
                task = await client.wait_task(task.task_id)
            except (HiveError, TimeoutError) as error:
                if not isinstance(error, NotFound):
                    await asyncio.sleep(0.05)
                continue
            if task.state == task_pb2.TASK_STATE_SUCCEEDED:
                told.ended, told.result = loop.time(), value(task.result)
                return


async def spawn(client: Client, mark: str) -> None:
    agents = []
    for number in range(AGENTS):
        spec = agent_pb2.AgentSpec(capabilities=["process"])
        spec.process.command.extend([sys.executable, "-I", "-S", "-c", AGENT, mark])
        spec.process.mode = agent_pb2.PROCESS_MODE_AGENT
        agents.append(orchestrator.NewAgent(agent_id=f"process-{number}", spec=spec))
    await client.spawn_many(agents, request_id="the fleet")


def living(mark: str) -> int:
    """Return how many processes of agents there are, whoever started them."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            count += words[-2:-1] == [mark.encode()] and b"-S" in words
    return count


async def agenthived(*words: object) -> Any:
    """Run a command and return what it tells in JSON."""
    command = [sys.executable, "-m", "agenthive_server", *map(str, words), "--output", "json"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0, words
    return json.loads(output)


@dataclass
class Drill:
    """A hive that is to be lost, with everybody who has to do with it."""

    folder: Path
    server: ServerProcess
    callers: Callers
    follower: Follower
    workers: list[WorkerProcess]

    async def more(self, count: int) -> None:
        """Wait until so many more tasks were done."""
        goal = self.callers.done + count
        await eventually(lambda: self.callers.done >= goal, limit=60, what="the load comes forward")

    async def lose(self) -> float:
        """Kill the server and delete its data directory; returns when."""
        lost = asyncio.get_running_loop().time()
        await self.server.kill()
        shutil.rmtree(self.server.data_dir)
        return lost

    async def bring_back(self, source: Path) -> Any:
        """Restore into a new directory and serve it under the old address; returns what the restore told."""
        target = self.folder / "restored"
        told = await agenthived("restore", "--from", source, "--to", target)
        self.server.data_dir, self.server.errors = target, target / "server.log"
        await self.server.start()
        return told


async def end_runners(*folders: Path) -> None:
    for folder in folders:
        while pid := find_runner(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.05)


@asynccontextmanager
async def open_drill(folder: Path, **settings: object) -> AsyncIterator[Drill]:
    server = ServerProcess(folder / "data", runner=True, settings={**SETTINGS, **settings})
    await server.start()
    target = server.target
    try:
        async with (
            Client(target) as one,
            Client(target) as other,
            open_worker(target, "sdk-0", "--slots", "4", "--capability", "sdk", folder=folder) as first,
            open_worker(target, "sdk-1", "--slots", "4", "--capability", "sdk", folder=folder) as second,
            asyncio.TaskGroup() as group,
        ):
            await spawn(one, str(folder))
            callers, follower = Callers([one, other]), Follower(target)
            following = group.create_task(read_until_lost(follower))
            calling = [
                group.create_task(callers.run(number, capability))
                for number in range(3)
                for capability in ("sdk", "process")
            ]
            yield Drill(folder, server, callers, follower, [first, second])
            callers.stopped = True
            async with asyncio.timeout(60):
                await asyncio.gather(*calling)
            following.cancel()
    finally:
        await server.kill()
        await end_runners(folder / "data", folder / "restored")


async def read_until_lost(follower: Follower) -> None:
    """Read all events; the cursor of a hive that was lost is too old in the one that was restored."""
    with contextlib.suppress(CursorCompacted):
        await follower.run()


@dataclass
class Aftermath:
    """What there is after a drill, and what there was before."""

    acknowledged: dict[str, Told]
    """What callers had been told when the hive was lost."""
    seen: list[Event]
    """The events of the lost hive, as somebody else saw them."""
    told: Any
    """What the restore said of itself."""
    times: dict[str, float]
    log: list[Event]
    tasks: dict[str, task_pb2.Task]

    @property
    def head(self) -> int:
        """The recovery point."""
        head: int = self.told["last_sequence_before"]
        return head

    @property
    def lost_seconds(self) -> float:
        """From the recovery point to the last event anybody saw."""
        if len(self.seen) <= self.head:
            return 0.0
        last, kept = self.seen[-1].time, self.seen[self.head - 1].time
        return (last.ToNanoseconds() - kept.ToNanoseconds()) / 1e9

    def report(self, name: str) -> None:
        """Print what was measured."""
        times = ", ".join(f"{what} after {span:.2f} s" for what, span in self.times.items())
        print(
            f"{name}: recovery time: {times}; recovery point: event {self.head} of {len(self.seen)} seen,"
            f" {max(0, len(self.seen) - self.head)} events and {self.lost_seconds:.3f} s back;"
            f" {len(self.acknowledged)} requests, {self.told['tasks_requeued']} tasks requeued"
        )


async def idle(client: Client) -> bool:
    """Whether every task has ended, also those nobody waits for because they had ended in the lost hive."""
    health = await client.health()
    return not health.queued_tasks and not health.held_tasks


async def lose_and_restore(drill: Drill, place: Path) -> Aftermath:
    """Lose the hive at work, bring it back, and let all requests be done."""
    clock, callers = asyncio.get_running_loop().time, drill.callers
    lost = await drill.lose()
    acknowledged = {request: Told(**vars(told)) for request, told in callers.told.items()}
    seen = list(drill.follower.events)
    told = await drill.bring_back(place)
    times = {"serving": clock() - lost}
    for kind in ("sdk", "process"):

        def at_work(kind: str = kind) -> bool:
            return any(each.ended > lost for request, each in callers.told.items() if request.startswith(kind))

        await eventually(at_work, limit=60, what=f"{kind} agents are at work again")
        times[f"a task done by {kind}"] = clock() - lost
    await drill.more(60)
    callers.stopped = True
    await eventually(lambda: all(each.ended for each in callers.told.values()), limit=60)
    client = callers.clients[0]
    await eventually(lambda: idle(client), limit=60, what="all tasks have ended")
    # The runner of the lost server has stopped what was started again elsewhere.
    await eventually(lambda: living(str(drill.folder)) == AGENTS, limit=30, what="one process for each agent")
    log = await read_log(client)
    tasks = {task_id: await client.get_task(task_id) for task_id in [t.task_id async for t in client.list_tasks()]}
    return Aftermath(acknowledged, seen, told, times, log, tasks)


@pytest.mark.crash
@pytest.mark.timeout(300)
@pytest.mark.parametrize("archive", [True, False], ids=["archive", "backup only"])
async def test_a_hive_that_lost_its_data_directory_comes_back(tmp_path: Path, archive: bool) -> None:
    place = tmp_path / "backups"
    settings: dict[str, object] = {"server.archive_dir": str(place)} if archive else {}
    async with open_drill(tmp_path, **settings) as drill:
        await drill.more(30)
        backed_up, made = asyncio.get_running_loop().time(), {}
        if archive:
            await eventually(lambda: list(place.glob("*/manifest.json")), what="the archive's first backup")
        else:
            made = await agenthived("backup", "create", "--data-dir", drill.server.data_dir, "--to", place)
        await drill.more(150)
        lost = asyncio.get_running_loop().time()
        after = await lose_and_restore(drill, place)
    after.report("archive" if archive else "backup only")
    check_log(after)
    check_requests(drill.callers.told, after)
    check_recovery_point(after, (lost if archive else backed_up) - PROMPT)
    assert after.head == made.get("last_sequence", after.head)
    assert not archive or after.lost_seconds < PROMPT
    assert after.told["sessions_ended"] >= 3
    assert "Traceback" not in drill.server.log()


def check_log(after: Aftermath) -> None:
    """Up to the recovery point the new log is the old one; what follows can have happened, without a hole."""
    shared = min(after.head, len(after.seen))
    assert difference(after.seen[:shared], after.log[:shared]) == ""
    assert [event.sequence for event in after.log] == list(range(1, len(after.log) + 1))
    assert all(story.accepted == 1 for story in fold(after.log).tasks.values())


def check_requests(told: dict[str, Told], after: Aftermath) -> None:
    """No request has two tasks or two results, and none is lost but those that ended after the recovery point."""
    by_request = {value(task.spec.input): task for task in after.tasks.values()}
    assert len(by_request) == len(after.tasks)
    assert by_request.keys() <= told.keys()
    kept = {event.task_id for event in after.log[: after.head] if event.HasField("task_succeeded")}
    for request, each in told.items():
        # Epochs of the new log are times in microseconds: by them one sees who told the caller of the end.
        told_by_the_lost = each.result["lease_epoch"] < NEW_EPOCHS
        task = by_request.get(request)
        if task is None:
            assert told_by_the_lost, f"{request} was not done"
            continue
        assert (task.task_id, task.state) == (each.task_id, task_pb2.TASK_STATE_SUCCEEDED), request
        result: Any = value(task.result)
        assert (result["input"], result["lease_epoch"]) == (request, task.attempts[-1].lease_epoch)
        if not told_by_the_lost or each.task_id in kept:
            assert result == each.result, request


def check_recovery_point(after: Aftermath, bound: float) -> None:
    """What was acknowledged before a time is there; and what was there at the recovery point has stayed."""
    old = [told for told in after.acknowledged.values() if told.accepted < bound]
    assert all(told.task_id in after.tasks for told in old)
    delegated = {event.task_id for event in after.seen[: after.head] if event.HasField("task_delegated")}
    assert delegated
    assert delegated <= after.tasks.keys()
