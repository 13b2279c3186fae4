"""Every call carries what it must, and waits, pages and repeats are the client's business."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from agenthive import Client, TaskNotSucceeded
from agenthive.errors import DataLoss, DeadlineExceeded, NotFound, RevisionMismatch
from agenthive.payload import payload, value
from agenthive.v1 import (
    agent_pb2,
    blob_service_pb2,
    blob_service_pb2_grpc,
    message_pb2,
    messaging_service_pb2,
    messaging_service_pb2_grpc,
    orchestrator_service_pb2,
    plugin_service_pb2,
    task_pb2,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from google.protobuf.message import Message

    from tests.clients.python.conftest import Refusal, Server

SERVICES = (
    (orchestrator_service_pb2, "OrchestratorService"),
    (messaging_service_pb2, "MessagingService"),
    (blob_service_pb2, "BlobService"),
    (plugin_service_pb2, "PluginService"),
)


class Call:
    """A unary call as the server saw it."""

    def __init__(self, method: str, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self.method = method
        self.request = request
        self.metadata = dict(context.invocation_metadata() or ())
        self.time_left = context.time_remaining()


class Hive:
    """Answers unary calls from a script by method, else with an empty response; writes down every call."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.script: dict[str, list[Message | Refusal]] = {}

    def register(self, server: grpc.aio.Server) -> None:
        for module, name in SERVICES:
            service = module.DESCRIPTOR.services_by_name[name]
            handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
                method.name: grpc.unary_unary_rpc_method_handler(
                    self._answer(method.name, getattr(module, method.output_type.name)),
                    request_deserializer=getattr(module, method.input_type.name).FromString,
                    response_serializer=lambda message: message.SerializeToString(),
                )
                for method in service.methods
                if not (method.client_streaming or method.server_streaming)
            }
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))

    def _answer(self, method: str, empty: type[Message]) -> Callable[[Any, Any], Awaitable[Message]]:
        async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
            self.calls.append(Call(method, request, context))
            answers = self.script.get(method)
            if not answers:
                return empty()
            scripted = answers.pop(0)
            if isinstance(scripted, tuple):
                await scripted.abort(context)
            return scripted

        return answer


@pytest.fixture
async def hive(server: Server) -> Hive:
    made = Hive()
    await server.start(made.register)
    return made


@pytest.fixture
async def client(server: Server, hive: Hive) -> AsyncIterator[Client]:
    async with Client(server.target, namespace="n", token="t", timeout=20.0) as made:
        yield made


def task(state: task_pb2.TaskState.ValueType, **fields: Any) -> task_pb2.Task:
    return task_pb2.Task(task_id="t-1", state=state, **fields)


MUTATING: list[tuple[str, Callable[[Client], Awaitable[object]]]] = [
    ("SpawnAgent", lambda client: client.spawn("reviewer", agent_id="a", slots=2)),
    ("SpawnAgents", lambda client: client.spawn_many([orchestrator_service_pb2.NewAgent(agent_id="a")])),
    ("UpdateAgent", lambda client: client.update_agent("a", agent_pb2.AgentSpec(slots=3), revision=4)),
    ("ShutdownAgent", lambda client: client.shutdown_agent("a", grace=0.0)),
    ("RestartAgent", lambda client: client.restart_agent("a")),
    ("SleepAgent", lambda client: client.sleep_agent("a")),
    ("WakeAgent", lambda client: client.wake_agent("a")),
    ("DelegateTask", lambda client: client.delegate("review", {"n": 1}, priority=1)),
    ("DelegateTasks", lambda client: client.delegate_many([task_pb2.TaskSpec(type="x")])),
    ("CancelTask", lambda client: client.cancel_task("t", reason="r")),
    ("RetryTask", lambda client: client.retry_task("t")),
    ("PauseTask", lambda client: client.pause_task("t")),
    ("ResumeTask", lambda client: client.resume_task("t")),
    ("RespondToTask", lambda client: client.respond_to_task("t", {"yes": True})),
    ("ReviewTask", lambda client: client.review_task("t", orchestrator_service_pb2.REVIEW_VERDICT_ACCEPT)),
    ("SendMessage", lambda client: client.send_message("hi", agent_id="a", ttl=1.5)),
    ("BroadcastMessage", lambda client: client.broadcast("hi", role="r")),
    ("AcknowledgeMessages", lambda client: client.acknowledge("a", ["m"])),
    ("EnablePlugin", lambda client: client.enable_plugin("p")),
    ("DisablePlugin", lambda client: client.disable_plugin("p")),
    ("ConfigurePlugin", lambda client: client.configure_plugin("p", {"x": 1, "y": ["z"]})),
]


