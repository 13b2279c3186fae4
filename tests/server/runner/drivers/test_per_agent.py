"""One process for each agent: readiness, many tasks on one line each, control lines, endings. With real processes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agenthive.v1 import agent_pb2, message_pb2, payload_pb2, task_pb2
from agenthive_server.runner.driver import Outcome, StartFailed, TaskKey
from agenthive_server.runner.drivers.process import ProcessDriver
from agenthive_server.runner.launch import Launcher
from agenthive_server.runner.tree import list_members
from agenthive_server.testing.driver_stage import DEADLINE, KEY, RecordedReport, Stage, eventually, new_task

PRELUDE = """
import json, os, sys
def say(**line):
    print(json.dumps(line), flush=True)
def lines():
    for line in sys.stdin:
        yield json.loads(line)
"""
ECHO = """
say(ready=True)
for line in lines():
    print("log", flush=True)
    say(output=json.dumps(line), task_id=line.get("task_id", ""))
    if line.get("type") == "echo":
        say(result=line, task_id=line["task_id"])
    if line.get("control") == "cancel":
        say(error={"message": "gave up"}, task_id=line["task_id"])
"""


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(ProcessDriver(Launcher(patience=0.2)), tmp_path)
    yield stage
    await stage.close()


def agent(code: str) -> agent_pb2.AgentSpec:
    words = [sys.executable, "-I", "-S", "-c", PRELUDE + code]
    return agent_pb2.AgentSpec(process=agent_pb2.ProcessDriver(command=words, mode=agent_pb2.PROCESS_MODE_AGENT))


def lines_of(report: RecordedReport) -> list[dict[str, object]]:
    text = report.content.decode().replace("log\n", "")
    decoder, lines = json.JSONDecoder(), []
    while text:
        line, end = decoder.raw_decode(text)
        lines.append(line)
        text = text[end:]
    return lines


def error_of(outcome: Outcome) -> task_pb2.TaskError:
    assert outcome.error is not None
    return outcome.error


async def test_it_is_ready_when_it_says_so(stage: Stage) -> None:
    start = asyncio.create_task(stage.start(agent("for line in lines(): pass")))
    await eventually(lambda: stage.processes)
    assert not start.done()
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert stage.processes == []
    assert stage.ended == []


async def test_one_that_ends_before_it_is_ready_says_why(stage: Stage) -> None:
    with pytest.raises(StartFailed, match=r"exit code 4.*no model"):
        await stage.start(agent("print('no model', file=sys.stderr); sys.exit(4)"))
    assert stage.ended == []


async def test_tasks_are_told_apart_by_their_id(stage: Stage) -> None:
    code = """
say(ready=True)
held = []
for line in lines():
    held.append(line["task_id"])
    if len(held) == 2:
        for task in reversed(held):
            say(output=task, task_id=task)
            say(result=task, task_id=task)
"""
    handle = await stage.start(agent(code))
    first, second = stage.begin(handle), stage.begin(handle, new_task("task-2"))
    for (job, report), name in ((first, "task-1"), (second, "task-2")):
        result = (await job).result
        assert result is not None
        assert json.loads(result.data) == name
        assert report.content.decode() == name


async def test_a_line_without_a_task_belongs_to_the_only_one_or_to_the_log(stage: Stage) -> None:
    code = """
say(ready=True)
for line in lines():
    print("plain", flush=True)
    if line["type"] == "both":
        say(result=1)
    say(result=2, task_id=line["task_id"])
"""
    handle = await stage.start(agent(code))
    job, report = stage.begin(handle)
    assert (await job).result is not None
    assert report.content == b"plain\n"
    assert stage.driver.logs(handle) == b""
    result = (await stage.run(handle, new_task("task-3", type="both"))).result
    assert result is not None
    assert result.data == b"1"
    await eventually(lambda: b'"result":2' in stage.driver.logs(handle))


async def test_a_line_of_an_attempt_that_is_over_is_dropped(stage: Stage) -> None:
    code = """
say(ready=True)
for line in lines():
    say(result="old", task_id=line["task_id"], lease_epoch=line["lease_epoch"] - 1)
    say(result="new", task_id=line["task_id"], lease_epoch=line["lease_epoch"])
