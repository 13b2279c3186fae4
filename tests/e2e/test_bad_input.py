"""Whatever is wrong with a call, over a real server: a typed error of the catalogue, and nothing is changed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
import pytest_asyncio
from agenthive.client import Client
from agenthive.errors import CursorCompacted
from agenthive.v1 import agent_pb2, blob_service_pb2, error_pb2, payload_pb2, plugin_service_pb2, task_pb2
from agenthive.v1 import messaging_service_pb2 as messaging
from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive.v1 import worker_service_pb2 as worker
from agenthive_server.rpc.policy import POLICIES
from agenthive_server.testing.bad_input import REASONS, Failed, RawCaller, harmless, malformed, mutated
from agenthive_server.testing.harness import ServerProcess, open_process, open_served
from agenthive_server.testing.raw_worker import accept, hello_of, open_raw, result
from google.protobuf import duration_pb2, json_format
from google.protobuf.message import Message

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB: Final = 2**20
LIMIT: Final = 4 * MIB
ORCHESTRATOR: Final = "/agenthive.v1.OrchestratorService/"
MESSAGING: Final = "/agenthive.v1.MessagingService/"
BLOBS: Final = "/agenthive.v1.BlobService/"
CONNECT: Final = "/agenthive.v1.WorkerService/Connect"
NOWHERE: Final = "nowhere"


@dataclass
class World:
    """The server under test, and what was put into it beforehand."""

    server: ServerProcess
    client: Client
    raw: RawCaller
    cursor: str = ""
    page_token: str = ""

    async def head(self) -> int:
        """The sequence of the last event."""
        return (await self.client.health()).last_sequence


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder: Path = tmp_path_factory.mktemp("bad-input")
    async with (
        open_process(folder / "data") as server,
        Client(server.target) as client,
        grpc.aio.insecure_channel(server.target, options=[("grpc.max_receive_message_length", -1)]) as channel,
    ):
        world = World(server, client, RawCaller(channel))
        await client.spawn(agent_id="agent")
        await client.delegate("any", task_id="queued", role="nobody", request_id="used")
        await client.delegate("any", task_id="second", role="nobody")
        await client.delegate("any", task_id="canceled")
        await client.cancel_task("canceled")
        stream = client.events(start=pb.STREAM_START_EARLIEST, follow=False)
        _ = [event async for event in stream]
        world.cursor = stream.cursor
        page = await client._orchestrator.ListTasks(pb.ListTasksRequest(page_size=1))
        world.page_token = page.next_page_token
        yield world
        assert "Traceback" not in server.log()
        assert '"level": "error"' not in server.log()


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def nothing_changes(world: World) -> AsyncIterator[None]:
    """No call of this module leaves a trace in the event log."""
    before = await world.head()
    yield
    assert await world.head() == before


# Malformed fields: every field of every request, each with what it cannot be -----------------------------------------

ANSWER: Final = payload_pb2.Payload(data=b"x")
BASES: Final[dict[str, Message]] = {
    ORCHESTRATOR + "SpawnAgent": pb.SpawnAgentRequest(spec=agent_pb2.AgentSpec()),
    ORCHESTRATOR + "SpawnAgents": pb.SpawnAgentsRequest(agents=[pb.NewAgent(spec=agent_pb2.AgentSpec())]),
    ORCHESTRATOR + "GetAgent": pb.GetAgentRequest(agent_id=NOWHERE),
    ORCHESTRATOR + "ListAgents": pb.ListAgentsRequest(),
    ORCHESTRATOR + "UpdateAgent": pb.UpdateAgentRequest(agent_id=NOWHERE, spec=agent_pb2.AgentSpec()),
    ORCHESTRATOR + "ShutdownAgent": pb.ShutdownAgentRequest(agent_id=NOWHERE),
    ORCHESTRATOR + "RestartAgent": pb.RestartAgentRequest(agent_id=NOWHERE),
    ORCHESTRATOR + "SleepAgent": pb.SleepAgentRequest(agent_id=NOWHERE),
    ORCHESTRATOR + "WakeAgent": pb.WakeAgentRequest(agent_id=NOWHERE),
    ORCHESTRATOR + "DelegateTask": pb.DelegateTaskRequest(spec=task_pb2.TaskSpec(type="any")),
    ORCHESTRATOR + "DelegateTasks": pb.DelegateTasksRequest(tasks=[pb.NewTask(spec=task_pb2.TaskSpec(type="any"))]),
    ORCHESTRATOR + "GetTask": pb.GetTaskRequest(task_id=NOWHERE),
    ORCHESTRATOR + "WaitTask": pb.WaitTaskRequest(task_id=NOWHERE),
    ORCHESTRATOR + "ListTasks": pb.ListTasksRequest(),
    ORCHESTRATOR + "CancelTask": pb.CancelTaskRequest(task_id=NOWHERE),
    ORCHESTRATOR + "RetryTask": pb.RetryTaskRequest(task_id=NOWHERE),
    ORCHESTRATOR + "PauseTask": pb.PauseTaskRequest(task_id=NOWHERE),
    ORCHESTRATOR + "ResumeTask": pb.ResumeTaskRequest(task_id=NOWHERE),
    ORCHESTRATOR + "RespondToTask": pb.RespondToTaskRequest(task_id=NOWHERE, answer=payload_pb2.Payload(data=b"x")),
    ORCHESTRATOR + "ReviewTask": pb.ReviewTaskRequest(task_id=NOWHERE, verdict=pb.REVIEW_VERDICT_ACCEPT),
    ORCHESTRATOR + "ExplainRouting": pb.ExplainRoutingRequest(spec=task_pb2.TaskSpec(type="any")),
    ORCHESTRATOR + "StreamEvents": pb.StreamEventsRequest(start=pb.STREAM_START_EARLIEST, no_follow=True),
    ORCHESTRATOR + "GetMetrics": pb.GetMetricsRequest(),
    MESSAGING + "SendMessage": messaging.SendMessageRequest(agent_id=NOWHERE, payload=ANSWER),
    MESSAGING + "BroadcastMessage": messaging.BroadcastMessageRequest(payload=ANSWER),
    MESSAGING + "StreamMessages": messaging.StreamMessagesRequest(agent_id=NOWHERE, no_follow=True),
    MESSAGING + "AcknowledgeMessages": messaging.AcknowledgeMessagesRequest(agent_id=NOWHERE, message_ids=["m"]),
    "/agenthive.v1.PluginService/ListPlugins": plugin_service_pb2.ListPluginsRequest(),
    "/agenthive.v1.PluginService/GetPlugin": plugin_service_pb2.GetPluginRequest(name=NOWHERE),
}

INVALID: Final = {"INVALID_FIELD", "INVALID_PAGE_TOKEN", "INVALID_CURSOR", "MALFORMED_MESSAGE"}
ANYTHING: Final = {"data", "revision"}
"""Fields that may hold whatever they like."""


@pytest.mark.parametrize("path", BASES, ids=lambda path: path.rpartition("/")[2])
async def test_every_malformed_field_is_refused(world: World, path: str) -> None:
    surprises: list[str] = []
    for name, request in malformed(BASES[path]):
        if name.rpartition(".")[2] in ANYTHING:
            continue
        failed = await world.raw.call(path, request.SerializeToString())
        if failed.code != "INVALID_ARGUMENT" or failed.reason not in INVALID:
            shown = json_format.MessageToJson(request, indent=None)[:150]
            surprises.append(f"{name}: {failed.code} {failed.reason} {failed.text[:100]} for {shown}")
    assert surprises == []


# What is well-formed and wrong ---------------------------------------------------------------------------------------

TASK = task_pb2.TaskSpec(type="any")
UNKNOWN_BLOB = "sha256:" + "0" * 64


def spec_of(**fields: Any) -> task_pb2.TaskSpec:
    return task_pb2.TaskSpec(type="any", **fields)


def cycle() -> pb.DelegateTasksRequest:
    pairs = (("a", "b"), ("b", "a"))
    return pb.DelegateTasksRequest(tasks=[pb.NewTask(task_id=a, spec=spec_of(depends_on=[b])) for a, b in pairs])


def deep_json() -> payload_pb2.Payload:
    made = payload_pb2.Payload()
    inner = made.json.fields["x"]
    for _ in range(35):
        inner = inner.list_value.values.add()
    return made


WRONG: Final[list[tuple[str, Message, str, str]]] = [
    # Unknown ids.
    (ORCHESTRATOR + "GetAgent", pb.GetAgentRequest(agent_id=NOWHERE), "NOT_FOUND", "AGENT_NOT_FOUND"),
    (ORCHESTRATOR + "ShutdownAgent", pb.ShutdownAgentRequest(agent_id=NOWHERE), "NOT_FOUND", "AGENT_NOT_FOUND"),
    (ORCHESTRATOR + "RestartAgent", pb.RestartAgentRequest(agent_id=NOWHERE), "NOT_FOUND", "AGENT_NOT_FOUND"),
    (ORCHESTRATOR + "GetTask", pb.GetTaskRequest(task_id=NOWHERE), "NOT_FOUND", "TASK_NOT_FOUND"),
    (ORCHESTRATOR + "WaitTask", pb.WaitTaskRequest(task_id=NOWHERE), "NOT_FOUND", "TASK_NOT_FOUND"),
    (ORCHESTRATOR + "CancelTask", pb.CancelTaskRequest(task_id=NOWHERE), "NOT_FOUND", "TASK_NOT_FOUND"),
    (ORCHESTRATOR + "ExplainRouting", pb.ExplainRoutingRequest(task_id=NOWHERE), "NOT_FOUND", "TASK_NOT_FOUND"),
    (
        ORCHESTRATOR + "DelegateTask",
        pb.DelegateTaskRequest(spec=spec_of(depends_on=[NOWHERE])),
        "NOT_FOUND",
        "TASK_NOT_FOUND",
    ),
    (
        ORCHESTRATOR + "DelegateTask",
        pb.DelegateTaskRequest(spec=spec_of(parent_task_id=NOWHERE)),
        "NOT_FOUND",
        "TASK_NOT_FOUND",
    ),
    (
        MESSAGING + "SendMessage",
        messaging.SendMessageRequest(agent_id=NOWHERE, payload=ANSWER),
        "NOT_FOUND",
        "AGENT_NOT_FOUND",
    ),
    (
        MESSAGING + "SendMessage",
        messaging.SendMessageRequest(task_id=NOWHERE, payload=ANSWER),
        "NOT_FOUND",
        "TASK_NOT_FOUND",
    ),
    (
        MESSAGING + "AcknowledgeMessages",
        messaging.AcknowledgeMessagesRequest(agent_id="agent", message_ids=[NOWHERE]),
        "NOT_FOUND",
        "MESSAGE_NOT_FOUND",
    ),
    (
        MESSAGING + "StreamMessages",
        messaging.StreamMessagesRequest(agent_id=NOWHERE, no_follow=True),
        "NOT_FOUND",
        "AGENT_NOT_FOUND",
    ),
    (BLOBS + "DownloadBlob", blob_service_pb2.DownloadBlobRequest(blob_id=UNKNOWN_BLOB), "NOT_FOUND", "BLOB_NOT_FOUND"),
    (
        "/agenthive.v1.PluginService/GetPlugin",
        plugin_service_pb2.GetPluginRequest(name=NOWHERE),
        "NOT_FOUND",
        "PLUGIN_NOT_FOUND",
    ),
    # Ids in use.
    (ORCHESTRATOR + "SpawnAgent", pb.SpawnAgentRequest(agent_id="agent"), "ALREADY_EXISTS", "AGENT_EXISTS"),
    (
        ORCHESTRATOR + "DelegateTask",
        pb.DelegateTaskRequest(task_id="queued", spec=TASK),
        "ALREADY_EXISTS",
        "TASK_EXISTS",
    ),
    (
        ORCHESTRATOR + "DelegateTasks",
        pb.DelegateTasksRequest(tasks=[pb.NewTask(spec=TASK), pb.NewTask(task_id="queued", spec=TASK)]),
        "ALREADY_EXISTS",
        "TASK_EXISTS",
    ),
    # Illegal transitions.
    (ORCHESTRATOR + "RetryTask", pb.RetryTaskRequest(task_id="queued"), "FAILED_PRECONDITION", "ILLEGAL_TRANSITION"),
    (ORCHESTRATOR + "ResumeTask", pb.ResumeTaskRequest(task_id="queued"), "FAILED_PRECONDITION", "ILLEGAL_TRANSITION"),
    (ORCHESTRATOR + "PauseTask", pb.PauseTaskRequest(task_id="canceled"), "FAILED_PRECONDITION", "ILLEGAL_TRANSITION"),
    (
        ORCHESTRATOR + "RespondToTask",
        pb.RespondToTaskRequest(task_id="queued", answer=ANSWER),
        "FAILED_PRECONDITION",
        "ILLEGAL_TRANSITION",
    ),
    (
        ORCHESTRATOR + "ReviewTask",
        pb.ReviewTaskRequest(task_id="queued", verdict=pb.REVIEW_VERDICT_ACCEPT),
        "FAILED_PRECONDITION",
        "ILLEGAL_TRANSITION",
    ),
    (ORCHESTRATOR + "SleepAgent", pb.SleepAgentRequest(agent_id="agent"), "FAILED_PRECONDITION", "ILLEGAL_TRANSITION"),
    (ORCHESTRATOR + "WakeAgent", pb.WakeAgentRequest(agent_id="agent"), "FAILED_PRECONDITION", "ILLEGAL_TRANSITION"),
    # Revisions and request ids.
    (
        ORCHESTRATOR + "UpdateAgent",
        pb.UpdateAgentRequest(agent_id="agent", spec=agent_pb2.AgentSpec(role="x"), revision=99),
        "ABORTED",
        "REVISION_MISMATCH",
    ),
    (
        ORCHESTRATOR + "DelegateTask",
        pb.DelegateTaskRequest(spec=spec_of(priority=1), request_id="used"),
        "INVALID_ARGUMENT",
        "REQUEST_ID_REUSED",
    ),
    # Dependencies.
    (ORCHESTRATOR + "DelegateTasks", cycle(), "INVALID_ARGUMENT", "DEPENDENCY_CYCLE"),
    # Missing, too many, too deep, contradicting.
    (ORCHESTRATOR + "DelegateTask", pb.DelegateTaskRequest(), "INVALID_ARGUMENT", "INVALID_FIELD"),
    (ORCHESTRATOR + "DelegateTasks", pb.DelegateTasksRequest(), "INVALID_ARGUMENT", "INVALID_FIELD"),
    (
        ORCHESTRATOR + "DelegateTasks",
        pb.DelegateTasksRequest(tasks=[pb.NewTask(spec=TASK)] * 257),
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
    ),
    (
        ORCHESTRATOR + "DelegateTasks",
        pb.DelegateTasksRequest(tasks=[pb.NewTask(task_id="twice", spec=TASK)] * 2),
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
    ),
    (
        ORCHESTRATOR + "DelegateTask",
        pb.DelegateTaskRequest(spec=spec_of(input=deep_json())),
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
    ),
    (MESSAGING + "SendMessage", messaging.SendMessageRequest(), "INVALID_ARGUMENT", "INVALID_FIELD"),
    (ORCHESTRATOR + "ExplainRouting", pb.ExplainRoutingRequest(), "INVALID_ARGUMENT", "INVALID_FIELD"),
    (ORCHESTRATOR + "StreamEvents", pb.StreamEventsRequest(start=pb.STREAM_START_AFTER), "INVALID_ARGUMENT", "INVALID"),
    # Cursors and page tokens.
    (
        ORCHESTRATOR + "StreamEvents",
        pb.StreamEventsRequest(start=pb.STREAM_START_AFTER, after_cursor="nonsense"),
        "INVALID_ARGUMENT",
        "INVALID_CURSOR",
    ),
    (
        ORCHESTRATOR + "ListTasks",
        pb.ListTasksRequest(page_token="nonsense"),
        "INVALID_ARGUMENT",
        "INVALID_PAGE_TOKEN",
    ),
]


@pytest.mark.parametrize(
    ("path", "request_", "code", "reason"),
    WRONG,
    ids=[f"{n}-{w[0].rpartition('/')[2]}-{w[3]}" for n, w in enumerate(WRONG)],
)
async def test_what_cannot_be_done_is_refused_with_its_reason(
    world: World, path: str, request_: Message, code: str, reason: str
) -> None:
    failed = await world.raw.call(path, request_.SerializeToString())
    assert failed.code == code
    assert failed.reason.startswith(reason)
    assert failed.reason in REASONS
    assert failed.text


async def test_a_page_token_belongs_to_its_method_filters_and_namespace(world: World) -> None:
    token = world.page_token
    assert token
    for path, request, namespace in (
        (ORCHESTRATOR + "ListAgents", pb.ListAgentsRequest(page_token=token), "default"),
        (ORCHESTRATOR + "ListTasks", pb.ListTasksRequest(page_token=token, type="other"), "default"),
        (ORCHESTRATOR + "ListTasks", pb.ListTasksRequest(page_token=token), "elsewhere"),
        (ORCHESTRATOR + "ListTasks", pb.ListTasksRequest(page_token=token[4:]), "default"),
    ):
        failed = await world.raw.call(path, request.SerializeToString(), namespace)
        assert (failed.code, failed.reason) == ("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN")


async def test_a_cursor_of_another_log_or_of_the_future_is_refused(world: World, tmp_path: Path) -> None:
    async def refused(cursor: str) -> Failed:
        request = pb.StreamEventsRequest(start=pb.STREAM_START_AFTER, after_cursor=cursor, no_follow=True)
        return await world.raw.call(ORCHESTRATOR + "StreamEvents", request.SerializeToString())

    assert (await refused(world.cursor)).code == "OK"
    async with open_served(tmp_path / "other") as (_, client):
        await client.delegate("any")
        stream = client.events(start=pb.STREAM_START_EARLIEST, follow=False)
        assert [event.sequence async for event in stream]
        foreign = await refused(stream.cursor)
        assert (foreign.code, foreign.reason) == ("OUT_OF_RANGE", "CURSOR_COMPACTED")
        assert dict(foreign.metadata)["oldest_cursor"]
    assert (await refused(world.cursor[:-1])).reason in ("INVALID_CURSOR", "CURSOR_COMPACTED")
    assert (await refused(world.cursor + "9")).reason in ("INVALID_CURSOR", "CURSOR_COMPACTED")


async def test_a_compacted_cursor_names_the_oldest_one(tmp_path: Path) -> None:
    async with open_served(tmp_path / "data") as (app, client):
        stream = client.events(start=pb.STREAM_START_EARLIEST)
        batches = stream.batches()
        _, cursor = await anext(batches)
        for _ in range(5):
            await client.delegate("any")
        await app.log.compact(4)
        with pytest.raises(CursorCompacted) as caught:
            _ = [event async for event in client.events(after=cursor, follow=False)]
        oldest = caught.value.metadata["oldest_cursor"]
        assert [event.sequence async for event in client.events(after=oldest, follow=False)] == [4, 5]


# Size and syntax -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [LIMIT + 1, 4 * LIMIT + MIB, 40 * MIB])
async def test_a_message_that_is_too_large_is_told_so(world: World, size: int) -> None:
    request = pb.DelegateTaskRequest(spec=TASK, request_id="large")
    request.spec.input.data = b"x" * size
    failed = await world.raw.call(ORCHESTRATOR + "DelegateTask", request.SerializeToString())
    assert failed.code == "RESOURCE_EXHAUSTED"
    if size <= 4 * LIMIT:
        assert failed.reason == "MESSAGE_TOO_LARGE"
        assert dict(failed.metadata)["limit"] == str(LIMIT)
        assert int(dict(failed.metadata)["size"]) > LIMIT
    else:
        assert str(4 * LIMIT) in failed.text  # gRPC's own words name limit and size as well
    assert (await world.client.health()).status == pb.HEALTH_STATUS_OK


AT_ONCE: Final = sorted(
    path
    for path in POLICIES
    if path.startswith("/agenthive.") and not path.endswith(("/StreamEvents", "/StreamMessages"))
)
"""Methods that answer at once, whatever the request: a stream of events may also follow for ever."""


@pytest.mark.parametrize("path", AT_ONCE)
async def test_bytes_that_are_no_message_are_malformed(world: World, path: str) -> None:
    for raw in (b"\xff\xff\xff\xff", b"\x0a\xff", b"\x0a\x02\xc3\x28", b"GET / HTTP/1.1"):
        failed = await world.raw.call(path, raw)
        assert (failed.code, failed.reason) in {
            ("INVALID_ARGUMENT", "MALFORMED_MESSAGE"),
            # A message without a field of this number, or with one of that type, may take these bytes.
            ("INVALID_ARGUMENT", "INVALID_FIELD"),
            ("FAILED_PRECONDITION", "PROTOCOL_VIOLATION"),
            ("OK", ""),
            ("UNIMPLEMENTED", "NOT_IMPLEMENTED"),
            ("NOT_FOUND", "PLUGIN_NOT_FOUND"),
        }, (path, raw)


@pytest.mark.parametrize(
    "path",
    ["/nobody/Nothing", ORCHESTRATOR + "Nothing", "/agenthive.v1.Nobody/GetTask", "//", "/x", "/ /\u00fc".encode()],
)
async def test_an_unknown_method_is_unimplemented(world: World, path: str | bytes) -> None:
    text = path.decode("latin-1") if isinstance(path, bytes) else path
    failed = await world.raw.call(text, b"")
    assert (failed.code, failed.reason) == ("UNIMPLEMENTED", "NOT_IMPLEMENTED")


@pytest.mark.parametrize("namespace", ["", "a b", "x" * 129, "../etc", "a/b"])
async def test_a_namespace_that_is_none_is_refused(world: World, namespace: str) -> None:
    failed = await world.raw.call(
        ORCHESTRATOR + "GetTask", pb.GetTaskRequest(task_id="queued").SerializeToString(), namespace
    )
    assert (failed.code, failed.reason, failed.field) == ("INVALID_ARGUMENT", "INVALID_FIELD", "agenthive-namespace")


async def test_another_namespace_knows_nothing_of_ours(world: World) -> None:
    failed = await world.raw.call(
        ORCHESTRATOR + "GetTask", pb.GetTaskRequest(task_id="queued").SerializeToString(), "other"
    )
    assert (failed.code, failed.reason) == ("NOT_FOUND", "TASK_NOT_FOUND")


# Sessions ------------------------------------------------------------------------------------------------------------


def frame(number: int, *items: worker.WorkerItem) -> worker.ConnectRequest:
    return worker.ConnectRequest(frame_number=number, items=items)


def greeting(**fields: Any) -> worker.ConnectRequest:
    return frame(0, worker.WorkerItem(hello=worker.Hello(**fields)))


RUDE: Final[list[tuple[str, list[worker.ConnectRequest], str, str]]] = [
    ("no hello", [frame(1, worker.WorkerItem(drain=worker.Drain()))], "FAILED_PRECONDITION", "PROTOCOL_VIOLATION"),
    ("an empty frame first", [frame(0)], "FAILED_PRECONDITION", "PROTOCOL_VIOLATION"),
    (
        "more than a hello",
        [frame(0, worker.WorkerItem(hello=worker.Hello()), worker.WorkerItem(drain=worker.Drain()))],
        "FAILED_PRECONDITION",
        "PROTOCOL_VIOLATION",
    ),
    ("a session nobody knows", [greeting(session_id="gone")], "NOT_FOUND", "SESSION_NOT_FOUND"),
    (
        "an agent nobody knows",
        [greeting(agents=[worker.HostedAgent(agent_id=NOWHERE)])],
        "NOT_FOUND",
        "AGENT_NOT_FOUND",
    ),
    (
        "an agent with a bad id",
        [greeting(agents=[worker.HostedAgent(agent_id="a b")])],
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
    ),
    ("a negative frame", [greeting(acknowledged_frame=-1)], "INVALID_ARGUMENT", "INVALID_FIELD"),
    (
        "a lease of epoch 0",
        [greeting(leases=[worker.HeldLease(task_id="queued", lease_epoch=0)])],
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
    ),
]


@pytest.mark.parametrize(("name", "frames", "code", "reason"), RUDE, ids=[each[0] for each in RUDE])
async def test_a_stream_that_begins_wrong_is_refused(
    world: World, name: str, frames: list[worker.ConnectRequest], code: str, reason: str
) -> None:
    failed = await world.raw.call(CONNECT, frames[0].SerializeToString())
    assert (failed.code, failed.reason) == (code, reason)


async def test_items_that_are_wrong_are_refused_one_by_one_and_the_session_goes_on(tmp_path: Path) -> None:
    async with (
        open_served(tmp_path / "data") as (app, client),
        open_raw(f"127.0.0.1:{app.port}", hello_of("raw")) as raw,
    ):
        task = await client.delegate("any")
        assignment = await raw.assignment()
        await raw.say(accept(assignment))
        before = (await client.health()).last_sequence
        stranger = worker.TaskAssignment(task_id=NOWHERE, lease_epoch=1)
        refused = await raw.say(
            result(assignment, epoch=7),
            result(stranger),
            worker.WorkerItem(),
            worker.WorkerItem(accept=worker.TaskAccept(task_id="a b", lease_epoch=1)),
            worker.WorkerItem(output=worker.TaskOutputChunk(task_id=task.task_id, lease_epoch=1, data=b"x" * 100_000)),
            worker.WorkerItem(messages_read=worker.MessagesRead(agent_id="raw", message_ids=[NOWHERE])),
        )
        names = {
            each.item_index: error_pb2.ErrorReason.Name(each.reason).removeprefix("ERROR_REASON_") for each in refused
        }
        assert names[0] == "STALE_ATTEMPT"
        assert names[1] in ("TASK_NOT_FOUND", "STALE_ATTEMPT")
        assert {names[n] for n in (2, 3, 4)} == {"INVALID_FIELD"}
        assert (await client.health()).last_sequence == before
        assert await raw.say(result(assignment)) == []
        assert (await client.get_task(task.task_id)).state == task_pb2.TASK_STATE_SUCCEEDED


@pytest.mark.parametrize("numbers", [(5,), (1, 3), (-1,), (0,)])
async def test_frames_out_of_order_end_the_stream(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    async with open_served(tmp_path / "data") as (app, _), open_raw(f"127.0.0.1:{app.port}", hello_of("raw")) as raw:
        for number in numbers:
            await raw.call.write(frame(number, worker.WorkerItem(drain=worker.Drain())))
        assert await raw.end() == grpc.StatusCode.FAILED_PRECONDITION


# Anything at all -----------------------------------------------------------------------------------------------------

UNARY: Final = sorted(path for path in BASES if not path.endswith(("StreamEvents", "StreamMessages")))


class Attack:
    """Sends what is nearly right, and what is nothing like it, and writes down what was answered wrong."""

    def __init__(self, raw: RawCaller, chance: random.Random) -> None:
        self.wrong: list[str] = []
        self.calls = 0
        self._raw = raw
        self._chance = chance

    async def nearly_right(self, path: str) -> None:
        for _ in range(60):
            # Short waits, unless the garbage says otherwise.
            first = (
                pb.WaitTaskRequest(wait_timeout=duration_pb2.Duration(nanos=1)) if path.endswith("WaitTask") else None
            )
            raw = first.SerializeToString() if first else b""
            await self._try(path, raw + mutated(self._chance, BASES[path].SerializeToString()))

    async def nothing_like_it(self) -> None:
        for _ in range(400):
            await self._try(self._chance.choice(AT_ONCE), self._chance.randbytes(self._chance.randint(0, 60)))

    async def sessions(self) -> None:
        hello = greeting(agents=[worker.HostedAgent(agent_id="raw", spec=agent_pb2.AgentSpec())])
        item = worker.WorkerItem(result=worker.TaskResult(task_id=NOWHERE, lease_epoch=1, result=ANSWER))
        for _ in range(150):
            raws = [hello.SerializeToString(), *(frame(n, item, item).SerializeToString() for n in (1, 2))]
            at = self._chance.randrange(3)
            raws[at] = mutated(self._chance, raws[at])
            self._judge(CONNECT, raws, await self._raw.send(CONNECT, raws))

    async def _try(self, path: str, raw: bytes) -> None:
        self._judge(path, raw, await self._raw.call(path, raw))

    def _judge(self, path: str, raw: object, failed: Failed) -> None:
        self.calls += 1
        if not harmless(failed):
            self.wrong.append(f"{path} {raw!r}: {failed}")


async def test_no_bytes_at_all_bring_out_internal_or_end_the_server(tmp_path: Path, soak_seed: int) -> None:
    async with (
        open_process(tmp_path / "data") as server,
        Client(server.target) as client,
        grpc.aio.insecure_channel(server.target) as channel,
    ):
        raw = RawCaller(channel, patience=3.0)
        await client.spawn(agent_id=NOWHERE)
        await client.delegate("any", task_id=NOWHERE, role="nobody")
        # What the malformed requests of this module were made from is right in all other fields.
        unmade = {path: await raw.call(path, base.SerializeToString()) for path, base in BASES.items()}
        assert [path for path, failed in unmade.items() if failed.code == "INVALID_ARGUMENT"] == []

        attack = Attack(raw, random.Random(soak_seed))
        await asyncio.gather(
            *(attack.nearly_right(path) for path in UNARY), attack.sessions(), attack.nothing_like_it()
        )
        print(f"{attack.calls} calls")
        assert attack.wrong == []
        assert (await client.get_task(NOWHERE)).task_id == NOWHERE
        assert (await client.health()).status == pb.HEALTH_STATUS_OK
        assert "Traceback" not in server.log()
