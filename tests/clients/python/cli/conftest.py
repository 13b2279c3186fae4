"""A hive in memory behind a real port, and the command line run against it in this process."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import pytest
from agenthive.cli.app import main
from agenthive.v1 import (
    agent_pb2,
    blob_service_pb2,
    blob_service_pb2_grpc,
    event_pb2,
    message_pb2,
    messaging_service_pb2,
    messaging_service_pb2_grpc,
    orchestrator_service_pb2,
    orchestrator_service_pb2_grpc,
    plugin_service_pb2,
    plugin_service_pb2_grpc,
    task_pb2,
)
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped] # no py.typed in that wheel

if TYPE_CHECKING:
    from google.protobuf.message import Message

NOON = 1_760_000_000  # seconds since 1970
OUTPUT_TYPES = ("task_output", "task_progressed", "output_gap")


def abort(context: grpc.ServicerContext, code: grpc.StatusCode, reason: str, text: str, *details: Message) -> NoReturn:
    """End a call as the control plane does."""
    status = status_pb2.Status(code=code.value[0], message=text)
    for detail in (error_details_pb2.ErrorInfo(domain="agenthive", reason=reason), *details):
        status.details.add().Pack(detail)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, text)
    raise AssertionError("abort raises")


class FakeHive(
    orchestrator_service_pb2_grpc.OrchestratorServiceServicer,
    messaging_service_pb2_grpc.MessagingServiceServicer,
    blob_service_pb2_grpc.BlobServiceServicer,
    plugin_service_pb2_grpc.PluginServiceServicer,
):
    """Keeps what it is told, and answers from what a test put there."""

    def __init__(self) -> None:
        self.agents: dict[str, agent_pb2.Agent] = {}
        self.tasks: dict[str, task_pb2.Task] = {}
        self.messages: dict[str, message_pb2.Message] = {}
        self.blobs: dict[str, bytes] = {}
        self.plugins: dict[str, plugin_service_pb2.Plugin] = {}
        self.metrics: list[orchestrator_service_pb2.Metric] = []
        self.routing = orchestrator_service_pb2.ExplainRoutingResponse(queue_position=-1)
        self.health = orchestrator_service_pb2.HealthCheckResponse(
            status=orchestrator_service_pb2.HEALTH_STATUS_OK, version="9.9"
        )
        self.health_answers: list[int] = []
        self.events: list[event_pb2.Event] = []
        self.requests: dict[str, list[Any]] = {}
        self.metadata: dict[str, str | bytes] = {}
        self.refusal: tuple[grpc.StatusCode, str, str, tuple[Message, ...]] | None = None
        self.worker: Callable[[FakeHive, task_pb2.Task], None] | None = None
        self.target = ""
        self.changed = threading.Condition()

    # What tests put there.

    def add_agent(self, agent_id: str, state: str = "IDLE", **fields: Any) -> agent_pb2.Agent:
        held = fields.pop("open_lease_count", 0)
        agent = agent_pb2.Agent(
            agent_id=agent_id, namespace="default", revision=1, spec=agent_pb2.AgentSpec(**fields),
            state=agent_pb2.AgentState.Value(f"AGENT_STATE_{state}"), open_lease_count=held,
        )  # fmt: skip
        agent.create_time.seconds = NOON
        self.agents[agent_id] = agent
        return agent

    def add_task(self, task_id: str, state: str = "QUEUED", **fields: Any) -> task_pb2.Task:
        spec = task_pb2.TaskSpec(**{"type": "work", **fields})
        task = task_pb2.Task(task_id=task_id, namespace="default", revision=1, spec=spec)
        task.create_time.seconds = NOON
        self.tasks[task_id] = task
        self.move(task, state)
        return task

    def move(self, task: task_pb2.Task, state: str) -> None:
        """Change the state of a task and wake who waits for it."""
        with self.changed:
            task.state = task_pb2.TaskState.Value(f"TASK_STATE_{state}")
            if state in ("SUCCEEDED", "FAILED", "CANCELED", "EXPIRED", "QUARANTINED"):
                task.end_time.seconds = NOON + 60
            self.changed.notify_all()

    def happen(self, **fields: Any) -> event_pb2.Event:
        """Append an event to the log."""
        with self.changed:
            event = event_pb2.Event(namespace="default", severity=event_pb2.SEVERITY_INFO, **fields)
            if event.WhichOneof("fact") not in OUTPUT_TYPES:
                event.sequence = sum(1 for each in self.events if each.sequence) + 1
            event.time.seconds = NOON + len(self.events)
            self.events.append(event)
            self.changed.notify_all()
            return event

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, 20)

    # What callers ask.

    def _heard(self, request: Message, context: grpc.ServicerContext) -> None:
        with self.changed:
            self.requests.setdefault(type(request).__name__, []).append(request)
            self.metadata = dict(context.invocation_metadata())
            self.changed.notify_all()
        if self.refusal is not None:
            code, reason, text, details = self.refusal
            abort(context, code, reason, text, *details)

    def _agent(self, request: Any, context: grpc.ServicerContext) -> agent_pb2.Agent:
        self._heard(request, context)
        if request.agent_id not in self.agents:
            abort(context, grpc.StatusCode.NOT_FOUND, "AGENT_NOT_FOUND", f"no agent {request.agent_id}")
        return self.agents[request.agent_id]

    def _task(self, request: Any, context: grpc.ServicerContext) -> task_pb2.Task:
        self._heard(request, context)
        if request.task_id not in self.tasks:
            abort(context, grpc.StatusCode.NOT_FOUND, "TASK_NOT_FOUND", f"no task {request.task_id}")
        return self.tasks[request.task_id]

    def SpawnAgent(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._heard(request, context)
        agent = self.add_agent(request.agent_id or "agent-1", "STARTING")
        agent.spec.CopyFrom(request.spec)
        return orchestrator_service_pb2.SpawnAgentResponse(agent=agent)

    def SpawnAgents(self, request: Any, context: grpc.ServicerContext) -> NoReturn:
        raise NotImplementedError

    DelegateTasks = SpawnAgents

    def GetAgent(self, request: Any, context: grpc.ServicerContext) -> Any:
        agent = self._agent(request, context)
        if agent.state == agent_pb2.AGENT_STATE_STARTING:
            agent.state = agent_pb2.AGENT_STATE_IDLE
        return orchestrator_service_pb2.GetAgentResponse(agent=agent)

    def ListAgents(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._heard(request, context)
        found = [
            agent for agent in self.agents.values()
            if (not request.states or agent.state in request.states) and request.role in ("", agent.spec.role)
        ]  # fmt: skip
        return orchestrator_service_pb2.ListAgentsResponse(agents=found)

    def UpdateAgent(self, request: Any, context: grpc.ServicerContext) -> Any:
        agent = self._agent(request, context)
        agent.spec.CopyFrom(request.spec)
        return orchestrator_service_pb2.UpdateAgentResponse(agent=agent)

    def ShutdownAgent(self, request: Any, context: grpc.ServicerContext) -> Any:
        agent = self._agent(request, context)
        agent.state = agent_pb2.AGENT_STATE_DRAINING
        return orchestrator_service_pb2.ShutdownAgentResponse(agent=agent)

    def RestartAgent(self, request: Any, context: grpc.ServicerContext) -> Any:
        return orchestrator_service_pb2.RestartAgentResponse(agent=self._agent(request, context))

    def SleepAgent(self, request: Any, context: grpc.ServicerContext) -> Any:
        return orchestrator_service_pb2.SleepAgentResponse(agent=self._agent(request, context))

    def WakeAgent(self, request: Any, context: grpc.ServicerContext) -> Any:
        return orchestrator_service_pb2.WakeAgentResponse(agent=self._agent(request, context))

    def DelegateTask(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._heard(request, context)
        task = self.add_task(request.task_id or f"task-{len(self.tasks) + 1}")
        task.spec.CopyFrom(request.spec)
        self.happen(task_id=task.task_id, task_delegated=event_pb2.TaskDelegated(type=request.spec.type))
        if self.worker is not None:
            threading.Thread(target=self.worker, args=(self, task), daemon=True).start()
        return orchestrator_service_pb2.DelegateTaskResponse(task=task)

    def GetTask(self, request: Any, context: grpc.ServicerContext) -> Any:
        return orchestrator_service_pb2.GetTaskResponse(task=self._task(request, context))

    def WaitTask(self, request: Any, context: grpc.ServicerContext) -> Any:
        task = self._task(request, context)
        asks = (task_pb2.TASK_STATE_REPORTED, task_pb2.TASK_STATE_INPUT_REQUIRED)
        with self.changed:
            self.changed.wait_for(
                lambda: task.HasField("end_time") or (request.until_attention and task.state in asks),
                request.wait_timeout.ToNanoseconds() / 1e9,
            )
        return orchestrator_service_pb2.WaitTaskResponse(task=task)

    def ListTasks(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._heard(request, context)
        found = [
            task for task in self.tasks.values()
            if (not request.states or task.state in request.states) and request.type in ("", task.spec.type)
        ]  # fmt: skip
        begin = int(request.page_token or 0)
        size = request.page_size or 50
        rest = str(begin + size) if begin + size < len(found) else ""
        return orchestrator_service_pb2.ListTasksResponse(tasks=found[begin : begin + size], next_page_token=rest)

    def CancelTask(self, request: Any, context: grpc.ServicerContext) -> Any:
        task = self._task(request, context)
        self.move(task, "CANCELED")
        return orchestrator_service_pb2.CancelTaskResponse(task=task)

    def RetryTask(self, request: Any, context: grpc.ServicerContext) -> Any:
        return orchestrator_service_pb2.RetryTaskResponse(task=self._task(request, context))

    def PauseTask(self, request: Any, context: grpc.ServicerContext) -> Any:
        return orchestrator_service_pb2.PauseTaskResponse(task=self._task(request, context))

    def ResumeTask(self, request: Any, context: grpc.ServicerContext) -> Any:
        return orchestrator_service_pb2.ResumeTaskResponse(task=self._task(request, context))

    def RespondToTask(self, request: Any, context: grpc.ServicerContext) -> Any:
        return orchestrator_service_pb2.RespondToTaskResponse(task=self._task(request, context))

    def ReviewTask(self, request: Any, context: grpc.ServicerContext) -> Any:
        return orchestrator_service_pb2.ReviewTaskResponse(task=self._task(request, context))

    def ExplainRouting(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._heard(request, context)
        return self.routing

    def HealthCheck(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._heard(request, context)
        if self.health_answers:
            self.health.status = self.health_answers.pop(0)  # type: ignore[assignment] # a number of the enum
        if request.this_replica_only:
            answer = orchestrator_service_pb2.HealthCheckResponse()
            answer.CopyFrom(self.health)
            del answer.replicas[1:]
            return answer
        return self.health

    def add_replica(self, name: str, **fields: Any) -> Any:
        """Let one more replica be told of; the first one answers."""
        fields = {
            "address": f"{name}.example:50051",
            "state": orchestrator_service_pb2.REPLICA_STATE_SERVING,
            "status": orchestrator_service_pb2.HEALTH_STATUS_OK,
            **fields,
        }
        replica = self.health.replicas.add(replica_id=name, **fields)
        self.health.replica_id = self.health.replicas[0].replica_id
        return replica

    def GetMetrics(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._heard(request, context)
        found = [metric for metric in self.metrics if metric.name.startswith(request.name_prefix)]
        return orchestrator_service_pb2.GetMetricsResponse(metrics=found)

    def StreamEvents(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._heard(request, context)
        begin = len(self.events)
        if request.after_cursor:
            begin = int(request.after_cursor)
        elif request.start in (
            orchestrator_service_pb2.STREAM_START_EARLIEST, orchestrator_service_pb2.STREAM_START_AT_TIME
        ) or request.output_positions:  # fmt: skip
            begin = 0
        yield orchestrator_service_pb2.StreamEventsResponse(cursor=str(begin))
        while context.is_active():
            with self.changed:
                fresh = self.events[begin:]
                if not fresh and not request.no_follow:
                    self.changed.wait(0.05)
            begin += len(fresh)
            wanted = [event for event in fresh if self._wanted(event, request)]
            if wanted:
                yield orchestrator_service_pb2.StreamEventsResponse(events=wanted, cursor=str(begin))
            elif request.no_follow and not fresh:
                return

    def _wanted(self, event: event_pb2.Event, request: Any) -> bool:
        fact = event.WhichOneof("fact") or ""
        wanted = request.filter
        classes = (
            orchestrator_service_pb2.EVENT_CLASS_OUTPUT if fact in OUTPUT_TYPES
            else orchestrator_service_pb2.EVENT_CLASS_LIFECYCLE
        )  # fmt: skip
        asked = request.event_class or orchestrator_service_pb2.EVENT_CLASS_LIFECYCLE
        if asked not in (classes, orchestrator_service_pb2.EVENT_CLASS_ALL):
            return False
        if wanted.types and event_pb2.EventType.Value(f"EVENT_TYPE_{fact.upper()}") not in wanted.types:
            return False
        return (not wanted.task_ids or event.task_id in wanted.task_ids) and event.severity >= wanted.minimum_severity

    def SendMessage(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._heard(request, context)
        message = message_pb2.Message(
            message_id=f"m-{len(self.messages) + 1}", agent_id=request.agent_id, task_id=request.task_id,
            payload=request.payload, urgency=request.urgency, state=message_pb2.MESSAGE_STATE_QUEUED,
        )  # fmt: skip
        self.messages[message.message_id] = message
        return messaging_service_pb2.SendMessageResponse(message=message)

    def BroadcastMessage(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._heard(request, context)
        return messaging_service_pb2.BroadcastMessageResponse(broadcast_id="b-1")

    def StreamMessages(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._heard(request, context)
        found = [message for message in self.messages.values() if message.agent_id == request.agent_id]
        yield messaging_service_pb2.StreamMessagesResponse(messages=found)

    def AcknowledgeMessages(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._heard(request, context)
        for message_id in request.message_ids:
            self.messages[message_id].state = message_pb2.MESSAGE_STATE_READ
        return messaging_service_pb2.AcknowledgeMessagesResponse()

    def add_blob(self, data: bytes) -> str:
        blob_id = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[blob_id] = data
        return blob_id

    def UploadBlob(self, request_iterator: Iterator[Any], context: grpc.ServicerContext) -> Any:
        requests = list(request_iterator)
        self._heard(requests[0], context)
        data = b"".join(request.chunk for request in requests)
        blob = blob_service_pb2.Blob(blob_id=self.add_blob(data), size=len(data), content_type=requests[0].content_type)
        return blob_service_pb2.UploadBlobResponse(blob=blob)

    def DownloadBlob(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._heard(request, context)
        if request.blob_id not in self.blobs:
            abort(context, grpc.StatusCode.NOT_FOUND, "BLOB_NOT_FOUND", f"no blob {request.blob_id}")
        yield blob_service_pb2.DownloadBlobResponse(chunk=self.blobs[request.blob_id][request.offset :])

    def ListPlugins(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._heard(request, context)
        return plugin_service_pb2.ListPluginsResponse(plugins=self.plugins.values())

    def GetPlugin(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._heard(request, context)
        if request.name not in self.plugins:
            abort(context, grpc.StatusCode.NOT_FOUND, "PLUGIN_NOT_FOUND", f"no plugin {request.name}")
        return plugin_service_pb2.GetPluginResponse(plugin=self.plugins[request.name])

    def EnablePlugin(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._heard(request, context)
        self.plugins[request.name].state = plugin_service_pb2.PLUGIN_STATE_ENABLED
        return plugin_service_pb2.EnablePluginResponse(plugin=self.plugins[request.name])

    def DisablePlugin(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._heard(request, context)
        self.plugins[request.name].state = plugin_service_pb2.PLUGIN_STATE_DISABLED
        return plugin_service_pb2.DisablePluginResponse(plugin=self.plugins[request.name])

    def ConfigurePlugin(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._heard(request, context)
        self.plugins[request.name].config.CopyFrom(request.config)
        return plugin_service_pb2.ConfigurePluginResponse(plugin=self.plugins[request.name])


@dataclass(frozen=True)
class Answer:
    """How a command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def fake() -> Iterator[FakeHive]:
    """A hive that is being served; `fake.target` says where."""
    hive = FakeHive()
    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    orchestrator_service_pb2_grpc.add_OrchestratorServiceServicer_to_server(hive, server)
    messaging_service_pb2_grpc.add_MessagingServiceServicer_to_server(hive, server)
    blob_service_pb2_grpc.add_BlobServiceServicer_to_server(hive, server)
    plugin_service_pb2_grpc.add_PluginServiceServicer_to_server(hive, server)
    hive.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield hive
    server.stop(None).wait()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run one command line in this process; nothing of the environment reaches it."""
    for name in ("SERVER", "NAMESPACE", "TOKEN", "TOKEN_FILE", "CA", "CERT", "KEY"):
        monkeypatch.delenv(f"AGENTHIVE_{name}", raising=False)

    def run(*words: str, stdin: bytes = b"") -> Answer:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfd.readouterr()
        code = main(words)
        told = capfd.readouterr()
        return Answer(code, told.out, told.err)

    return run


@pytest.fixture
def hive(fake: FakeHive, alone: Callable[..., Answer]) -> Callable[..., Answer]:
    """Run one command line against the fake."""

    def run(*words: str, stdin: bytes = b"") -> Answer:
        return alone("--server", fake.target, *words, stdin=stdin)

    return run