"""
    result = (await stage.run(await stage.start(agent(code)), new_task(lease_epoch=7))).result
    assert result is not None
    assert json.loads(result.data) == "new"


async def test_cancel_is_a_line_and_an_answer_in_time_spares_the_agent(stage: Stage) -> None:
    handle = await stage.start(agent(ECHO))
    job, report = stage.begin(handle)
    await report.until(lambda said: b"task_id" in said.content)
    stage.driver.cancel_task(handle, KEY, 60)
    assert (await job).canceled == "gave up"
    assert lines_of(report)[-1] == {"control": "cancel", "task_id": "task-1", "grace": 60}
    assert (await stage.run(handle, new_task("task-2", type="echo"))).result is not None
    assert stage.ended == []


async def test_a_result_after_the_cancellation_counts(stage: Stage) -> None:
    code = ECHO.replace('say(error={"message": "gave up"}', "say(result=5")
    handle = await stage.start(agent(code))
    job, report = stage.begin(handle)
    await report.until(lambda said: b"task_id" in said.content)
    stage.driver.cancel_task(handle, KEY, 60)
    assert (await job).result is not None


async def test_a_task_that_does_not_end_takes_the_agent_and_its_neighbours_along(stage: Stage) -> None:
    handle = await stage.start(agent("say(ready=True)\nfor line in lines(): say(output='x', task_id=line['task_id'])"))
    (first, said), (second, heard) = stage.begin(handle), stage.begin(handle, new_task("task-2"))
    for report in (said, heard):
        await report.until(lambda each: bool(each.content))
    stage.driver.cancel_task(handle, TaskKey("task-2", 1), 0.1)
    assert (await second).canceled is not None
    error = error_of(await first)
    assert (error.error_class, error.reason) == (task_pb2.TASK_ERROR_CLASS_INFRA, "AGENT_ENDED")
    await asyncio.wait_for(stage.some_ended.wait(), DEADLINE)
    assert "task-2" in stage.ended[0].reason


async def test_a_second_cancel_can_only_shorten_the_first(stage: Stage) -> None:
    handle = await stage.start(agent("say(ready=True)\nfor line in lines(): say(output='x', task_id=line['task_id'])"))
    job, report = stage.begin(handle)
    await report.until(lambda said: bool(said.content))
    for grace in (3600, 0.1, 3600):
        stage.driver.cancel_task(handle, KEY, grace)
    assert (await job).canceled is not None


async def test_pause_and_resume_are_lines(stage: Stage) -> None:
    handle = await stage.start(agent(ECHO))
    job, report = stage.begin(handle)
    await report.until(lambda said: b"task_id" in said.content)
    await stage.driver.pause_task(handle, KEY, False)
    await stage.driver.pause_task(handle, KEY, True)
    await report.until(lambda said: b"resume" in said.content)
    assert [line["control"] for line in lines_of(report)[1:]] == ["pause", "resume"]
    assert not job.done()


async def test_a_message_is_a_line(stage: Stage) -> None:
    handle = await stage.start(agent(ECHO))
    _, report = stage.begin(handle)
    await report.until(lambda said: b"task_id" in said.content)
    text = payload_pb2.Payload(content_type="text/plain", data=b"hurry")
    urgency = message_pb2.MESSAGE_URGENCY_NOW
    message = message_pb2.Message(message_id="m", task_id="task-1", payload=text, urgency=urgency)
    assert stage.driver.deliver(handle, message)
    await report.until(lambda said: b"hurry" in said.content)
    assert lines_of(report)[1]["message"] == {
        "message_id": "m",
        "task_id": "task-1",
        "sender_agent_id": "",
        "urgency": "NOW",
        "content": "hurry",
    }


async def test_one_that_does_not_read_is_bounded_and_can_be_stopped(stage: Stage) -> None:
    handle = await stage.start(agent("import time\nsay(ready=True)\nwhile True: time.sleep(60)"))
    big = payload_pb2.Payload(content_type="text/plain", data=b"x" * 3_000_000)
    jobs = [stage.begin(handle, new_task(f"task-{number}", input=big))[0] for number in range(4)]
    errors = [error_of(await job) for job in jobs[2:]]
    assert {error.reason for error in errors} == {"NOT_READ"}
    assert not stage.driver.deliver(handle, message_pb2.Message(payload=big))
    assert not any(job.done() for job in jobs[:2])


async def test_a_stop_ends_its_input_and_it_may_say_its_last_word(stage: Stage) -> None:
    code = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
say(ready=True)
for line in lines():
    task = line["task_id"]
    say(output="x", task_id=task)
say(checkpoint="last", task_id=task)
"""
    handle = await stage.start(agent(code))
    job, report = stage.begin(handle)
    await report.until(lambda said: bool(said.content))
    await asyncio.wait_for(stage.driver.stop(handle, 60), DEADLINE)
    assert (await job).canceled is not None
    assert report.checkpoints == [b"last"]


async def test_children_of_an_agent_that_crashed_do_not_outlive_it(stage: Stage) -> None:
    code = """
import signal
if os.fork() == 0:
    os.setsid()
    signal.pause()
say(ready=True)
for line in lines():
    os.kill(os.getpid(), signal.SIGSEGV)
"""
    handle = await stage.start(agent(code))
    error = error_of(await stage.run(handle))
    assert error.error_class == task_pb2.TASK_ERROR_CLASS_INFRA
    await asyncio.wait_for(stage.some_ended.wait(), DEADLINE)
    assert stage.ended[0].signal == 11
    assert list_members((), f"suite.{id(stage):x}") == []
