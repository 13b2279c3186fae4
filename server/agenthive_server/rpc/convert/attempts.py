"""Attempts: who holds a task, how far it is, how it failed, what it asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agenthive.v1 import task_pb2 as pb

from agenthive_server.kernel.tasks import Attempt, ErrorClass, Lease, Progress, Question, TaskError, Usage
from agenthive_server.rpc import validate

from .values import EnumTable, fill_json, fill_payload, json_from, payload_from, set_span, set_time

ERROR_CLASSES: Final = EnumTable(pb.TaskErrorClass.DESCRIPTOR, "TASK_ERROR_CLASS_", ErrorClass)

REASON: Final = 63
_MAX_NUMBER: Final = 2**53


def error_from(message: pb.TaskError, at: str) -> TaskError:
    """Return why an attempt failed, as a worker says it; texts are cut, not refused."""
    delay = message.next_retry_delay
    return TaskError(
        error_class=ERROR_CLASSES.read(message.error_class, f"{at}.error_class", ErrorClass.TOOL),
        reason=message.reason[:REASON].replace("\x00", ""),
        message=message.message[: validate.LONG_TEXT].replace("\x00", ""),
        next_retry_delay=validate.span(delay, f"{at}.next_retry_delay")
        if message.HasField("next_retry_delay")
        else None,
    )


def usage_from(message: pb.Usage, at: str) -> Usage:
    """Return consumption; raises `BadRequest` for negative numbers."""
    return Usage(
        input_tokens=validate.between(message.input_tokens, 0, _MAX_NUMBER, f"{at}.input_tokens"),
        output_tokens=validate.between(message.output_tokens, 0, _MAX_NUMBER, f"{at}.output_tokens"),
        cost_micros=validate.between(message.cost_micros, 0, _MAX_NUMBER, f"{at}.cost_micros"),
    )


def question_from(message: pb.InputRequest, at: str) -> Question:
    """Return a question to a human."""
    return Question(
        question=validate.required_text(message.question, f"{at}.question", validate.LONG_TEXT),
        schema=json_from(message.schema, f"{at}.schema") if message.HasField("schema") else "",
        default=payload_from(message.default_answer, f"{at}.default_answer")
        if message.HasField("default_answer")
        else None,
        release_slot=message.release_slot,
    )


def fill_lease(message: pb.Lease, lease: Lease) -> None:
    """Write who holds a task."""
    message.agent_id = lease.agent_id
    message.session_id = lease.session_id
    message.lease_epoch = lease.epoch
    set_time(message.assign_time, lease.assign_time)
    if lease.start_time:
        set_time(message.start_time, lease.start_time)


def fill_attempts(message: pb.Task, attempts: Sequence[Attempt]) -> None:
    """Write the attempts that have ended."""
    for attempt in attempts:
        entry = message.attempts.add(
            number=attempt.number, agent_id=attempt.agent_id, lease_epoch=attempt.epoch, counted=attempt.counted
        )
        set_time(entry.assign_time, attempt.assign_time)
        if attempt.start_time:
            set_time(entry.start_time, attempt.start_time)
        set_time(entry.end_time, attempt.end_time)
        if attempt.error is not None:
            fill_error(entry.error, attempt.error)


def fill_error(message: pb.TaskError, error: TaskError) -> None:
    """Write why an attempt failed."""
    message.error_class = ERROR_CLASSES.numbers[error.error_class]  # type: ignore[assignment]  # the stubs want the enum's own type
    message.reason = error.reason
    message.message = error.message
    if error.next_retry_delay is not None:
        set_span(message.next_retry_delay, error.next_retry_delay)


def fill_question(message: pb.InputRequest, question: Question, *, brief: bool) -> None:
    """Write a question to a human."""
    message.question = question.question
    if question.schema:
        fill_json(message.schema, question.schema)
    if question.default is not None and not brief:
        fill_payload(message.default_answer, question.default)
    message.release_slot = question.release_slot


def fill_progress(message: pb.TaskProgress, progress: Progress) -> None:
    """Write how far an attempt is."""
    message.fraction = progress.fraction
    message.text = progress.text
    usage = progress.usage
    if usage is not None:
        message.usage.input_tokens = usage.input_tokens
        message.usage.output_tokens = usage.output_tokens
        message.usage.cost_micros = usage.cost_micros
    message.context_usage = progress.context_usage
    message.checkpoint = progress.checkpoint
    set_time(message.update_time, progress.update_time)
