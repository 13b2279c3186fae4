"""Sessions of workers over a real stream: numbering, folding, acknowledging, resuming, ending."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from agenthive.v1 import agent_pb2, error_pb2, event_pb2, message_pb2, payload_pb2, task_pb2
from agenthive.v1 import orchestrator_service_pb2 as events_pb
from agenthive.v1 import worker_service_pb2 as pb
from agenthive_server.kernel.errors import StoreUnavailable, Unauthenticated
from agenthive_server.kernel.messages import MessageState
from agenthive_server.kernel.proposals import HookSet, Joining, Turn
from agenthive_server.kernel.records import Kind, Payload
from agenthive_server.kernel.session_items import Cancel, Item, Refusal
from agenthive_server.kernel.sessions import SessionState
from agenthive_server.kernel.tasks import TaskState
from agenthive_server.plugin.api import Call, Load, Outcome, Stage

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Edge

Failure = Callable[[Any], Any]
NAMESPACE = "default"


class Worker:
    """A worker whose every frame is the test's."""

    def __init__(self, edge: Edge) -> None:
        self.call = edge.worker.Connect()
        self.sent = 0
        self.session_id = ""
        self.frames: list[pb.ConnectResponse] = []

    async def hello(self, *agent_ids: str, session_id: str = "", **fields: Any) -> pb.Welcome:
        """Introduce itself and return the welcome."""
        agents = [pb.HostedAgent(agent_id=a, spec=agent_pb2.AgentSpec(slots=4)) for a in agent_ids]
        hello = pb.Hello(agents=agents, session_id=session_id, **fields)
        await self.call.write(pb.ConnectRequest(items=[pb.WorkerItem(hello=hello)]))
        frame = await self.read()
        welcome: pb.Welcome = frame.items[0].welcome
        self.session_id = welcome.session_id
        return welcome

    async def say(self, *items: pb.WorkerItem, number: int | None = None, acknowledged: int = 0) -> None:
        """Send a frame, with the next number unless another is given."""
        if number is None:
            self.sent += 1
        frame_number = self.sent if number is None else number
        request = pb.ConnectRequest(frame_number=frame_number, items=items, acknowledged_frame=acknowledged)
        await self.call.write(request)

    async def read(self) -> pb.ConnectResponse:
        """Return the next frame."""
        frame = await self.call.read()
        assert frame is not grpc.aio.EOF, "the stream has ended"
        self.frames.append(frame)
        return frame  # type: ignore[no-any-return]  # stubs of calls are untyped here

    async def acknowledged(self, number: int) -> list[pb.ControlItem]:
        """Read until a frame is acknowledged; return the items that came meanwhile."""
        items: list[pb.ControlItem] = []
        while True:
            frame = await self.read()
            items += frame.items
            if frame.acknowledged_frame >= number:
                return items

    async def until(self, kind: str) -> Any:
        """Read until an item of a kind comes and return it."""
        while True:
            for item in (await self.read()).items:
                if item.WhichOneof("item") == kind:
                    return getattr(item, kind)

    async def end(self) -> None:
        """Read to the end of the stream, which must be OK."""
        while await self.call.read() is not grpc.aio.EOF:
            pass
        assert await self.call.code() is grpc.StatusCode.OK


def accept(task_id: str, epoch: int = 1) -> pb.WorkerItem:
    return pb.WorkerItem(accept=pb.TaskAccept(task_id=task_id, lease_epoch=epoch))


def result(task_id: str, epoch: int = 1, data: bytes = b"done") -> pb.WorkerItem:
    outcome = payload_pb2.Payload(data=data)
    return pb.WorkerItem(result=pb.TaskResult(task_id=task_id, lease_epoch=epoch, result=outcome))


def heartbeat(*task_ids: str, **news: Any) -> pb.WorkerItem:
    beats = [pb.TaskBeat(task_id=task_id, lease_epoch=1, **news) for task_id in task_ids]
    return pb.WorkerItem(heartbeat=pb.Heartbeat(tasks=beats))


@pytest.fixture
async def worker(edge: Edge) -> AsyncIterator[Worker]:
    made = Worker(edge)
    yield made
    made.call.cancel()


