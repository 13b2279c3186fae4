"""What workers say on a session, as kernel items."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from agenthive.v1 import agent_pb2
from agenthive.v1 import worker_service_pb2 as pb

from agenthive_server.kernel import session_items as items
from agenthive_server.kernel.errors import BadRequest
from agenthive_server.kernel.sessions import RunnerCapacity
from agenthive_server.rpc import validate

from . import agents, attempts
from .messages import urgency_from
from .values import payload_from, required_payload

MAX_HOSTED: Final = 10_000
MAX_LEASES: Final = 10_000
MAX_SECRET: Final = 4_096
_MAX_EPOCH: Final = 2**62
_is_id: Final = validate.ID.fullmatch

_REPORTED: Final = {
    agent_pb2.AGENT_STATE_IDLE: "READY",
    agent_pb2.AGENT_STATE_STOPPED: "STOPPED",
    agent_pb2.AGENT_STATE_SLEEPING: "SLEEPING",
    agent_pb2.AGENT_STATE_FAILED: "FAILED",
}


def hello_from(message: pb.Hello) -> items.Hello:
    """Return how a worker introduces itself; raises `BadRequest`."""
    validate.count(message.agents, "hello.agents", MAX_HOSTED)
    validate.count(message.leases, "hello.leases", MAX_LEASES)
    return items.Hello(
        session_id=validate.optional_id(message.session_id, "hello.session_id"),
        replaces=validate.optional_id(message.replaces_session_id, "hello.replaces_session_id"),
        agents=tuple(_hosted(agent, f"hello.agents[{n}]") for n, agent in enumerate(message.agents)),
        leases=tuple(_lease(lease, f"hello.leases[{n}]") for n, lease in enumerate(message.leases)),
        runner=_runner(message.runner, "hello.runner") if message.HasField("runner") else None,
        labels=validate.labels(message.labels, "hello.labels"),
        software=validate.text(message.software, "hello.software"),
        display_name=validate.text(message.display_name, "hello.display_name"),
        join_token=validate.text(message.join_token, "hello.join_token", MAX_SECRET),
        credential=validate.text(message.credential, "hello.credential", MAX_SECRET),
    )


def _hosted(message: pb.HostedAgent, at: str) -> items.HostedAgent:
    spec = agents.spec_from(message.spec, f"{at}.spec") if message.HasField("spec") else None
    return items.HostedAgent(agent_id=validate.required_id(message.agent_id, f"{at}.agent_id"), spec=spec)


def _lease(message: pb.HeldLease, at: str) -> items.LeaseRef:
    return items.LeaseRef(*_task(message, at))


def _runner(message: pb.RunnerCapacity, at: str) -> RunnerCapacity:
    return RunnerCapacity(
        drivers=validate.texts(message.drivers, f"{at}.drivers", 64, 128),
        maximum_agents=validate.between(message.maximum_agents, 0, 1_000_000, f"{at}.maximum_agents"),
        cpu_cores=validate.real(message.cpu_cores, 0.0, 1e6, f"{at}.cpu_cores"),
        memory_bytes=validate.between(message.memory_bytes, 0, 2**60, f"{at}.memory_bytes"),
    )


def _task(message: Any, at: str) -> tuple[str, int]:
    task_id, epoch = message.task_id, message.lease_epoch
    if _is_id(task_id) and 1 <= epoch <= _MAX_EPOCH:
        return task_id, epoch
    task_id = validate.required_id(task_id, f"{at}.task_id")
    return task_id, validate.between(epoch, 1, _MAX_EPOCH, f"{at}.lease_epoch")


def _checkpoint(data: bytes, at: str) -> bytes:
    if len(data) > validate.MAX_CHECKPOINT:
        raise BadRequest(f"a checkpoint has more than {validate.MAX_CHECKPOINT} bytes", field=f"{at}.checkpoint")
    return data


def _accept(message: pb.TaskAccept, at: str) -> items.Accept:
    return items.Accept(*_task(message, at))


def _reject(message: pb.TaskReject, at: str) -> items.Reject:
    task_id, epoch = _task(message, at)
    reason = validate.text(message.reason, f"{at}.reason", validate.REASON_TEXT)
    if not message.HasField("retry_after"):
        return items.Reject(task_id, epoch, reason)
    return items.Reject(task_id, epoch, reason, validate.span(message.retry_after, f"{at}.retry_after"))


def _hand_back(message: pb.TaskHandBack, at: str) -> items.HandBack:
    task_id, epoch = _task(message, at)
    reason = validate.text(message.reason, f"{at}.reason", validate.REASON_TEXT)
    return items.HandBack(task_id, epoch, _checkpoint(message.checkpoint, at), reason)


def _result(message: pb.TaskResult, at: str) -> items.Result:
    task_id, epoch = _task(message, at)
    usage = attempts.usage_from(message.usage, f"{at}.usage") if message.HasField("usage") else None
    outcome = message.WhichOneof("outcome")
    if outcome == "result":
        return items.Result(task_id, epoch, payload_from(message.result, "result.result"), None, None, usage)
    if outcome == "error":
        return items.Result(task_id, epoch, error=attempts.error_from(message.error, f"{at}.error"), usage=usage)
    if outcome == "canceled":
        text = message.canceled[: validate.REASON_TEXT].replace("\x00", "")
        return items.Result(task_id, epoch, canceled=text, usage=usage)
    raise BadRequest("required", field=f"{at}.outcome")


def _ask(message: pb.TaskInputRequest, at: str) -> items.Ask:
    task_id, epoch = _task(message, at)
    if not message.HasField("request"):
        raise BadRequest("required", field=f"{at}.request")
    question = attempts.question_from(message.request, f"{at}.request")
    return items.Ask(task_id, epoch, question, _checkpoint(message.checkpoint, at))


def _report(message: pb.AgentReport, at: str) -> items.AgentReport:
    state = _REPORTED.get(message.state)
    if state is None:
        raise BadRequest("IDLE, STOPPED, SLEEPING or FAILED", field=f"{at}.state")
    return items.AgentReport(
        validate.required_id(message.agent_id, f"{at}.agent_id"),
        state,
        message.reason[: validate.REASON_TEXT].replace("\x00", ""),
        message.exit_code,
        agents.spec_from(message.spec, f"{at}.spec") if message.HasField("spec") else None,
    )


def _read(message: pb.MessagesRead, at: str) -> items.MessagesRead:
    return items.MessagesRead(
        validate.required_id(message.agent_id, f"{at}.agent_id"),
        validate.message_ids(message.message_ids, f"{at}.message_ids"),
    )


def _outgoing(message: pb.OutgoingMessage, at: str) -> items.Outgoing:
    recipient = message.WhichOneof("recipient")
    if recipient is None or (recipient == "all" and not message.all):
        raise BadRequest("required", field=f"{at}.recipient")
    if recipient == "role" and not message.role:
        raise BadRequest("required", field=f"{at}.role")
    return items.Outgoing(
        request_id=validate.required_text(message.request_id, f"{at}.request_id", 128),
        sender_agent_id=validate.required_id(message.sender_agent_id, f"{at}.sender_agent_id"),
        agent_id=validate.required_id(message.agent_id, f"{at}.agent_id") if recipient == "agent_id" else "",
        task_id=validate.required_id(message.task_id, f"{at}.task_id") if recipient == "task_id" else "",
        role=validate.text(message.role, f"{at}.role"),
        all=message.all,
        payload=required_payload(message, "payload", f"{at}.payload"),
        urgency=urgency_from(message.urgency, f"{at}.urgency"),
    )


READ: Final[dict[str, Callable[[Any, str], items.Item]]] = {
    "agent_report": _report,
    "accept": _accept,
    "reject": _reject,
    "hand_back": _hand_back,
    "result": _result,
    "input_request": _ask,
    "messages_read": _read,
    "message": _outgoing,
}
"""What makes an item that changes records of what a worker says, by the name of what it says and with that name; each
raises `BadRequest`.
"""


def beat_from(message: pb.TaskBeat, at: str) -> items.Beat:
    """Return the pulse of a held task; raises `BadRequest`."""
    task_id, epoch = _task(message, at)
    has = message.HasField
    text = message.text
    return items.Beat(
        task_id=task_id,
        epoch=epoch,
        fraction=validate.real(message.fraction, 0.0, 1.0, f"{at}.fraction") if has("fraction") else None,
        text=validate.text(text, f"{at}.text", 1_024) if has("text") else None,
        checkpoint=_checkpoint(message.checkpoint, at) if has("checkpoint") else None,
        usage=attempts.usage_from(message.usage, f"{at}.usage") if has("usage") else None,
        context_usage=validate.real(message.context_usage, 0.0, 1.0, f"{at}.context_usage")
        if has("context_usage")
        else None,
    )
