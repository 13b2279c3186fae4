"""A worker takes tasks, reports each once, and stops what it must not go on with."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from typing import TYPE_CHECKING

import grpc
import pytest
from agenthive import TaskContext, TaskFailed, Worker
from agenthive.errors import SessionFenced
from agenthive.payload import payload, value
from agenthive.v1 import agent_pb2, error_pb2, message_pb2, payload_pb2, task_pb2
from agenthive.v1 import worker_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agenthive.session import Timing

    from tests.clients.python.conftest import Server, Stream, WorkerHive


def spec(type: str = "work", **fields: object) -> task_pb2.TaskSpec:  # noqa: A002 - the contract's word
    return task_pb2.TaskSpec(type=type, **fields)  # type: ignore[arg-type]


@pytest.fixture
def worker(server: Server, hive: WorkerHive, quick: Timing) -> Worker:
    """A worker with two slots, not running."""
    return Worker(
        server.target, agent_id="a-1", role="tester", capabilities=["python"], slots=2, timing=quick, stop_grace=5.0
    )


@pytest.fixture
async def stream(worker: Worker, hive: WorkerHive) -> AsyncIterator[Stream]:
    """The stream of that worker, running and welcomed. Register handlers first, in another fixture or the test."""
    run = asyncio.ensure_future(worker.run())
    made = await hive.stream()
    made.run = run
    made.welcome()
    yield made
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)


class Gate:
    """A handler that stands still until it is let go."""

    def __init__(self) -> None:
        self.contexts: asyncio.Queue[TaskContext] = asyncio.Queue()
        self.go = asyncio.Event()
        self.cancelled: asyncio.Queue[str] = asyncio.Queue()

    async def __call__(self, task: TaskContext) -> object:
        self.contexts.put_nowait(task)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.put_nowait(task.task_id)
            raise
        return {"task": task.task_id}


@pytest.fixture
def gate(worker: Worker) -> Gate:
    made = Gate()
    worker.task("gated")(made)
    return made


async def test_it_registers_itself(stream: Stream) -> None:
    (agent,) = stream.hello.agents
    assert agent.agent_id == "a-1"
    assert (agent.spec.role, list(agent.spec.capabilities), agent.spec.slots) == ("tester", ["python"], 2)


async def test_a_task_is_accepted_and_its_result_reported(worker: Worker, stream: Stream) -> None:
    @worker.task("work")
    async def work(task: TaskContext) -> object:
        return {
            "seen": task.input,
            "attempt": task.attempt,
            "before": task.checkpoint.decode(),
            "answers": task.answers,
        }

    stream.assign(
        "t-1", 7, spec=spec(input=payload({"n": 1})), checkpoint=b"half", answers=[payload("yes")], agent_id="a-1"
    )
    accepted = (await stream.item("accept")).accept
    assert (accepted.task_id, accepted.lease_epoch) == ("t-1", 7)
    result = (await stream.item("result")).result
    assert result.lease_epoch == 7
    assert value(result.result) == {"seen": {"n": 1}, "attempt": 1, "before": "half", "answers": ["yes"]}


async def test_a_plain_function_runs_beside_the_loop(worker: Worker, stream: Stream) -> None:
    loop_thread = threading.get_ident()

    @worker.task("work")
    def work(task: TaskContext) -> object:
        task.report(0.5, "half")
        task.output("out")
        return threading.get_ident() != loop_thread

    stream.assign("t-1", spec=spec())
    output = (await stream.item("output")).output
    assert (output.offset, output.data) == (0, b"out")
    assert value((await stream.item("result")).result.result) is True


@pytest.mark.parametrize(
    ("raised", "error_class", "reason", "message"),
    [
        (KeyError("k"), task_pb2.TASK_ERROR_CLASS_TOOL, "KeyError", "'k'"),
        (SystemExit(3), task_pb2.TASK_ERROR_CLASS_TOOL, "SystemExit", "the handler exited with 3"),
        (asyncio.CancelledError(), task_pb2.TASK_ERROR_CLASS_TOOL, "CANCELLED", "the handler cancelled itself"),
        (
            TaskFailed("later", error_class=task_pb2.TASK_ERROR_CLASS_QUOTA, reason="LIMIT", next_retry_delay=2.5),
            task_pb2.TASK_ERROR_CLASS_QUOTA,
            "LIMIT",
            "later",
        ),
    ],
)
async def test_what_a_handler_raises_fails_the_attempt(
    worker: Worker,
    stream: Stream,
    raised: BaseException,
    error_class: task_pb2.TaskErrorClass.ValueType,
    reason: str,
    message: str,
) -> None:
    @worker.task("work")
    async def work(task: TaskContext) -> object:
        raise raised

    stream.assign("t-1", spec=spec())
    error = (await stream.item("result")).result.error
    assert (error.error_class, error.reason, error.message) == (error_class, reason, message)
    assert error.HasField("next_retry_delay") == isinstance(raised, TaskFailed)


async def test_a_result_that_is_no_payload_fails_the_attempt(worker: Worker, stream: Stream) -> None:
    @worker.task("work")
    async def work(task: TaskContext) -> object:
        return object()

    stream.assign("t-1", spec=spec())
    assert (await stream.item("result")).result.error.reason == "RESULT_NOT_JSON"


async def test_a_result_too_big_for_a_message_fails_the_attempt(worker: Worker, stream: Stream) -> None:
    @worker.task("work")
    async def work(task: TaskContext) -> object:
        return b"x" * (4 * 1024 * 1024)

    stream.assign("t-1", spec=spec())
    assert (await stream.item("result")).result.error.reason == "RESULT_TOO_LARGE"


async def test_a_type_without_handler_is_invalid(stream: Stream) -> None:
    stream.assign("t-1", spec=spec("unknown"))
    error = (await stream.item("result")).result.error
    assert (error.error_class, error.reason) == (task_pb2.TASK_ERROR_CLASS_INVALID, "NO_HANDLER")


async def test_without_a_free_slot_a_task_is_rejected(gate: Gate, stream: Stream) -> None:
    for name in ("t-1", "t-2", "t-3"):
        stream.assign(name, spec=spec("gated"))
    reject = (await stream.item("reject")).reject
    assert reject.task_id == "t-3"
    assert reject.retry_after.seconds == 1


async def test_the_same_assignment_twice_is_one_attempt(gate: Gate, stream: Stream) -> None:
    stream.assign("t-1", 3, spec=spec("gated"))
    stream.assign("t-1", 3, spec=spec("gated"), repeated=True)
    await gate.contexts.get()
    gate.go.set()
    await stream.item("result")
    stream.assign("t-1", 3, spec=spec("gated"), repeated=True)  # late: the result is on its way
    stream.assign("t-2", 1, spec=spec("gated"))
    assert (await stream.item("accept")).accept.task_id == "t-2"
    assert gate.contexts.qsize() == 1


async def test_a_repeated_lease_that_is_not_in_hand_is_handed_back(gate: Gate, stream: Stream) -> None:
    stream.assign("t-1", 3, spec=spec("gated"), repeated=True, checkpoint=b"c")
    hand_back = (await stream.item("hand_back")).hand_back
    assert (hand_back.task_id, hand_back.lease_epoch, hand_back.checkpoint) == ("t-1", 3, b"c")
    assert gate.contexts.empty()


async def test_a_newer_epoch_stops_the_older_attempt_first(gate: Gate, stream: Stream) -> None:
    stream.assign("t-1", 1, spec=spec("gated"))
    await gate.contexts.get()
    stream.assign("t-1", 2, spec=spec("gated"))
    newer = await gate.contexts.get()
    assert newer.lease_epoch == 2
    assert gate.cancelled.qsize() == 1
    gate.go.set()
    result = (await stream.item("result")).result
    assert result.lease_epoch == 2


async def test_cancel_ends_a_coroutine_and_is_confirmed(gate: Gate, stream: Stream) -> None:
    stream.assign("t-1", 4, spec=spec("gated"))
    context = await gate.contexts.get()
    assert not context.cancelled
    stream.send(pb.ControlItem(cancel=pb.TaskCancel(task_id="t-1", lease_epoch=3, reason="old")))  # not this attempt
    stream.send(pb.ControlItem(cancel=pb.TaskCancel(task_id="t-1", lease_epoch=4, reason="enough")))
    result = (await stream.item("result")).result
    assert result.canceled == "enough"
    assert context.cancelled


async def test_a_cancel_for_what_is_not_in_hand_is_confirmed(stream: Stream) -> None:
    stream.send(pb.ControlItem(cancel=pb.TaskCancel(task_id="t-1", lease_epoch=4)))
    result = (await stream.item("result")).result
    assert (result.lease_epoch, result.WhichOneof("outcome")) == (4, "canceled")


async def test_an_answer_that_cannot_be_read_fails_only_the_handler_that_reads_it(
    worker: Worker, stream: Stream
) -> None:
    @worker.task("work")
    async def work(task: TaskContext) -> object:
        return list(task.answers)

    stream.assign("t-1", spec=spec(), answers=[payload_pb2.Payload(blob_id="sha256:0")])
    assert (await stream.item("result")).result.error.reason == "ValueError"


async def test_a_result_in_spite_of_a_cancel_counts(worker: Worker, stream: Stream) -> None:
    begun = asyncio.Event()

    @worker.task("work")
    async def work(task: TaskContext) -> object:
        try:
            begun.set()
            await task.cancelled.wait()
        except asyncio.CancelledError:
            return "done anyway"
        return "never"

    stream.assign("t-1", spec=spec())
    await begun.wait()
    stream.send(pb.ControlItem(cancel=pb.TaskCancel(task_id="t-1", lease_epoch=1)))
    assert value((await stream.item("result")).result.result) == "done anyway"


async def test_a_plain_function_sees_the_cancellation(worker: Worker, stream: Stream) -> None:
    @worker.task("work")
    def work(task: TaskContext) -> object:
        task.output("begun")
        while not task.cancelled:
            threading.Event().wait(0.001)
        return "half a result"

    stream.assign("t-1", spec=spec())
    await stream.item("output")
    stream.send(pb.ControlItem(cancel=pb.TaskCancel(task_id="t-1", lease_epoch=1)))
    assert (await stream.item("result")).result.WhichOneof("outcome") == "canceled"


async def test_a_handler_that_ignores_cancel_is_reported_after_the_grace_and_keeps_its_slot(
    worker: Worker, gate: Gate, stream: Stream
) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    @worker.task("stubborn")
    async def stubborn(task: TaskContext) -> object:
        begun.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return "late"

    stream.assign("t-1", spec=spec("stubborn"))
    await begun.wait()
    cancel = pb.TaskCancel(task_id="t-1", lease_epoch=1)
    cancel.grace.FromMilliseconds(10)
    stream.send(pb.ControlItem(cancel=cancel))
    assert (await stream.item("result")).result.WhichOneof("outcome") == "canceled"
    stream.assign("t-2", spec=spec("gated"))
    stream.assign("t-3", spec=spec("gated"))
    assert (await stream.item("reject")).reject.task_id == "t-3"
    release.set()


async def test_a_revoked_lease_is_stopped_without_a_word(gate: Gate, stream: Stream) -> None:
    stream.assign("t-1", spec=spec("gated"))
    await gate.contexts.get()
    stream.send(pb.ControlItem(lease_revoked=pb.LeaseRevoked(task_id="t-1", lease_epoch=1)))
    assert await gate.cancelled.get() == "t-1"
    gate.go.set()
    stream.assign("t-2", spec=spec("gated"))
    assert (await stream.item("result")).result.task_id == "t-2"


async def test_a_stale_item_stops_its_attempt(worker: Worker, gate: Gate, stream: Stream) -> None:
    stream.assign("t-1", 5, spec=spec("gated"))
    context = await gate.contexts.get()
    context.output("x")
    await stream.item("output", acknowledge=False)
    number = stream.received[-1].frame_number
    refused = pb.ItemRefused(
        frame_number=number,
        item_index=len(stream.received[-1].items) - 1,
        task_id="t-1",
        reason=error_pb2.ERROR_REASON_STALE_ATTEMPT,
    )
    stream.send(pb.ControlItem(refused=refused), acknowledged=number)
    assert await gate.cancelled.get() == "t-1"


async def test_a_result_that_is_refused_becomes_an_error(worker: Worker, stream: Stream) -> None:
    @worker.task("work")
    async def work(task: TaskContext) -> object:
        return "not wanted"

    stream.assign("t-1", spec=spec())
    while not (stream.received and stream.received[-1].items[-1].HasField("result")):
        await stream.frame()
    frame = stream.received[-1]
    refused = pb.ItemRefused(
        frame_number=frame.frame_number,
        item_index=len(frame.items) - 1,
        reason=error_pb2.ERROR_REASON_INVALID_FIELD,
        message="result: too large",
    )
    stream.send(pb.ControlItem(refused=refused), acknowledged=frame.frame_number)
    error = (await stream.item("result")).result.error
    assert (error.reason, error.message) == ("RESULT_REFUSED", "result: too large")


async def test_after_a_reconnect_what_is_not_valid_is_stopped(gate: Gate, stream: Stream, hive: WorkerHive) -> None:
    stream.assign("t-1", 1, spec=spec("gated"))
    stream.assign("t-2", 2, spec=spec("gated"))
    await gate.contexts.get()
    await gate.contexts.get()
    stream.end()
    again = await hive.stream()
    assert {(each.task_id, each.lease_epoch) for each in again.hello.leases} == {("t-1", 1), ("t-2", 2)}
    again.welcome(resumed=True, valid=(("t-2", 2),))
    assert await gate.cancelled.get() == "t-1"
    gate.go.set()
    assert (await again.item("result")).result.task_id == "t-2"


async def test_exclusive_tasks_stop_when_contact_is_lost(
    worker: Worker, gate: Gate, hive: WorkerHive, server: Server
) -> None:
    run = asyncio.ensure_future(worker.run())
    stream = await hive.stream()
    stream.welcome(reconnect_grace=0.2)
    stream.assign("t-1", spec=spec("gated", exclusive=True))
    stream.assign("t-2", spec=spec("gated"))
    await gate.contexts.get()
    await gate.contexts.get()
    await server.kill()
    assert await gate.cancelled.get() == "t-1"
    await server.start()
    again = await hive.stream()
    assert [each.task_id for each in again.hello.leases] == ["t-2"]
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)


async def test_news_goes_out_with_a_heartbeat(worker: Worker, gate: Gate, stream: Stream) -> None:
    stream.assign("t-1", 6, spec=spec("gated"))
    context = await gate.contexts.get()
    await context.progress(0.25, "reading")
    context.save_checkpoint(b"here")
    context.usage(input_tokens=10, cost_micros=5, context_usage=0.5)
    (beat,) = (await stream.item("heartbeat")).heartbeat.tasks
    assert (beat.task_id, beat.lease_epoch, beat.fraction, beat.text) == ("t-1", 6, 0.25, "reading")
    assert (beat.checkpoint, beat.usage.input_tokens, beat.context_usage) == (b"here", 10, 0.5)
    gate.go.set()
    assert (await stream.item("result")).result.usage.cost_micros == 5


async def test_output_is_cut_into_chunks_that_follow_each_other(gate: Gate, stream: Stream) -> None:
    stream.assign("t-1", spec=spec("gated"))
    context = await gate.contexts.get()
    context.output(b"a" * 70_000)
    context.output("b")
    chunks = [item.output for item in (await stream.frame()).items if item.HasField("output")]
    while len(chunks) < 3:
        chunks += [item.output for item in (await stream.frame()).items if item.HasField("output")]
    assert [(each.offset, len(each.data)) for each in chunks] == [(0, 65536), (65536, 4464), (70_000, 1)]


async def test_news_the_server_would_refuse_is_made_right_or_refused_at_once(gate: Gate, stream: Stream) -> None:
    stream.assign("t-1", spec=spec("gated"))
    context = await gate.contexts.get()
    context.report(float("nan"), "a\x00b\ud800" + "x" * 5000)
    context.usage(context_usage=7.0)
    with pytest.raises(ValueError, match="negative"):
        context.usage(input_tokens=-1)
    (beat,) = (await stream.item("heartbeat")).heartbeat.tasks
    assert (beat.fraction, beat.context_usage) == (0.0, 1.0)
    assert beat.text.startswith("abx")
    assert len(beat.text) == 1024


async def test_a_checkpoint_has_a_bound(gate: Gate, stream: Stream) -> None:
    stream.assign("t-1", spec=spec("gated"))
    context = await gate.contexts.get()
    with pytest.raises(ValueError, match="checkpoint"):
        context.save_checkpoint(b"x" * 65_537)


async def test_a_question_waits_for_its_answer(worker: Worker, stream: Stream) -> None:
    @worker.task("work")
    async def work(task: TaskContext) -> object:
        return await task.ask("sure?", {"type": "boolean"}, default=False)

    stream.assign("t-1", 2, spec=spec())
    request = (await stream.item("input_request")).input_request
    assert (request.request.question, value(request.request.default_answer)) == ("sure?", False)
    assert request.request.schema["type"] == "boolean"
    stream.send(pb.ControlItem(answer=pb.TaskAnswer(task_id="t-1", lease_epoch=2, answer=payload(True))))
    assert value((await stream.item("result")).result.result) is True


async def test_a_question_that_releases_the_slot_ends_the_attempt(worker: Worker, stream: Stream) -> None:
    @worker.task("work")
    async def work(task: TaskContext) -> object:
        if task.answers:
            return [task.checkpoint.decode(), *task.answers]
        task.save_checkpoint(b"asked")
        return await task.ask("which?", release_slot=True)

    stream.assign("t-1", 1, spec=spec())
    request = (await stream.item("input_request")).input_request
    assert (request.request.release_slot, request.checkpoint) == (True, b"asked")
    stream.assign("t-1", 2, spec=spec(), checkpoint=request.checkpoint, answers=[payload("that")])
    result = (await stream.item("result")).result
    assert (result.lease_epoch, value(result.result)) == (2, ["asked", "that"])


async def test_pause_holds_a_task_at_its_next_boundary(worker: Worker, stream: Stream) -> None:
    paused, passed = asyncio.Event(), asyncio.Event()

    @worker.task("work")
    async def work(task: TaskContext) -> object:
        task.output("begun")
        while not task.paused:
            await task.progress(0.5)
        paused.set()
        await task.not_paused()
        passed.set()
        return None

    stream.assign("t-1", spec=spec())
    await stream.item("output")
    stream.send(pb.ControlItem(pause=pb.TaskPause(task_id="t-1", lease_epoch=1)))
    await paused.wait()
    assert not passed.is_set()
    stream.send(pb.ControlItem(pause=pb.TaskPause(task_id="t-1", lease_epoch=1, resume=True)))
    await stream.item("result")


def incoming(*messages: message_pb2.Message) -> pb.ControlItem:
    return pb.ControlItem(messages=pb.IncomingMessages(agent_id="a-1", messages=messages))


async def test_steering_reaches_the_task_once_and_is_marked_as_read(worker: Worker, stream: Stream) -> None:
    @worker.task("work")
    async def work(task: TaskContext) -> object:
        texts = []
        async for message in task.steering:
            texts.append(value(message.payload))
            if len(texts) == 2:
                break
        return texts

    one = message_pb2.Message(message_id="m-1", task_id="t-1", payload=payload("left"))
    two = message_pb2.Message(message_id="m-2", task_id="t-1", payload=payload("right"))
    stream.assign("t-1", spec=spec())
    stream.send(incoming(one))
    stream.send(incoming(one, two))
    assert (await stream.item("messages_read")).messages_read.message_ids == ["m-1"]
    assert value((await stream.item("result")).result.result) == ["left", "right"]


async def test_messages_to_the_agent_are_read_when_their_handler_has_returned(
    server: Server, hive: WorkerHive, quick: Timing
) -> None:
    worker = Worker(server.target, agent_id="a-1", timing=quick)

    @worker.message
    async def heard(message: message_pb2.Message) -> None:
        if message.message_id == "bad":
            raise LookupError(message.message_id)

    run = asyncio.ensure_future(worker.run())
    stream = await hive.stream()
    stream.welcome()
    stream.send(incoming(message_pb2.Message(message_id="bad"), message_pb2.Message(message_id="good")))
    assert (await stream.item("messages_read")).messages_read.message_ids == ["good"]
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)


async def test_a_task_sends_messages_as_its_agent(worker: Worker, stream: Stream) -> None:
    @worker.task("work")
    async def work(task: TaskContext) -> None:
        task.send_message("hi", role="reviewer")

    stream.assign("t-1", spec=spec(), agent_id="a-1")
    message = (await stream.item("message")).message
    assert (message.sender_agent_id, message.role, value(message.payload)) == ("a-1", "reviewer", "hi")
    assert message.request_id


async def test_a_stopped_agent_hands_back_what_does_not_end_in_time_and_leaves(
    worker: Worker, gate: Gate, stream: Stream
) -> None:
    stream.assign("t-1", 9, spec=spec("gated"))
    (await gate.contexts.get()).save_checkpoint(b"mine")
    stop = pb.StopAgent(agent_id="a-1")
    stop.grace.FromMilliseconds(1)
    stream.send(pb.ControlItem(stop_agent=stop))
    hand_back = (await stream.item("hand_back")).hand_back
    assert (hand_back.task_id, hand_back.checkpoint) == ("t-1", b"mine")
    assert (await stream.item("agent_report")).agent_report.state == agent_pb2.AGENT_STATE_STOPPED
    await stream.item("goodbye")
    await stream.run


async def test_a_sleeping_agent_stays_in_contact_and_wakes(gate: Gate, stream: Stream) -> None:
    stream.assign("t-1", spec=spec("gated"))
    await gate.contexts.get()
    stop = pb.StopAgent(agent_id="a-1", sleep=True)
    stop.grace.FromSeconds(60)
    stream.send(pb.ControlItem(stop_agent=stop))
    stream.assign("t-2", spec=spec("gated"))
    assert (await stream.item("reject")).reject.reason == "draining"
    gate.go.set()
    await stream.item("result")
    assert (await stream.item("agent_report")).agent_report.state == agent_pb2.AGENT_STATE_SLEEPING
    stream.send(pb.ControlItem(start_agent=pb.StartAgent(agent_id="a-1", wake=True, start_epoch=2)))
    assert (await stream.item("agent_report")).agent_report.state == agent_pb2.AGENT_STATE_IDLE
    stream.assign("t-3", spec=spec("gated"))
    assert (await stream.item("accept")).accept.task_id == "t-3"


async def test_stop_drains_finishes_and_says_goodbye(worker: Worker, gate: Gate, stream: Stream) -> None:
    stream.assign("t-1", spec=spec("gated"))
    await gate.contexts.get()
    stopping = asyncio.ensure_future(worker.stop(60))
    await stream.item("drain")
    stream.assign("t-2", spec=spec("gated"))
    assert (await stream.item("reject")).reject.task_id == "t-2"
    gate.go.set()
    assert (await stream.item("result")).result.task_id == "t-1"
    await stream.item("goodbye")
    await stopping
    await stream.run


async def test_a_second_stop_does_not_wait_for_the_grace_of_the_first(
    worker: Worker, gate: Gate, stream: Stream
) -> None:
    stream.assign("t-1", spec=spec("gated"))
    await gate.contexts.get()
    stopping = asyncio.ensure_future(worker.stop(3600))
    await stream.item("drain")
    hurrying = asyncio.ensure_future(worker.stop(0))
    await stream.item("hand_back")
    await stream.item("goodbye")
    await asyncio.gather(stopping, hurrying)
    await stream.run


async def test_another_process_as_this_agent_ends_the_worker(gate: Gate, stream: Stream) -> None:
    stream.assign("t-1", spec=spec("gated"))
    await gate.contexts.get()
    stream.abort(grpc.StatusCode.FAILED_PRECONDITION, "SESSION_FENCED")
    with pytest.raises(SessionFenced):
        await stream.run
    assert gate.cancelled.qsize() == 1


SCRIPT = """
import sys
from agenthive import Worker
worker = Worker(sys.argv[1], agent_id="a-9", stop_grace=0.01)

@worker.task("work")
async def work(task):
    import asyncio
    task.output("begun")
    await asyncio.Event().wait()

worker.main()
"""


async def test_sigterm_hands_back_and_exits_with_zero(server: Server, hive: WorkerHive) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SCRIPT, server.target)
    stream = await hive.stream()
    stream.welcome()
    stream.assign("t-1", spec=spec())
    await stream.item("output")
    process.send_signal(signal.SIGTERM)
    await stream.item("drain")
    assert (await stream.item("hand_back")).hand_back.task_id == "t-1"
    await stream.item("goodbye")
    stream.end()
    assert await process.wait() == 0