async def suspect(edge: Edge, session_id: str) -> None:
    """Wait until the kernel knows that contact is lost."""
    while True:
        session = edge.hive.kernel.memory.session((NAMESPACE, session_id))
        if session is None or session.state is SessionState.SUSPECT:
            return
        await asyncio.sleep(0)


async def test_a_task_travels_to_a_worker_and_its_result_back(edge: Edge, worker: Worker) -> None:
    welcome = await worker.hello("a")
    assert welcome.session_id
    assert not welcome.resumed
    assert (welcome.heartbeat_interval.seconds, welcome.accept_timeout.seconds) == (10, 10)
    await edge.hive.delegate("t", input=Payload(data=b"in", content_type="text/plain"))
    assignment = await worker.until("assignment")
    assert (assignment.task_id, assignment.agent_id, assignment.lease_epoch, assignment.attempt) == ("t", "a", 1, 1)
    assert assignment.spec.input.data == b"in"
    assert assignment.start_to_close_timeout.seconds == 3_600
    await worker.say(accept("t"))
    await worker.acknowledged(1)
    assert (await edge.hive.task("t")).state is TaskState.RUNNING
    await worker.say(result("t", data=b"42"))
    await worker.acknowledged(2)
    assert (await edge.hive.task("t")).result == Payload(data=b"42")
    assert [frame.frame_number for frame in worker.frames] == list(range(1, len(worker.frames) + 1))


