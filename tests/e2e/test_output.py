"""Output of attempts: live while they work, kept as a blob when they end."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agenthive import Worker
from agenthive.task_context import TaskContext, TaskFailed
from agenthive.v1 import event_pb2, task_pb2
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive_server.testing.harness import open_sdk_workers, open_served

OUTPUT = orchestrator.EVENT_CLASS_OUTPUT
KEPT = 2**20


async def test_output_is_seen_while_the_task_runs_and_kept_when_it_ends(tmp_path: Path) -> None:
    async with open_served(tmp_path / "data") as (app, client):
        worker = Worker(f"127.0.0.1:{app.port}", agent_id="talker")
        go_on = asyncio.Event()

        @worker.task("talk")
        async def talk(task: TaskContext) -> None:
            task.output("first\n")
            task.report(0.5, "half way")
            await go_on.wait()
            task.output(b"second\n", stream=event_pb2.OUTPUT_STREAM_STDERR)

        async with open_sdk_workers(client, worker):
            task = await client.delegate("talk", task_id="t")
            seen: list[event_pb2.Event] = []
            async with client.events(event_class=OUTPUT, task_ids=["t"]) as stream:
                async for event in stream:
                    seen.append(event)
                    if "first" in text(seen) and progress(seen):
                        assert (await client.get_task("t")).state == task_pb2.TASK_STATE_RUNNING
                        go_on.set()
                    if "second" in text(seen):
                        break
            done = await client.wait_task(task.task_id, timeout=20)
        assert text(seen) == "first\nsecond\n"
        assert progress(seen) == [(0.5, "half way")]
        assert {event.sequence for event in seen} == {0}
        assert await client.download_blob(done.output_blob_id) == b"first\nsecond\n"


def text(events: list[event_pb2.Event]) -> str:
    """The output of these events, put together by its offsets."""
    whole = b""
    for event in events:
        if event.HasField("task_output"):
            assert event.task_output.offset == len(whole)
            whole += event.task_output.data
    return whole.decode()


def progress(events: list[event_pb2.Event]) -> list[tuple[float, str]]:
    told = [event.task_progressed for event in events if event.HasField("task_progressed")]
    return [(each.fraction, each.text) for each in told]


async def test_an_attempt_supersedes_the_output_of_the_one_before(tmp_path: Path) -> None:
    async with open_served(tmp_path / "data") as (app, client):
        worker = Worker(f"127.0.0.1:{app.port}", agent_id="talker")

        @worker.task("talk")
        async def talk(task: TaskContext) -> None:
            task.output(f"attempt {task.attempt}")
            if task.attempt == 1:
                raise TaskFailed("again", next_retry_delay=0.05)

        async with open_sdk_workers(client, worker):
            done = await client.delegate("talk", task_id="t", wait=True, timeout=20)
        assert await client.download_blob(done.output_blob_id) == b"attempt 2"
        earliest = orchestrator.STREAM_START_EARLIEST
        stream = client.events(start=earliest, event_class=OUTPUT, task_ids=["t"], follow=False)
        outputs = [event.task_output async for event in stream if event.HasField("task_output")]
        assert [(each.attempt, each.offset, each.data) for each in outputs] == [
            (1, 0, b"attempt 1"),
            (2, 0, b"attempt 2"),
        ]
        position = orchestrator.OutputPosition(task_id="t", attempt=2, offset=8)
        stream = client.events(event_class=OUTPUT, task_ids=["t"], output_positions=[position], follow=False)
        assert [(event.task_output.offset, event.task_output.data) async for event in stream] == [(8, b"2")]


async def test_of_much_output_the_end_is_kept(tmp_path: Path) -> None:
    async with open_served(tmp_path / "data") as (app, client):
        worker = Worker(f"127.0.0.1:{app.port}", agent_id="talker")
        chunk = b"0123456789abcde\n" * 1024

        @worker.task("talk")
        async def talk(task: TaskContext) -> None:
            for number in range(150):
                task.output(chunk)
                if number % 10 == 0:
                    await asyncio.sleep(0)
            task.output("the end")

        async with open_sdk_workers(client, worker):
            done = await client.delegate("talk", wait=True, timeout=20)
        kept = await client.download_blob(done.output_blob_id)
        assert len(kept) <= KEPT
        assert len(kept) > KEPT - 2**17
        assert kept.endswith(chunk + b"the end")