@pytest.mark.parametrize(("method", "call"), MUTATING, ids=[name for name, _ in MUTATING])
async def test_a_mutating_call_has_a_request_id_a_deadline_and_a_namespace(
    client: Client, hive: Hive, method: str, call: Callable[[Client], Awaitable[object]]
) -> None:
    await call(client)
    await call(client)
    first, second = hive.calls
    assert first.method == second.method == method
    assert len(first.request.request_id) == 32
    assert first.request.request_id != second.request.request_id
    assert 0 < first.time_left <= 21
    assert (first.metadata["agenthive-namespace"], first.metadata["authorization"]) == ("n", "Bearer t")


async def test_every_mutating_call_is_in_this_test() -> None:
    known = {
        method.name
        for module, name in SERVICES
        for method in module.DESCRIPTOR.services_by_name[name].methods
        if "request_id" in method.input_type.fields_by_name
    }
    assert known == {name for name, _ in MUTATING}


async def test_the_transport_repeats_a_call_under_the_same_request_id(
    client: Client, hive: Hive, refusal: Callable[..., Refusal]
) -> None:
    hive.script["DelegateTask"] = [
        refusal(grpc.StatusCode.UNAVAILABLE, "DRAINING"),
        refusal(grpc.StatusCode.CANCELLED, "CANCELLED"),
        orchestrator_service_pb2.DelegateTaskResponse(task=task(task_pb2.TASK_STATE_QUEUED)),
    ]
    assert (await client.delegate("work")).task_id == "t-1"
    assert len(hive.calls) == 3
    assert len({call.request.request_id for call in hive.calls}) == 1


async def test_a_call_waits_for_a_server_that_comes_back(client: Client, hive: Hive, server: Server) -> None:
    await client.health()
    await server.kill()
    asking = asyncio.ensure_future(client.health())
    await server.start()
    await asking
    assert [call.method for call in hive.calls] == ["HealthCheck", "HealthCheck"]


async def test_fields_are_laid_over_the_specification(client: Client, hive: Hive) -> None:
    given = task_pb2.TaskSpec(type="old", priority=2, title="kept")
    await client.delegate("new", "text", spec=given, task_id="t-9", role="r", required_capabilities=["python"])
    request = hive.calls[0].request
    assert (request.task_id, request.spec.type, request.spec.title, request.spec.role) == ("t-9", "new", "kept", "r")
    assert value(request.spec.input) == "text"
    assert given.type == "old"
    with pytest.raises(ValueError, match="colour"):
        await client.delegate("new", colour="red")  # type: ignore[call-arg]


async def test_errors_are_typed(client: Client, hive: Hive, refusal: Callable[..., Refusal]) -> None:
    hive.script["GetTask"] = [refusal(grpc.StatusCode.NOT_FOUND, "TASK_NOT_FOUND")]
    hive.script["UpdateAgent"] = [refusal(grpc.StatusCode.ABORTED, "REVISION_MISMATCH")]
    with pytest.raises(NotFound) as caught:
        await client.get_task("t")
    assert caught.value.reason == "TASK_NOT_FOUND"
    with pytest.raises(RevisionMismatch):
        await client.update_agent("a", agent_pb2.AgentSpec(), revision=1)