async def test_what_comes_while_a_frame_is_applied_is_folded_into_one_change(
    edge: Edge, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await worker.hello("a")
    sessions, gate = edge.hive.kernel.sessions, asyncio.Event()
    folded: list[int] = []
    heard = asyncio.Semaphore(0)
    apply = sessions.apply

    async def slow(namespace: str, session_id: str, epoch: int, entries: Sequence[Item]) -> list[Refusal]:
        folded.append(len(entries))
        await gate.wait()
        return await apply(namespace, session_id, epoch, entries)

    monkeypatch.setattr(sessions, "apply", slow)
    monkeypatch.setattr(sessions, "heard", lambda *session: heard.release())
    for number in range(4):
        await edge.hive.delegate(f"t{number}")
    for number in range(4):
        await worker.say(result(f"t{number}"))
    for _ in range(4):
        await heard.acquire()
    gate.set()
    await worker.acknowledged(4)
    assert sum(folded) == 4
    assert len(folded) <= 2
    for number in range(4):
        assert (await edge.hive.task(f"t{number}")).terminal


async def test_a_heartbeat_is_answered_by_a_frame(edge: Edge, worker: Worker) -> None:
    await worker.hello("a")
    await edge.hive.delegate("t")
    await worker.until("assignment")
    await worker.say(accept("t"), heartbeat("t", fraction=0.5, text="half", checkpoint=b"c"))
    assert await worker.acknowledged(1) == []
    _, progress = await edge.hive.kernel.queries.get(NAMESPACE, "t")
    assert progress is not None
    assert (progress.fraction, progress.text, progress.checkpoint) == (0.5, "half", b"c")
    await worker.say(heartbeat("t"))
    assert (await worker.read()).acknowledged_frame == 2


async def test_a_frame_without_items_is_not_answered(edge: Edge, worker: Worker) -> None:
    await worker.hello("a")
    await worker.say(acknowledged=1)
    await worker.say(heartbeat())
    frame = await worker.read()
    assert (frame.frame_number, frame.acknowledged_frame) == (2, 2)


async def test_a_frame_that_was_dealt_with_is_only_acknowledged(edge: Edge, worker: Worker) -> None:
    await worker.hello("a")
    await edge.hive.delegate("t")
    await worker.say(result("t"))
    await worker.acknowledged(1)
    head = (await edge.hive.store.bounds()).head
    await worker.say(result("t", data=b"other"), number=1)
    assert await worker.acknowledged(1) == []
    assert (await edge.hive.store.bounds()).head == head


@pytest.mark.parametrize("number", [3, 100, -1, 0])
async def test_a_jump_in_the_numbers_breaks_the_rules(
    edge: Edge, worker: Worker, failure: Failure, number: int
) -> None:
    await worker.hello("a")
    await worker.say(heartbeat())
    await worker.say(heartbeat(), number=number)
    failed = await failure(worker.call)
    assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PROTOCOL_VIOLATION")
    await suspect(edge, worker.session_id)


@pytest.mark.parametrize(
    "first",
    [
        pb.ConnectRequest(),
        pb.ConnectRequest(items=[heartbeat()]),
        pb.ConnectRequest(items=[pb.WorkerItem(hello=pb.Hello()), heartbeat()]),
        pb.ConnectRequest(items=[pb.WorkerItem()]),
    ],
)
async def test_a_stream_begins_with_a_hello(edge: Edge, failure: Failure, first: pb.ConnectRequest) -> None:
    call = edge.worker.Connect()
    await call.write(first)
    assert (await failure(call)).reason == "PROTOCOL_VIOLATION"


async def test_a_stream_has_only_one_hello(edge: Edge, worker: Worker, failure: Failure) -> None:
    await worker.hello("a")
    await worker.say(pb.WorkerItem(hello=pb.Hello()))
    assert (await failure(worker.call)).reason == "PROTOCOL_VIOLATION"


async def test_a_worker_that_says_nothing_is_cut_off(edge: Edge, failure: Failure) -> None:
    edge.worker_methods.hello_seconds = 0.02
    assert (await failure(edge.worker.Connect())).reason == "PROTOCOL_VIOLATION"


async def test_a_hello_is_validated(edge: Edge, failure: Failure) -> None:
    call = edge.worker.Connect()
    hello = pb.Hello(agents=[pb.HostedAgent(agent_id="a b")])
    await call.write(pb.ConnectRequest(items=[pb.WorkerItem(hello=hello)]))
    failed = await failure(call)
    assert failed.details["BadRequest"].field_violations[0].field == "hello.agents[0].agent_id"


async def test_a_session_that_is_over_cannot_be_resumed(edge: Edge, failure: Failure) -> None:
    call = edge.worker.Connect()
    await call.write(pb.ConnectRequest(items=[pb.WorkerItem(hello=pb.Hello(session_id="gone"))]))
    failed = await failure(call)
    assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")


async def test_an_item_that_cannot_be_applied_is_refused_and_the_session_goes_on(edge: Edge, worker: Worker) -> None:
    await worker.hello("a")
    await edge.hive.delegate("t")
    nonsense = pb.WorkerItem(accept=pb.TaskAccept(task_id="a b", lease_epoch=1))
    await worker.say(heartbeat(), accept("t", 7), nonsense, pb.WorkerItem(), accept("t"))
    refused = [item.refused for item in await worker.acknowledged(1) if item.HasField("refused")]
    assert sorted((r.item_index, r.reason, r.task_id) for r in refused) == [
        (1, error_pb2.ERROR_REASON_STALE_ATTEMPT, "t"),
        (2, error_pb2.ERROR_REASON_INVALID_FIELD, ""),
        (3, error_pb2.ERROR_REASON_INVALID_FIELD, ""),
    ]
    assert {r.frame_number for r in refused} == {1}
    assert (await edge.hive.task("t")).state is TaskState.RUNNING


async def test_a_worker_that_comes_back_keeps_its_leases_and_goes_on_counting(edge: Edge, worker: Worker) -> None:
    await worker.hello("a")
    await edge.hive.delegate("t")
    await worker.say(accept("t"))
    await worker.acknowledged(1)
    worker.call.cancel()
    await suspect(edge, worker.session_id)
    again = Worker(edge)
    lease = pb.HeldLease(task_id="t", lease_epoch=1)
    welcome = await again.hello("a", session_id=worker.session_id, leases=[lease], acknowledged_frame=40)
    assert (welcome.resumed, welcome.session_epoch, welcome.acknowledged_frame) == (True, 2, 1)
    assert list(welcome.valid_leases) == [lease]
    assert again.frames[0].frame_number == 41
    await again.say(accept("t"), number=1)
    await again.say(result("t"), number=2)
    await again.acknowledged(2)
    assert (await edge.hive.task("t")).terminal
    again.call.cancel()


async def test_after_a_restart_of_the_server_the_tail_may_begin_with_any_number(edge: Edge, worker: Worker) -> None:
    await worker.hello("a")
    await edge.hive.delegate("t")
    await worker.say(heartbeat())
    await worker.acknowledged(1)
    worker.call.cancel()
    await suspect(edge, worker.session_id)
    edge.worker_methods._marks.clear()
    again = Worker(edge)
    assert (await again.hello("a", session_id=worker.session_id)).acknowledged_frame == 0
    await again.say(result("t"), number=17)
    await again.say(heartbeat(), number=18)
    await again.acknowledged(18)
    assert (await edge.hive.task("t")).terminal
    again.call.cancel()


async def test_a_newer_stream_of_the_session_fences_the_older_one(edge: Edge, worker: Worker, failure: Failure) -> None:
    await worker.hello("a")
    again = Worker(edge)
    await again.hello("a", session_id=worker.session_id)
    failed = await failure(worker.call)
    assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SESSION_FENCED")
    await again.say(heartbeat())
    await again.acknowledged(1)
    again.call.cancel()


async def test_another_session_of_the_same_agent_fences_the_older_one(
    edge: Edge, worker: Worker, failure: Failure
) -> None:
    await worker.hello("a")
    other = Worker(edge)
    await other.hello("a")
    assert (await failure(worker.call)).reason == "SESSION_FENCED"
    other.call.cancel()


async def test_what_was_sent_before_the_stream_broke_is_still_applied(edge: Edge, worker: Worker) -> None:
    await worker.hello("a")
    await edge.hive.delegate("t")
    await worker.say(result("t"))
    await worker.call.done_writing()
    await worker.end()
    assert (await edge.hive.task("t")).terminal
    await suspect(edge, worker.session_id)
    assert edge.built_in.limit.in_flight(Load.SESSION) == 0


async def test_a_cancel_is_pushed_at_once(edge: Edge, worker: Worker) -> None:
    await worker.hello("a")
    await edge.hive.delegate("t")
    await worker.say(accept("t"))
    await worker.acknowledged(1)
    await edge.hive.kernel.tasks.cancel(edge.hive.caller(), "t", "enough")
    cancel = await worker.until("cancel")
    assert (cancel.task_id, cancel.lease_epoch, cancel.reason, cancel.grace.seconds) == ("t", 1, "enough", 10)


async def test_goodbye_ends_the_session_at_once(edge: Edge, worker: Worker) -> None:
    await worker.hello("a")
    await edge.hive.delegate("t")
    await worker.until("assignment")
    await worker.say(pb.WorkerItem(goodbye=pb.Goodbye(reason="lunch")))
    assert (await worker.until("goodbye")).reason == "lunch"
    await worker.end()
    await edge.hive.settle()
    assert edge.hive.kernel.memory.session((NAMESPACE, worker.session_id)) is None
    assert (await edge.hive.task("t")).state is TaskState.QUEUED


async def test_a_draining_worker_is_let_go_when_it_holds_nothing(edge: Edge, worker: Worker) -> None:
    await worker.hello("a")
    await edge.hive.delegate("t")
    await worker.until("assignment")
    await worker.say(pb.WorkerItem(drain=pb.Drain()))
    assert (await worker.until("drain")).reason
    assert (await edge.hive.delegate("u")).state is TaskState.QUEUED
    await worker.say(result("t"))
    await worker.until("goodbye")
    await worker.end()
    assert (await edge.hive.task("t")).terminal


async def test_reconnect_ends_the_stream_with_ok_and_loses_nothing(edge: Edge, worker: Worker) -> None:
    await worker.hello("a")
    await edge.hive.delegate("t")
    await worker.say(accept("t"))
    await worker.acknowledged(1)
    edge.hive.kernel.sessions.send_away(lambda: 0.25)
    assert (await worker.until("reconnect")).delay.ToMilliseconds() == 250
    await worker.end()
    await suspect(edge, worker.session_id)
    again = Worker(edge)
    lease = pb.HeldLease(task_id="t", lease_epoch=1)
    welcome = await again.hello("a", session_id=worker.session_id, leases=[lease])
    assert list(welcome.valid_leases) == [lease]
    again.call.cancel()
    request = events_pb.StreamEventsRequest(start=events_pb.STREAM_START_EARLIEST, no_follow=True)
    told = edge.orchestrator.StreamEvents(request)
    facts = [event.session_suspect for frame in [f async for f in told] for event in frame.events]
    assert "it was told to go on elsewhere" in [fact.reason for fact in facts]


async def test_output_goes_to_the_sink_before_the_result_ends_the_attempt(edge: Edge, worker: Worker) -> None:
    await worker.hello("a")
    await edge.hive.delegate("t")
    chunk = pb.TaskOutputChunk(task_id="t", lease_epoch=1, offset=5, data=b"out", stream=event_pb2.OUTPUT_STREAM_STDOUT)
    large = pb.TaskOutputChunk(task_id="t", lease_epoch=1, data=bytes(64 * 1024 + 1))
    await worker.say(pb.WorkerItem(output=chunk), pb.WorkerItem(output=large), result("t"))
    refused = [item.refused.item_index for item in await worker.acknowledged(1) if item.HasField("refused")]
    assert refused == [1]
    assert edge.output.chunks == [("t", 1, 5, b"out", "STDOUT")]


async def test_messages_are_delivered_when_their_frame_is_acknowledged(edge: Edge, worker: Worker) -> None:
    await worker.hello("a")
    kernel = edge.hive.kernel
    sent = await kernel.messages.send(edge.hive.caller(), agent_id="a", payload=Payload(data=b"hi"))
    mail = await worker.until("messages")
    assert (mail.agent_id, [m.payload.data for m in mail.messages]) == ("a", [b"hi"])
    assert kernel.memory.committed((Kind.MESSAGE, sent.key)).state is MessageState.QUEUED  # type: ignore[union-attr]  # there
    await worker.say(heartbeat(), acknowledged=worker.frames[-1].frame_number)
    await worker.acknowledged(1)
    message = kernel.memory.committed((Kind.MESSAGE, sent.key))
    assert message is None or message.state is MessageState.DELIVERED  # type: ignore[attr-defined]  # a message
    read = pb.MessagesRead(agent_id="a", message_ids=[sent.id])
    await worker.say(pb.WorkerItem(messages_read=read))
    await worker.acknowledged(2)
    assert await kernel.messages.unread(NAMESPACE, "a") == []


async def test_an_agent_sends_a_message_to_another(edge: Edge, worker: Worker) -> None:
    await worker.hello("a", "b")
    message = pb.OutgoingMessage(
        request_id="r",
        sender_agent_id="a",
        agent_id="b",
        payload=payload_pb2.Payload(data=b"hi"),
        urgency=message_pb2.MESSAGE_URGENCY_NOW,
    )
    await worker.say(pb.WorkerItem(message=message))
    mail = await worker.until("messages")
    assert (mail.agent_id, mail.messages[0].sender_agent_id, mail.messages[0].urgency) == ("b", "a", 1)


async def test_while_the_store_is_away_frames_wait_and_are_then_applied(
    edge: Edge, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await worker.hello("a")
    await edge.hive.delegate("t")
    sessions, failures = edge.hive.kernel.sessions, [StoreUnavailable("away"), StoreUnavailable("away")]
    apply = sessions.apply

    async def failing(namespace: str, session_id: str, epoch: int, entries: Sequence[Item]) -> list[Refusal]:
        if failures:
            raise failures.pop()
        return await apply(namespace, session_id, epoch, entries)

    monkeypatch.setattr(sessions, "apply", failing)
    await worker.say(result("t"))
    acknowledged = asyncio.ensure_future(worker.acknowledged(1))
    while not acknowledged.done():
        await edge.hive.clock.advance(0.1)
    assert (await edge.hive.task("t")).terminal


async def test_a_question_and_a_failure_are_understood(edge: Edge, worker: Worker) -> None:
    await worker.hello("a")
    await edge.hive.delegate("t")
    question = task_pb2.InputRequest(question="which?", default_answer=payload_pb2.Payload(data=b"x"))
    ask = pb.TaskInputRequest(task_id="t", lease_epoch=1, request=question)
    await worker.say(accept("t"), pb.WorkerItem(input_request=ask))
    await worker.acknowledged(1)
    assert (await edge.hive.task("t")).state is TaskState.INPUT_REQUIRED
    await edge.hive.kernel.tasks.respond(edge.hive.caller(), "t", Payload(data=b"this"))
    assert (await worker.until("answer")).answer.data == b"this"
    error = task_pb2.TaskError(error_class=task_pb2.TASK_ERROR_CLASS_INVALID, reason="BAD", message="m" * 5_000)
    await worker.say(pb.WorkerItem(result=pb.TaskResult(task_id="t", lease_epoch=1, error=error)))
    await worker.acknowledged(2)
    task = await edge.hive.task("t")
    assert task.state is TaskState.FAILED
    assert task.error is not None
    assert (task.error.reason, len(task.error.message)) == ("BAD", 4_096)


async def test_an_outbox_that_is_full_ends_the_stream(
    edge: Edge, worker: Worker, failure: Failure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agenthive_server.rpc.outbox.MOST", 3)
    await worker.hello("a")
    (contact,) = edge.hive.kernel.contacts
    for _ in range(4):
        contact.link.deliver(Cancel("t", 1, "enough"))
    failed = await failure(worker.call)
    assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")


def single_use(join: Joining) -> None:
    """Let in who shows a token that nobody has shown before, or the credential it has earned."""
    join.turn = Turn("door")
    if join.credential:
        if join.state.get(join.credential) is None:
            raise Unauthenticated("unknown credential")
    elif not join.join_token or join.state.get(join.join_token) is not None:
        raise Unauthenticated("no token")
    else:
        join.state.put(join.join_token, b"used")
        join.issue(f"earned-{join.peer.partition(':')[0]}")
        join.state.put(join.issued, b"good")
    join.principal = "agent:a"
    join.leave()


async def test_a_worker_that_is_not_let_in_is_told_why(edge: Edge, worker: Worker, failure: Failure) -> None:
    edge.hive.kernel.hooks.swap(HookSet(before_join=(single_use,)))
    await worker.call.write(pb.ConnectRequest(items=[pb.WorkerItem(hello=pb.Hello(credential="guessed"))]))
    failed = await failure(worker.call)
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert await edge.hive.store.scan(Kind.SESSION) == []


async def test_a_token_earns_a_credential_once(edge: Edge, failure: Failure) -> None:
    principals: list[str] = []

    class Watch:
        stage = Stage.OBSERVE

        def before(self, call: Call) -> None:
            """Nobody is known yet."""

        def after(self, call: Call, outcome: Outcome) -> None:
            principals.append(call.principal)

    edge.plug(Watch())
    edge.hive.kernel.hooks.swap(HookSet(before_join=(single_use,)))
    first, second, third = Worker(edge), Worker(edge), Worker(edge)
    welcome = await first.hello("a", join_token="once")
    assert welcome.credential == "earned-ipv4"
    hello = pb.Hello(join_token="once")
    await second.call.write(pb.ConnectRequest(items=[pb.WorkerItem(hello=hello)]))
    assert (await failure(second.call)).reason == "UNAUTHENTICATED"
    resumed = await third.hello("a", credential=welcome.credential, session_id=first.session_id)
    assert (resumed.resumed, resumed.credential) == (True, "")
    await third.say(pb.WorkerItem(goodbye=pb.Goodbye()))
    await third.end()
    assert principals[-1] == "agent:a"
    first.call.cancel()


@pytest.mark.parametrize("field", ["join_token", "credential"])
async def test_a_secret_that_is_too_long_is_refused(edge: Edge, worker: Worker, failure: Failure, field: str) -> None:
    hello = pb.Hello(**{field: "x" * 4_097})  # type: ignore[arg-type]  # one of two texts
    await worker.call.write(pb.ConnectRequest(items=[pb.WorkerItem(hello=hello)]))
    failed = await failure(worker.call)
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"hello.{field}" in failed.text
    assert "xxx" not in failed.text
