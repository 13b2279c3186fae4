"""Tasks: specifications in, tasks out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from agenthive.v1 import task_pb2 as pb

from agenthive_server.kernel.errors import BadRequest
from agenthive_server.kernel.tasks import (
    DEFAULT_RETRY,
    DEFAULT_TIMEOUTS,
    Attempt,
    ChildrenPolicy,
    DependencyPolicy,
    ErrorClass,
    Lease,
    Progress,
    Question,
    RetryPolicy,
    Strategy,
    Task,
    TaskError,
    TaskSpec,
    TaskState,
    Timeouts,
    Usage,
    make_spec,
)
from agenthive_server.rpc import validate

from .values import EnumTable, fill_json, fill_payload, json_from, payload_from, set_span, set_time

STATES: Final = EnumTable(pb.TaskState.DESCRIPTOR, "TASK_STATE_", TaskState)
STRATEGIES: Final = EnumTable(pb.RoutingStrategy.DESCRIPTOR, "ROUTING_STRATEGY_", Strategy)
ERROR_CLASSES: Final = EnumTable(pb.TaskErrorClass.DESCRIPTOR, "TASK_ERROR_CLASS_", ErrorClass)
_DEPENDENCY: Final = EnumTable(pb.DependencyPolicy.DESCRIPTOR, "DEPENDENCY_POLICY_", DependencyPolicy)
_CHILDREN: Final = EnumTable(pb.ChildrenPolicy.DESCRIPTOR, "CHILDREN_POLICY_", ChildrenPolicy)

_PLAIN: Final = (
    *("title", "fairness_key", "role", "agent_id", "affinity_key", "parent_task_id"),
    *("exclusive", "requires_review"),
)
_REASON: Final = 63
_MAX_NUMBER: Final = 2**53


def spec_from(message: pb.TaskSpec, at: str) -> TaskSpec:
    """Return what should be done; raises `BadRequest` naming the field under `at`.

    Only the fields that are set are looked at: most tasks set three of twenty.
    """
    values: dict[str, Any] = {}
    for field, value in message.ListFields():
        name, read = _SPEC_FIELDS[field.name]
        values[name] = read(value, f"{at}.{field.name}")
    if "type" not in values:
        raise BadRequest("required", field=f"{at}.type")
    return make_spec(**values)


def required_spec(holder: object, at: str) -> TaskSpec:
    """Return the specification in the field `spec`, which has to be set."""
    if not holder.HasField("spec"):  # type: ignore[attr-defined]  # a message with a field `spec`
        raise BadRequest("required", field=at)
    return spec_from(holder.spec, at)  # type: ignore[attr-defined]  # see above


def _retry(message: pb.RetryPolicy, at: str) -> RetryPolicy:
    usual = DEFAULT_RETRY
    return RetryPolicy(
        initial_interval=validate.span(message.initial_interval, f"{at}.initial_interval") or usual.initial_interval,
        backoff_coefficient=validate.real_or_default(
            message.backoff_coefficient, usual.backoff_coefficient, 1.0, 1_000.0, f"{at}.backoff_coefficient"
        ),
        maximum_interval=validate.span(message.maximum_interval, f"{at}.maximum_interval") or usual.maximum_interval,
        maximum_attempts=validate.or_default(
            message.maximum_attempts, usual.maximum_attempts, 1, 1_000, f"{at}.maximum_attempts"
        ),
        non_retryable_reasons=validate.texts(message.non_retryable_reasons, f"{at}.non_retryable_reasons", 64, _REASON),
    )


def _timeouts(message: pb.TaskTimeouts, at: str) -> Timeouts:
    usual, span = DEFAULT_TIMEOUTS, validate.span
    return Timeouts(
        schedule_to_start=span(message.schedule_to_start_timeout, f"{at}.schedule_to_start_timeout")
        or usual.schedule_to_start,
        start_to_close=span(message.start_to_close_timeout, f"{at}.start_to_close_timeout") or usual.start_to_close,
        schedule_to_close=span(message.schedule_to_close_timeout, f"{at}.schedule_to_close_timeout")
        or usual.schedule_to_close,
        heartbeat=span(message.heartbeat_timeout, f"{at}.heartbeat_timeout") or usual.heartbeat,
        progress=span(message.progress_timeout, f"{at}.progress_timeout"),
        input=span(message.input_timeout, f"{at}.input_timeout"),
    )


def _capabilities(values: Sequence[str], at: str) -> tuple[str, ...]:
    return validate.texts(values, at, validate.MAX_CAPABILITIES)


def _priority(value: int, at: str) -> int:
    return validate.or_default(value, 3, 1, 5, at)


def _weight(value: float, at: str) -> float:
    return validate.real_or_default(value, 1.0, 0.01, 100.0, at)


def _as_is(value: bool, at: str) -> bool:
    return value


_SPEC_FIELDS: Final[dict[str, tuple[str, Callable[[Any, str], Any]]]] = {
    "type": ("type", validate.required_text),
    "input": ("input", payload_from),
    "title": ("title", validate.text),
    "priority": ("priority", _priority),
    "fairness_key": ("fairness_key", validate.text),
    "fairness_weight": ("fairness_weight", _weight),
    "required_capabilities": ("required_capabilities", _capabilities),
    "role": ("role", validate.text),
    "agent_id": ("agent_id", validate.optional_id),
    "affinity_key": ("affinity_key", validate.text),
    "labels": ("labels", validate.labels),
    "depends_on": ("depends_on", validate.ids),
    "dependency_policy": ("dependency_policy", _DEPENDENCY.read),
    "parent_task_id": ("parent_task_id", validate.optional_id),
    "children_policy": ("children_policy", _CHILDREN.read),
    "retry_policy": ("retry", _retry),
    "timeouts": ("timeouts", _timeouts),
    "exclusive": ("exclusive", _as_is),
    "requires_review": ("requires_review", _as_is),
    "routing_strategy": ("strategy", STRATEGIES.read),
}
"""The fields of a specification: what they are called in the kernel, and what reads and checks them."""


def error_from(message: pb.TaskError, at: str) -> TaskError:
    """Return why an attempt failed, as a worker says it; texts are cut, not refused."""
    delay = message.next_retry_delay
    return TaskError(
        error_class=ERROR_CLASSES.read(message.error_class, f"{at}.error_class", ErrorClass.TOOL),
        reason=message.reason[:_REASON].replace("\x00", ""),
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


def fill_task(message: pb.Task, task: Task, progress: Progress | None = None, *, brief: bool = False) -> None:
    """Write a task; `brief` leaves out payloads and progress, as lists and snapshots do."""
    message.task_id = task.id
    message.namespace = task.namespace
    message.revision = task.revision
    fill_spec(message.spec, task.spec, brief=brief)
    message.state = STATES.numbers[task.state]  # type: ignore[assignment]  # the stubs want the enum's own type
    if task.reason:
        message.state_reason = task.reason
    if task.attempt:
        message.attempt = task.attempt
        message.counted_attempts = task.counted_attempts
    if task.lease is not None:
        _fill_lease(message.lease, task.lease)
    if task.waiting_on:
        message.waiting_on.extend(task.waiting_on)
    set_time(message.create_time, task.create_time)
    set_time(message.update_time, task.update_time)
    if task.attempts:
        _fill_attempts(message, task.attempts)
    if task.terminal or task.attempts or task.result is not None or task.question is not None:
        _fill_outcome(message, task, brief=brief)
    if task.state is TaskState.RETRY_WAIT and task.retry_time:
        set_time(message.retry_time, task.retry_time)
    if progress is not None and not brief:
        _fill_progress(message.progress, progress)


def _fill_outcome(message: pb.Task, task: Task, *, brief: bool) -> None:
    if task.result is not None and not brief:
        fill_payload(message.result, task.result)
    if task.error is not None:
        fill_error(message.error, task.error)
    if task.question is not None:
        _fill_question(message.input_request, task.question, brief=brief)
    if task.output_blob_id:
        message.output_blob_id = task.output_blob_id
    if task.end_time:
        set_time(message.end_time, task.end_time)


def fill_spec(message: pb.TaskSpec, spec: TaskSpec, *, brief: bool = False) -> None:
    """Write what should be done. Sub-messages that hold only defaults stay unset."""
    message.type = spec.type
    message.priority = spec.priority
    if spec.input is not None and not brief:
        fill_payload(message.input, spec.input)
    for name in _PLAIN:
        value = getattr(spec, name)
        if value:
            setattr(message, name, value)
    message.fairness_weight = spec.fairness_weight
    if spec.required_capabilities:
        message.required_capabilities.extend(spec.required_capabilities)
    if spec.labels:
        message.labels.update(spec.labels)
    if spec.depends_on:
        message.depends_on.extend(spec.depends_on)
    _fill_policies(message, spec)


def _fill_policies(message: pb.TaskSpec, spec: TaskSpec) -> None:
    message.dependency_policy = _DEPENDENCY.numbers[spec.dependency_policy]  # type: ignore[assignment]  # as above
    message.children_policy = _CHILDREN.numbers[spec.children_policy]  # type: ignore[assignment]  # as above
    if spec.retry is not DEFAULT_RETRY and spec.retry != DEFAULT_RETRY:
        _fill_retry(message.retry_policy, spec.retry)
    if spec.timeouts is not DEFAULT_TIMEOUTS and spec.timeouts != DEFAULT_TIMEOUTS:
        _fill_timeouts(message.timeouts, spec.timeouts)
    if spec.strategy is not None:
        message.routing_strategy = STRATEGIES.numbers[spec.strategy]  # type: ignore[assignment]  # as above


def _fill_retry(message: pb.RetryPolicy, policy: RetryPolicy) -> None:
    set_span(message.initial_interval, policy.initial_interval)
    message.backoff_coefficient = policy.backoff_coefficient
    set_span(message.maximum_interval, policy.maximum_interval)
    message.maximum_attempts = policy.maximum_attempts
    message.non_retryable_reasons.extend(policy.non_retryable_reasons)


def _fill_timeouts(message: pb.TaskTimeouts, timeouts: Timeouts) -> None:
    set_span(message.schedule_to_start_timeout, timeouts.schedule_to_start)
    set_span(message.start_to_close_timeout, timeouts.start_to_close)
    set_span(message.schedule_to_close_timeout, timeouts.schedule_to_close)
    set_span(message.heartbeat_timeout, timeouts.heartbeat)
    if timeouts.progress:
        set_span(message.progress_timeout, timeouts.progress)
    if timeouts.input:
        set_span(message.input_timeout, timeouts.input)


def _fill_lease(message: pb.Lease, lease: Lease) -> None:
    message.agent_id = lease.agent_id
    message.session_id = lease.session_id
    message.lease_epoch = lease.epoch
    set_time(message.assign_time, lease.assign_time)
    if lease.start_time:
        set_time(message.start_time, lease.start_time)


def _fill_attempts(message: pb.Task, attempts: Sequence[Attempt]) -> None:
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
    message.error_class = ERROR_CLASSES.numbers[error.error_class]  # type: ignore[assignment]  # as above
    message.reason = error.reason
    message.message = error.message
    if error.next_retry_delay is not None:
        set_span(message.next_retry_delay, error.next_retry_delay)


def _fill_question(message: pb.InputRequest, question: Question, *, brief: bool) -> None:
    message.question = question.question
    if question.schema:
        fill_json(message.schema, question.schema)
    if question.default is not None and not brief:
        fill_payload(message.default_answer, question.default)
    message.release_slot = question.release_slot


def _fill_progress(message: pb.TaskProgress, progress: Progress) -> None:
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