async def test_lists_go_on_over_pages(client: Client, hive: Hive) -> None:
    hive.script["ListTasks"] = [
        orchestrator_service_pb2.ListTasksResponse(tasks=[task_pb2.Task(task_id="1")], next_page_token="p2"),
        orchestrator_service_pb2.ListTasksResponse(tasks=[task_pb2.Task(task_id="2")]),
    ]
    hive.script["ListAgents"] = [orchestrator_service_pb2.ListAgentsResponse(agents=[agent_pb2.Agent(agent_id="a")])]
    hive.script["ListPlugins"] = [plugin_service_pb2.ListPluginsResponse(plugins=[plugin_service_pb2.Plugin(name="p")])]
    assert [each.task_id async for each in client.list_tasks(type="x", labels={"k": "v"})] == ["1", "2"]
    assert [each.agent_id async for each in client.list_agents(role="r")] == ["a"]
    assert [each.name async for each in client.list_plugins()] == ["p"]
    first, second = hive.calls[:2]
    assert (first.request.page_token, second.request.page_token) == ("", "p2")
    assert second.request.type == "x"
    assert dict(second.request.labels) == {"k": "v"}


def answers(*states: task_pb2.TaskState.ValueType, **fields: Any) -> list[Message | Refusal]:
    return [orchestrator_service_pb2.WaitTaskResponse(task=task(state, **fields)) for state in states]


async def test_waiting_goes_on_until_the_task_is_terminal(
    client: Client, hive: Hive, refusal: Callable[..., Refusal]
) -> None:
    hive.script["WaitTask"] = [
        *answers(task_pb2.TASK_STATE_RUNNING),
        refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
        *answers(task_pb2.TASK_STATE_REPORTED, task_pb2.TASK_STATE_SUCCEEDED),
    ]
    assert (await client.wait_task("t-1")).state == task_pb2.TASK_STATE_SUCCEEDED


async def test_waiting_ends_where_a_person_is_needed_if_asked_so(client: Client, hive: Hive) -> None:
    hive.script["WaitTask"] = answers(task_pb2.TASK_STATE_INPUT_REQUIRED)
    assert (await client.wait_task("t-1", until_attention=True)).state == task_pb2.TASK_STATE_INPUT_REQUIRED
    assert hive.calls[0].request.until_attention


async def test_waiting_answers_with_the_task_as_it_stands_after_the_timeout(client: Client, hive: Hive) -> None:
    hive.script["WaitTask"] = answers(task_pb2.TASK_STATE_RUNNING)
    assert (await client.wait_task("t-1", timeout=0)).state == task_pb2.TASK_STATE_RUNNING
    hive.script["WaitTask"] = answers(task_pb2.TASK_STATE_RUNNING)
    with pytest.raises(DeadlineExceeded):
        await client.result("t-1", timeout=0)


async def test_a_result_is_decoded_and_its_absence_is_an_error(client: Client, hive: Hive) -> None:
    hive.script["WaitTask"] = [
        *answers(task_pb2.TASK_STATE_SUCCEEDED, result=payload({"ok": 1})),
        *answers(task_pb2.TASK_STATE_FAILED, error=task_pb2.TaskError(message="broken")),
    ]
    assert await client.result("t-1") == {"ok": 1}
    with pytest.raises(TaskNotSucceeded, match="broken") as caught:
        await client.result("t-1")
    assert caught.value.task.state == task_pb2.TASK_STATE_FAILED


async def test_delegate_can_wait_for_the_outcome(client: Client, hive: Hive) -> None:
    hive.script["DelegateTask"] = [
        orchestrator_service_pb2.DelegateTaskResponse(task=task(task_pb2.TASK_STATE_RUNNING))
    ]
    hive.script["WaitTask"] = answers(task_pb2.TASK_STATE_SUCCEEDED)
    assert (await client.delegate("work", wait=True)).state == task_pb2.TASK_STATE_SUCCEEDED
    assert hive.calls[0].request.wait_for == orchestrator_service_pb2.WAIT_FOR_RESULT


async def test_delegate_and_wait_is_repeated_under_the_same_request_id(
    client: Client, hive: Hive, refusal: Callable[..., Refusal]
) -> None:
    hive.script["DelegateTask"] = [
        refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
        orchestrator_service_pb2.DelegateTaskResponse(task=task(task_pb2.TASK_STATE_SUCCEEDED)),
    ]
    assert (await client.delegate("work", wait=True)).state == task_pb2.TASK_STATE_SUCCEEDED
    assert len({call.request.request_id for call in hive.calls}) == 1


@pytest.mark.parametrize("recipients", [{}, {"agent_id": "a", "task_id": "t"}])
async def test_a_message_has_one_recipient(client: Client, recipients: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="either"):
        await client.send_message("x", **recipients)  # type: ignore[arg-type]


