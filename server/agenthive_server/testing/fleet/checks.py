"""What must hold after a run, whatever was killed, cut or stopped meanwhile."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agenthive.payload import value
from agenthive.v1.event_pb2 import Event
from agenthive.v1.task_pb2 import Task

from agenthive_server.kernel.tasks import Task as TaskRecord
from agenthive_server.rpc.convert.tasks import fill_task
from agenthive_server.testing.followers import Follower
from agenthive_server.testing.harness import WorkerProcess
from agenthive_server.testing.history import difference, trace
from agenthive_server.testing.task_operations import Call, Report, by_task, check_task

_BURNING: Final = ("task_requeued", "task_retry_scheduled", "task_quarantined", "task_failed")


@dataclass(frozen=True)
class Record:
    """All that is known of a run."""

    # As the store has them at the end; every subscriber was at this place of the log before the replicas were stopped.
    head: int
    log: Sequence[Event]
    tasks: Mapping[str, Task]
    calls: Sequence[Call]
    reports: Sequence[Report]
    followers: Mapping[str, Follower]


def shown(record: TaskRecord) -> Task:
    """Return a stored task as callers see it."""
    message = Task()
    fill_task(message, record)
    return message


def read_journals(workers: Iterable[WorkerProcess]) -> list[Report]:
    """Return the results that workers had, as their journals tell; what they heard of it, they do not."""
    lines = [line for worker in workers for line in worker.journal()]
    return [
        Report(task_id=line["task_id"], epoch=line["lease_epoch"], start=line["at"])
        for line in lines
        if line["what"] == "ends"
    ]


def check_linearizable(record: Record) -> int:
    """Every task's calls, events, results and end fit into one order; returns how many operations that were.

    Raises AssertionError with the counterexample.
    """
    told = trace(record.log)
    seen: dict[int, float] = {}
    for follower in record.followers.values():
        for sequence, at in follower.arrived.items():
            seen[sequence] = min(at, seen.get(sequence, math.inf))
    reports: dict[str, list[Report]] = {}
    for report in record.reports:
        reports.setdefault(report.task_id, []).append(report)
    for task_id, calls in by_task([*record.calls, *_last_looks(record)]).items():
        wrong = check_task(told.get(("default", task_id), []), calls, reports.get(task_id, []), seen)
        assert not wrong, f"task {task_id} is not linearizable\n{wrong}"
    return len(record.calls) + len(record.log) + len(record.reports)


def _last_looks(record: Record) -> list[Call]:
    """Return the store's state of every task that callers know of, as a read after all."""
    last = asyncio.get_running_loop().time()
    known = {call.task_id for call in record.calls}
    look = {"caller": "store", "verb": "store", "start": last, "asked": last, "end": last}
    return [
        Call(task_id=task_id, task=record.tasks[task_id], **look)  # type: ignore[arg-type]  # fields of Call
        if task_id in record.tasks
        else Call(task_id=task_id, refusal="NOT_FOUND", **look)  # type: ignore[arg-type]  # fields of Call
        for task_id in sorted(known)
    ]


def check_followers(record: Record) -> None:
    """Every subscriber saw every event of the log once, in order, byte by byte, wherever its streams went."""
    for name, follower in record.followers.items():
        assert len(follower.events) >= record.head, name
        assert difference(follower.events, record.log[: len(follower.events)]) == "", name


def check_results(record: Record) -> None:
    """No attempt's result was accepted twice, and the result that is kept is the accepted one."""
    accepted = Counter(
        (event.task_id, event.task_succeeded.attempt) for event in record.log if event.HasField("task_succeeded")
    )
    assert {what: count for what, count in accepted.items() if count > 1} == {}
    for task in record.tasks.values():
        if task.HasField("result"):
            assert _epoch_of(task) == task.attempts[-1].lease_epoch, task
    acknowledged = [report for report in record.reports if report.acknowledged]
    for report in acknowledged:
        assert report.task_id in record.tasks, report


def _epoch_of(task: Task) -> int:
    if task.result.content_type == "text/plain":
        task_id, _, epoch = task.result.data.decode().rpartition("/")
        assert task_id == task.task_id
        return int(epoch)
    result, given = value(task.result), value(task.spec.input)
    assert isinstance(result, dict) and isinstance(given, dict), task  # noqa: PT018 - both are what the worker made
    assert result["number"] == given["number"], task
    return int(str(result["lease_epoch"]))


def check_acknowledged(record: Record) -> None:
    """Every task whose delegation was answered is there, and every one the log tells of was asked for."""
    answered = {call.task_id for call in record.calls if call.verb == "delegate" and call.task is not None}
    assert answered <= record.tasks.keys()
    asked = {call.task_id for call in record.calls if call.verb == "delegate"}
    assert {task_id for task_id in record.tasks if not task_id.startswith("probe-")} <= asked


def burned(log: Iterable[Event], restarts: Sequence[tuple[int, int]]) -> list[str]:
    """Return the attempts that ended while replicas were restarted one by one, other than as the work told."""
    found = []
    for event in log:
        fact = event.WhichOneof("fact") or ""
        if fact not in _BURNING or not any(first < event.sequence <= last for first, last in restarts):
            continue
        details = getattr(event, fact)
        reason = details.error.reason if hasattr(details, "error") else getattr(details, "reason", "")
        if reason not in ("AS_TOLD", "RETRY_DUE"):
            found.append(f"{event.sequence} {fact} {event.task_id} {reason}")
    return found
