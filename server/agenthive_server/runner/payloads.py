"""Tasks and payloads as JSON, as agents see them that do not speak gRPC; errors as the contract wants them."""

from __future__ import annotations

import base64
import json
from typing import Any

from agenthive.v1 import message_pb2, payload_pb2, task_pb2, worker_service_pb2
from google.protobuf import duration_pb2, json_format

from agenthive_server.runner.driver import Outcome

RESULT_TYPE = "application/json"


def payload_as_json(payload: payload_pb2.Payload) -> Any:
    """JSON as its value, text as a string, a blob as `{"blob_id"}`, other bytes as `{"base64"}`, nothing as None."""
    content = payload.WhichOneof("content")
    if content == "json":
        return json_format.MessageToDict(payload.json)
    if content == "blob_id":
        return {"blob_id": payload.blob_id}
    if content is None:
        return None
    media = payload.content_type.partition(";")[0].strip().lower()
    try:
        if media == RESULT_TYPE or media.endswith("+json"):
            return json.loads(payload.data)
        if media.startswith("text/"):
            return payload.data.decode()
    except (ValueError, RecursionError):
        pass  # it is not what it says; the agent may know better
    return {"base64": base64.b64encode(payload.data).decode()}


def checkpoint_as_json(checkpoint: bytes) -> Any:
    """None, the text it is, or `{"base64"}` for one that is no text (another worker wrote it)."""
    if not checkpoint:
        return None
    return payload_as_json(payload_pb2.Payload(content_type="text/plain", data=checkpoint))


def task_as_json(task: worker_service_pb2.TaskAssignment) -> dict[str, Any]:
    """The object an agent is given for a task."""
    return {
        "task_id": task.task_id,
        "type": task.spec.type,
        "title": task.spec.title,
        "attempt": task.attempt,
        "lease_epoch": task.lease_epoch,
        "namespace": task.namespace,
        "input": payload_as_json(task.spec.input),
        "checkpoint": checkpoint_as_json(task.checkpoint),
        "answers": [payload_as_json(answer) for answer in task.answers],
        "labels": dict(task.spec.labels),
    }


def message_as_json(message: message_pb2.Message) -> dict[str, Any]:
    """The object an agent is given for a message."""
    return {
        "message_id": message.message_id,
        "task_id": message.task_id,
        "sender_agent_id": message.sender_agent_id,
        "urgency": message_pb2.MessageUrgency.Name(message.urgency).removeprefix("MESSAGE_URGENCY_"),
        "content": payload_as_json(message.payload),
    }


def json_line(value: Any) -> bytes:
    """The value on one line of ASCII, with its newline."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def result_payload(value: Any, content_type: str = "") -> payload_pb2.Payload:
    """A result as a payload: JSON, or the text itself when another content type is named and it is a string."""
    if content_type and content_type != RESULT_TYPE and isinstance(value, str):
        return payload_pb2.Payload(content_type=content_type, data=value.encode("utf-8", "replace"))
    try:
        data = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair is JSON, but not UTF-8
        data = json_line(value)[:-1]
    return payload_pb2.Payload(content_type=RESULT_TYPE, data=data)


def cut_text(text: str, size: int) -> str:
    """The text as valid UTF-8 of at most `size` bytes."""
    return text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore")


def failed(
    error_class: task_pb2.TaskErrorClass.ValueType, reason: str, message: str, retry_delay: float = 0.0
) -> Outcome:
    """An attempt that failed; the message is cut to what the contract allows."""
    error = task_pb2.TaskError(error_class=error_class, reason=reason, message=cut_text(message, 4096))
    if retry_delay > 0:
        error.next_retry_delay.FromNanoseconds(int(retry_delay * 1e9))
    return Outcome(error=error)


def seconds(duration: duration_pb2.Duration, default: float) -> float:
    """A duration in seconds; the default when it is zero or negative."""
    value = duration.seconds + duration.nanos / 1e9
    return value if value > 0 else default