async def test_the_rest_of_the_calls_ask_what_they_say(client: Client, hive: Hive) -> None:
    await client.get_agent("a")
    await client.get_plugin("p")
    await client.metrics("hive_")
    await client.explain_routing("t")
    await client.explain_routing(spec=task_pb2.TaskSpec(type="x"))
    asked = [(call.method, str(call.request).replace("\n", " ").strip()) for call in hive.calls]
    assert asked == [
        ("GetAgent", 'agent_id: "a"'),
        ("GetPlugin", 'name: "p"'),
        ("GetMetrics", 'name_prefix: "hive_"'),
        ("ExplainRouting", 'task_id: "t"'),
        ("ExplainRouting", 'spec {   type: "x" }'),
    ]
    with pytest.raises(ValueError, match="either"):
        await client.explain_routing()


class Mailbox(messaging_service_pb2_grpc.MessagingServiceServicer):
    """Sends one message a stream, then breaks it; ends the third."""

    def __init__(self) -> None:
        self.streams = 0

    def register(self, server: grpc.aio.Server) -> None:
        messaging_service_pb2_grpc.add_MessagingServiceServicer_to_server(self, server)

    async def StreamMessages(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.streams += 1
        message = message_pb2.Message(message_id=f"m-{self.streams}", agent_id=request.agent_id)
        yield messaging_service_pb2.StreamMessagesResponse(messages=[message])
        if self.streams < 3:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "going")


async def test_messages_go_on_over_broken_streams(server: Server) -> None:
    mailbox = Mailbox()  # type: ignore[abstract] # only the stream is asked for
    async with Client(await server.start(mailbox.register)) as client:
        assert [each.message_id async for each in client.messages("a", follow=False)] == ["m-1", "m-2", "m-3"]


class Blobs(blob_service_pb2_grpc.BlobServiceServicer):
    """Keeps blobs; every second download breaks after a chunk."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.chunks: list[int] = []
        self.downloads = 0

    def register(self, server: grpc.aio.Server) -> None:
        blob_service_pb2_grpc.add_BlobServiceServicer_to_server(self, server)

    async def UploadBlob(self, request_iterator: Any, context: Any) -> Any:
        requests = [request async for request in request_iterator]
        data = b"".join(request.chunk for request in requests)
        self.chunks = [len(request.chunk) for request in requests]
        blob_id = f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert requests[0].blob_id == blob_id
        self.blobs[blob_id] = data
        blob = blob_service_pb2.Blob(blob_id=blob_id, size=len(data), content_type=requests[0].content_type)
        return blob_service_pb2.UploadBlobResponse(blob=blob)

    async def DownloadBlob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.downloads += 1
        data = self.blobs[request.blob_id]
        for start in range(request.offset, len(data), 1_000_000):
            yield blob_service_pb2.DownloadBlobResponse(chunk=data[start : start + 1_000_000])
            if self.downloads % 2:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "going")


@pytest.fixture
async def blobs(server: Server) -> Blobs:
    made = Blobs()
    await server.start(made.register)
    return made


async def test_a_blob_comes_back_over_a_broken_stream(server: Server, blobs: Blobs) -> None:
    data = bytes(range(256)) * 10_000
    async with Client(server.target) as client:
        blob = await client.upload_blob(data, content_type="x/y")
        assert (blob.size, blob.content_type) == (len(data), "x/y")
        assert blobs.chunks == [1024 * 1024, 1024 * 1024, len(data) - 2 * 1024 * 1024]
        assert await client.download_blob(blob.blob_id) == data
        assert blobs.downloads == 2


async def test_an_empty_blob_is_a_blob(server: Server, blobs: Blobs) -> None:
    async with Client(server.target) as client:
        blob = await client.upload_blob(b"")
        assert await client.download_blob(blob.blob_id) == b""


async def test_a_blob_with_another_content_is_not_handed_out(server: Server, blobs: Blobs) -> None:
    async with Client(server.target) as client:
        blob = await client.upload_blob(b"right")
        blobs.blobs[blob.blob_id] = b"wrong"
        with pytest.raises(DataLoss):
            await client.download_blob(blob.blob_id)
