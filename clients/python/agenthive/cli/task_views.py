"""Tasks as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agenthive.cli import tables, text
from agenthive.cli.values import short_name
from agenthive.v1 import task_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType
    from rich.table import Table

    from agenthive.v1.task_pb2 import Task, TaskError, Usage


def task_state(task: Task) -> str:
    """Return the short name of a task's state."""
    return short_name(task_pb2.TaskState.DESCRIPTOR, task.state)


def error_text(error: TaskError) -> str:
    """Return why an attempt did not succeed: `TOOL EXIT_CODE: exit 2`."""
    kind = short_name(task_pb2.TaskErrorClass.DESCRIPTOR, error.error_class)
    head = f"{'' if kind == 'UNSPECIFIED' else kind} {error.reason}".strip()
    return f"{head}: {error.message}" if error.message and head else head or error.message


def tasks(found: Iterable[Task], at: float, *, narrow: bool = False) -> RenderableType:
    """Return a line for each task."""
    table = tables.new_table(
        "TASK", "STATE", "*TYPE", "?>PRIO", "?>TRY", "AGENT", ">AGE", "*TITLE / WHY", narrow=narrow
    )
    for task in found:
        title = task.spec.title
        why = error_text(task.error) or task.state_reason
        table.add(
            tables.plain(task.task_id),
            tables.state(task_state(task)),
            tables.plain(task.spec.type),
            str(task.spec.priority or 3),
            str(task.attempt) if task.attempt else "",
            tables.plain(last_agent(task)),
            text.age(task.create_time, at),
            tables.plain(": ".join(each for each in (title, why) if each), "dim"),
        )
    return tables.or_nothing(table, "no tasks")


def last_agent(task: Task) -> str:
    """Return who holds a task or held it last, else who it is pinned to."""
    if task.lease.agent_id:
        return task.lease.agent_id
    return task.attempts[-1].agent_id if task.attempts else task.spec.agent_id


def task(one: Task) -> RenderableType:
    """Return all about one task."""
    from rich.console import Group

    parts: list[RenderableType] = [_record(one)]
    if len(one.attempts) > 1 or any(attempt.HasField("error") for attempt in one.attempts):
        parts += ["", _attempts(one)]
    return Group(*parts)


def _record(one: Task) -> Table:
    spec = one.spec
    rows: list[tuple[str, RenderableType]] = [
        ("task", one.task_id),
        ("namespace", one.namespace if one.namespace != "default" else ""),
        ("state", tables.state(task_state(one))),
        ("why", one.state_reason),
        ("error", error_text(one.error)),
        ("question", one.input_request.question),
        ("title", spec.title),
        ("type", spec.type),
        ("priority", str(spec.priority or 3)),
        ("needs", tables.words(spec.required_capabilities)),
        ("role", spec.role),
        ("pinned to", spec.agent_id),
        ("labels", tables.labels(spec.labels.items())),
        ("parent", spec.parent_task_id),
        ("depends on", tables.words(spec.depends_on)),
        ("waits for", tables.words(one.waiting_on)),
        ("agent", one.lease.agent_id),
        ("attempt", f"{one.attempt}, {one.counted_attempts} counted" if one.attempt else ""),
        ("progress", _progress(one)),
        ("usage", usage(one.progress.usage)),
        ("created", text.date_time(one.create_time)),
        ("next try", text.date_time(one.retry_time)),
        ("ended", text.date_time(one.end_time)),
        ("revision", str(one.revision)),
        ("output", one.output_blob_id),
        ("input", text.payload_text(spec.input)),
        ("result", text.payload_text(one.result)),
    ]
    return tables.record(rows)


def _progress(one: Task) -> str:
    progress = one.progress
    if not progress.fraction and not progress.text:
        return ""
    return f"{progress.fraction:.0%} {progress.text}".strip()


def usage(used: Usage) -> str:
    """Return what an attempt consumed, empty when nothing is known."""
    if not (used.input_tokens or used.output_tokens or used.cost_micros):
        return ""
    cost = f", ${used.cost_micros / 1e6:.4f}" if used.cost_micros else ""
    return f"{used.input_tokens} tokens in, {used.output_tokens} out{cost}"


def _attempts(one: Task) -> Table:
    table = tables.new_table(">TRY", "AGENT", "BEGAN", "ENDED", "COUNTED", "*WHY")
    for attempt in one.attempts:
        table.add(
            str(attempt.number),
            tables.plain(attempt.agent_id),
            text.clock_time(attempt.start_time if attempt.HasField("start_time") else attempt.assign_time),
            text.clock_time(attempt.end_time),
            "yes" if attempt.counted else "no",
            tables.plain(error_text(attempt.error)),
        )
    return table
