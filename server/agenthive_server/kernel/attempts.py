"""The life of one attempt at a task: assigned, accepted, and ended by a result, an error, a loss or a cancellation.

Pure functions from a task to the changed task and the facts that tell of it. Each raises `Refused` when the state does
not allow the transition, and changes nothing then. The other transitions of a task are in `transitions.py`.
"""

from __future__ import annotations

from . import retry
from .errors import Refused
from .events import Event, EventType, new_task_event, task_event
from .records import Payload, evolved
from .tasks import (
    MAX_ATTEMPTS_KEPT,
    Attempt,
    ChildrenPolicy,
    ErrorClass,
    Lease,
    Task,
    TaskError,
    TaskState,
    make_attempt,
    make_lease,
)

Step = tuple[Task, tuple[Event, ...]]
"""The task as it becomes and the facts that tell of it."""

# Looking up a member of an enum by its class costs more than a call before Python 3.12, and every task passes here.
_QUEUED, _ASSIGNED, _RUNNING = TaskState.QUEUED, TaskState.ASSIGNED, TaskState.RUNNING
_REPORTED, _SUCCEEDED = TaskState.REPORTED, TaskState.SUCCEEDED
_TASK_ASSIGNED, _TASK_STARTED = EventType.TASK_ASSIGNED, EventType.TASK_STARTED
_TASK_REPORTED, _TASK_SUCCEEDED = EventType.TASK_REPORTED, EventType.TASK_SUCCEEDED


def illegal(task: Task, verb: str) -> Refused:
    """Return the error for a transition the state does not allow."""
    return Refused(
        f"a task in {task.state} cannot be {verb}",
        metadata={"task_id": task.id, "state": str(task.state)},
    )


def assign(task: Task, agent_id: str, session_id: str, *, now: float, floor: int = 0) -> Step:
    """Lease a QUEUED task to an agent: a new attempt with a lease epoch one higher, and beyond `floor`."""
    if task.state is not _QUEUED:
        raise illegal(task, "assigned")
    epoch, attempt = max(task.lease_epoch, floor) + 1, task.attempt + 1
    changes = {
        "state": _ASSIGNED,
        "reason": "",
        "attempt": attempt,
        "lease_epoch": epoch,
        "lease": make_lease(agent_id=agent_id, session_id=session_id, epoch=epoch, assign_time=now),
        "update_time": now,
    }
    assigned = evolved(task, changes)
    return assigned, (told_assigned(assigned, session_id),)


def told_assigned(task: Task, session_id: str) -> Event:
    """Return the fact that a task was leased to an agent."""
    told = {"attempt": task.attempt, "lease_epoch": task.lease_epoch, "session_id": session_id}
    return new_task_event(_TASK_ASSIGNED, task, told)


def accept(task: Task, *, now: float) -> Step:
    """Note that the agent took the task: RUNNING. A task that runs already stays as it is."""
    lease = task.lease
    if lease is None or lease.start_time:
        return task, ()
    started = evolved(lease, {"start_time": now, "close_deadline": now + task.spec.timeouts.start_to_close})
    state = _RUNNING if task.state is _ASSIGNED else task.state
    changes = {"state": state, "lease": started, "update_time": now}
    return evolved(task, changes), (_started(task, lease),)


def _started(task: Task, lease: Lease) -> Event:
    return new_task_event(_TASK_STARTED, task, {"attempt": task.attempt, "lease_epoch": lease.epoch})


def report(
    task: Task, result: Payload, *, now: float, reported_epoch: int | None = None, output_blob_id: str = ""
) -> Step:
    """Take the result of the attempt: SUCCEEDED, or REPORTED where a review is asked for.

    It implies that the attempt was accepted, and tells so where nobody had said it before. `reported_epoch` and
    `output_blob_id`, where given, become those of the task.
    """
    lease = task.lease
    review = task.spec.requires_review
    kind = _TASK_REPORTED if review else _TASK_SUCCEEDED
    told: tuple[Event, ...] = (new_task_event(kind, task, {"attempt": task.attempt}),)
    if lease is not None and not lease.start_time:
        told = (_started(task, lease), *told)
    changes = {
        "state": _REPORTED if review else _SUCCEEDED,
        "reason": "",
        "attempts": closed(task, None, True, now, start_time=now),
        "counted_attempts": task.counted_attempts + 1,
        "lost_leases": 0,
        "lease": None,
        "reported_epoch": task.reported_epoch if reported_epoch is None else reported_epoch,
        "output_blob_id": output_blob_id or task.output_blob_id,
        "result": result,
        "error": None,
        "question": None,
        "update_time": now,
        "end_time": 0.0 if review else now,
    }
    return evolved(task, changes), told


