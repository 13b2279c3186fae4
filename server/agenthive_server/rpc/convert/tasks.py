"""Tasks: specifications in, tasks out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from agenthive.v1 import task_pb2 as pb

from agenthive_server.kernel.errors import BadRequest
from agenthive_server.kernel.tasks import (
    DEFAULT_RETRY,
    DEFAULT_TIMEOUTS,
    ChildrenPolicy,
    DependencyPolicy,
    Progress,
    RetryPolicy,
    Strategy,
    Task,
    TaskSpec,
    TaskState,
    Timeouts,
    make_spec,
)
from agenthive_server.rpc import validate

from .attempts import REASON, fill_attempts, fill_error, fill_lease, fill_progress, fill_question
from .values import EnumTable, fill_payload, payload_from, set_span, set_time

STATES: Final = EnumTable(pb.TaskState.DESCRIPTOR, "TASK_STATE_", TaskState)
STRATEGIES: Final = EnumTable(pb.RoutingStrategy.DESCRIPTOR, "ROUTING_STRATEGY_", Strategy)
_DEPENDENCY: Final = EnumTable(pb.DependencyPolicy.DESCRIPTOR, "DEPENDENCY_POLICY_", DependencyPolicy)
_CHILDREN: Final = EnumTable(pb.ChildrenPolicy.DESCRIPTOR, "CHILDREN_POLICY_", ChildrenPolicy)

_PLAIN: Final = frozenset(
    (
        *("type", "title", "fairness_key", "role", "agent_id", "affinity_key", "parent_task_id"),
        *("priority", "fairness_weight", "exclusive", "requires_review"),
    )
)


def spec_from(message: pb.TaskSpec, at: str) -> TaskSpec:
    """Return what should be done; raises `BadRequest` naming the field under `at`.

    Only the fields that are set are looked at: most tasks set three of twenty.
    """
    values: dict[str, Any] = {}
    try:
        for field, value in message.ListFields():
            name, read, called = _READ[field]
            values[name] = read(value, called)
    except BadRequest as error:
        # Put together only here: the names of the fields of every task took longer than reading them.
        error.field = f"{at}.{error.field}"
        raise
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
        non_retryable_reasons=validate.texts(message.non_retryable_reasons, f"{at}.non_retryable_reasons", 64, REASON),
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
    "type": ("type", validate.text),
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

_READ: Final = {field: (*_SPEC_FIELDS[field.name], field.name) for field in pb.TaskSpec.DESCRIPTOR.fields}


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
        fill_lease(message.lease, task.lease)
    if task.waiting_on:
        message.waiting_on.extend(task.waiting_on)
    set_time(message.create_time, task.create_time)
    set_time(message.update_time, task.update_time)
    if task.attempts:
        fill_attempts(message, task.attempts)
    if task.terminal or task.attempts or task.result is not None or task.question is not None:
        _fill_outcome(message, task, brief=brief)
    if task.state is TaskState.RETRY_WAIT and task.retry_time:
        set_time(message.retry_time, task.retry_time)
    if progress is not None and not brief:
        fill_progress(message.progress, progress)


def _fill_outcome(message: pb.Task, task: Task, *, brief: bool) -> None:
    if task.result is not None and not brief:
        fill_payload(message.result, task.result)
    if task.error is not None:
        fill_error(message.error, task.error)
    if task.question is not None:
        fill_question(message.input_request, task.question, brief=brief)
    if task.output_blob_id:
        message.output_blob_id = task.output_blob_id
    if task.end_time:
        set_time(message.end_time, task.end_time)


def fill_spec(message: pb.TaskSpec, spec: TaskSpec, *, brief: bool = False) -> None:
    """Write what should be done over whatever was there. Sub-messages that hold only defaults stay unset."""
    message.CopyFrom(_USUAL)
    if spec.input is not None and not brief:
        fill_payload(message.input, spec.input)
    # What it does not hold is what it is by default: most tasks give three fields of twenty.
    for name, value in vars(spec).items():
        if value and name in _PLAIN:
            setattr(message, name, value)
        elif value and name in _WRITE:
            _WRITE[name](message, value)


def _write_retry(spec: pb.TaskSpec, policy: RetryPolicy) -> None:
    if policy == DEFAULT_RETRY:
        return
    message = spec.retry_policy
    set_span(message.initial_interval, policy.initial_interval)
    message.backoff_coefficient = policy.backoff_coefficient
    set_span(message.maximum_interval, policy.maximum_interval)
    message.maximum_attempts = policy.maximum_attempts
    message.non_retryable_reasons.extend(policy.non_retryable_reasons)


def _write_timeouts(spec: pb.TaskSpec, timeouts: Timeouts) -> None:
    if timeouts == DEFAULT_TIMEOUTS:
        return
    message = spec.timeouts
    set_span(message.schedule_to_start_timeout, timeouts.schedule_to_start)
    set_span(message.start_to_close_timeout, timeouts.start_to_close)
    set_span(message.schedule_to_close_timeout, timeouts.schedule_to_close)
    set_span(message.heartbeat_timeout, timeouts.heartbeat)
    if timeouts.progress:
        set_span(message.progress_timeout, timeouts.progress)
    if timeouts.input:
        set_span(message.input_timeout, timeouts.input)


def _write_member(name: str, table: EnumTable) -> Callable[[pb.TaskSpec, Any], None]:
    return lambda message, member: setattr(message, name, table.numbers[member])


_WRITE: Final[dict[str, Callable[[pb.TaskSpec, Any], None]]] = {
    "required_capabilities": lambda message, values: message.required_capabilities.extend(values),
    "labels": lambda message, labels: message.labels.update(labels),
    "depends_on": lambda message, values: message.depends_on.extend(values),
    "dependency_policy": _write_member("dependency_policy", _DEPENDENCY),
    "children_policy": _write_member("children_policy", _CHILDREN),
    "retry": _write_retry,
    "timeouts": _write_timeouts,
    "strategy": _write_member("routing_strategy", STRATEGIES),
}

_USUAL: Final = pb.TaskSpec(
    priority=TaskSpec.priority,
    fairness_weight=TaskSpec.fairness_weight,
    dependency_policy=_DEPENDENCY.numbers[TaskSpec.dependency_policy],  # type: ignore[arg-type]  # as above
    children_policy=_CHILDREN.numbers[TaskSpec.children_policy],  # type: ignore[arg-type]  # as above
)
"""What every specification says where nothing else was given."""