def fail_attempt(task: Task, error: TaskError, *, now: float, chance: float, progressed: bool = False) -> Step:
    """End the attempt with an error and decide what follows: another one, FAILED, QUARANTINED, or CANCELED as asked.

    `progressed`: the attempt had reported progress or a checkpoint, so a lost lease does not point at poison.
    """
    if task.lease is None:
        raise illegal(task, "failed")
    agent_id = task.lease.agent_id
    if task.state is TaskState.CANCEL_REQUESTED:
        return canceled(task, task.reason, now=now, error=error)
    infra = error.error_class is ErrorClass.INFRA
    lost = (0 if progressed else task.lost_leases) + 1 if infra else 0
    decision = retry.decide(task.spec.retry, error, task.counted_attempts, chance)
    counted = task.counted_attempts + (1 if decision.counted else 0)
    ended = task.evolve(
        attempts=closed(task, error, decision.counted, now),
        counted_attempts=counted,
        lost_leases=lost,
        question=None,
        update_time=now,
    )
    if infra and lost >= retry.POISON_LIMIT:
        return _quarantined(ended, error, now)
    if decision.delay is None:
        return failed(ended, error, now)
    if infra:
        ended = avoiding(ended, agent_id, now + retry.LOST_AVOID, now)
        if decision.delay <= 0:
            return _requeued(ended, error.reason or "INFRA", now)
    return _waiting(ended, error, now + decision.delay, now)


def give_back(task: Task, reason: str, *, now: float, avoid_until: float = 0.0) -> Step:
    """End the attempt without counting it: rejected, not answered, handed back. QUEUED again, or CANCELED as asked."""
    if task.lease is None:
        raise illegal(task, "given back")
    if task.state is TaskState.CANCEL_REQUESTED:
        return canceled(task, task.reason, now=now)
    error = TaskError(error_class=ErrorClass.INFRA, reason=reason)
    if avoid_until:
        task = avoiding(task, task.lease.agent_id, avoid_until, now)
    return _requeued(task.evolve(attempts=closed(task, error, False, now)), reason, now)


def lose(task: Task, reason: str, *, now: float, chance: float, progressed: bool) -> Step:
    """End the lease because contact was lost or the pulse for it stopped."""
    if task.lease is not None and not task.lease.start_time:
        return give_back(task, reason, now=now)
    return fail_attempt(
        task, TaskError(error_class=ErrorClass.INFRA, reason=reason), now=now, chance=chance, progressed=progressed
    )


def canceled(task: Task, reason: str, *, now: float, error: TaskError | None = None) -> Step:
    """End the task as CANCELED. One that waits for its children only loses its lease now; the end follows theirs."""
    if task.lease is not None and task.spec.children_policy is ChildrenPolicy.WAIT:
        asked = task_event(EventType.TASK_CANCEL_REQUESTED, task, reason=reason)
        attempts = closed(task, error, False, now)
        changes = {"reason": reason, "attempts": attempts, "lease": None, "question": None, "update_time": now}
        return task.evolve(state=TaskState.CANCEL_REQUESTED, **changes), (asked,)
    told = task_event(EventType.TASK_CANCELED, task, reason=reason)
    ended = task.evolve(
        state=TaskState.CANCELED,
        reason=reason,
        attempts=closed(task, error, False, now),
        lease=None,
        question=None,
        update_time=now,
        end_time=now,
    )
    return ended, (told,)


def avoiding(task: Task, agent_id: str, until: float, now: float) -> Task:
    """Return the task, not to be offered to an agent before a time."""
    kept = tuple((a, t) for a, t in task.avoid if t > now and a != agent_id)[-15:]
    return task.evolve(avoid=(*kept, (agent_id, until)))


def closed(
    task: Task, error: TaskError | None, counted: bool, now: float, *, start_time: float = 0.0
) -> tuple[Attempt, ...]:
    """Return the attempts of a task with the present one added, ended now.

    `start_time` is that of an attempt nobody had accepted before.
    """
    lease = task.lease
    if lease is None:
        return task.attempts
    attempt = make_attempt(
        number=task.attempt,
        agent_id=lease.agent_id,
        epoch=lease.epoch,
        assign_time=lease.assign_time,
        start_time=lease.start_time or start_time,
        end_time=now,
        error=error,
        counted=counted,
    )
    return (*task.attempts[1 - MAX_ATTEMPTS_KEPT :], attempt)


def failed(task: Task, error: TaskError, now: float) -> Step:
    """End the task as FAILED."""
    told = task_event(EventType.TASK_FAILED, task, attempt=task.attempt, error=error)
    return task.evolve(state=TaskState.FAILED, reason=error.message, error=error, lease=None, end_time=now), (told,)


def _quarantined(task: Task, error: TaskError, now: float) -> Step:
    told = task_event(EventType.TASK_QUARANTINED, task, lost_leases=task.lost_leases)
    ended = task.evolve(state=TaskState.QUARANTINED, reason=error.message, error=error, lease=None, end_time=now)
    return ended, (told,)


def _waiting(task: Task, error: TaskError, retry_time: float, now: float) -> Step:
    told = task_event(EventType.TASK_RETRY_SCHEDULED, task, attempt=task.attempt, error=error, retry_time=retry_time)
    if task.state is TaskState.PAUSED:
        return task.evolve(paused_from=TaskState.RETRY_WAIT, retry_time=retry_time, lease=None, error=error), (told,)
    return (
        task.evolve(state=TaskState.RETRY_WAIT, retry_time=retry_time, lease=None, error=error, reason=error.message),
        (told,),
    )


def _requeued(task: Task, reason: str, now: float) -> Step:
    told = task_event(EventType.TASK_REQUEUED, task, attempt=task.attempt, reason=reason)
    if task.state is TaskState.PAUSED:
        return task.evolve(paused_from=TaskState.QUEUED, lease=None, update_time=now), (told,)
    queued = task.evolve(
        state=TaskState.QUEUED, reason=reason, lease=None, question=None, queue_time=now, update_time=now
    )
    return queued, (told,)
