"""The state machine of a task: pure functions from a task to the changed task and the facts that tell of it.

Each raises `Refused` when the state does not allow the transition, and changes nothing then. How an attempt begins and
ends is in `attempts.py`.
"""

from __future__ import annotations

from .attempts import Step, accept, canceled, closed, failed, illegal, told_assigned
from .events import Event, EventType, task_event
from .records import Kind, Payload
from .tasks import (
    MAX_ANSWERS_KEPT,
    TERMINAL,
    ErrorClass,
    Lease,
    Question,
    Task,
    TaskError,
    TaskSpec,
    TaskState,
    make_lease,
    make_task,
)

# Looked up once, as in `memory.py`.
_TASK, _TASK_DELEGATED = Kind.TASK, EventType.TASK_DELEGATED
_BLOCKED, QUEUED, _ASSIGNED, _RETRY_WAIT = TaskState.BLOCKED, TaskState.QUEUED, TaskState.ASSIGNED, TaskState.RETRY_WAIT
_INPUT_REQUIRED, _PAUSED = TaskState.INPUT_REQUIRED, TaskState.PAUSED
_UNTIMED = TERMINAL | {TaskState.REPORTED}

WAITING = frozenset({TaskState.BLOCKED, TaskState.QUEUED, TaskState.RETRY_WAIT})
"""Open states in which nobody holds the task."""


def new(
    namespace: str, task_id: str, spec: TaskSpec, *, ancestors: tuple[str, ...], waiting_on: tuple[str, ...], now: float
) -> Step:
    """Make a task: BLOCKED while it waits on others, else QUEUED."""
    state, key = _BLOCKED if waiting_on else QUEUED, (namespace, task_id)
    task = make_task(
        namespace=namespace,
        id=task_id,
        key=key,
        ref=(_TASK, key),
        spec=spec,
        state=state,
        ancestors=ancestors,
        waiting_on=waiting_on,
        create_time=now,
        update_time=now,
        queue_time=0.0 if waiting_on else now,
        close_deadline=now + spec.timeouts.schedule_to_close,
    )
    return task, (_delegated(namespace, task_id, spec, ancestors, str(state)),)


def new_assigned(
    namespace: str,
    task_id: str,
    spec: TaskSpec,
    agent_id: str,
    session_id: str,
    *,
    ancestors: tuple[str, ...],
    now: float,
    floor: int = 0,
) -> Step:
    """Make a task that an agent is free for: what `new` and then `attempts.assign` come to."""
    epoch, key = floor + 1, (namespace, task_id)
    task = make_task(
        namespace=namespace,
        id=task_id,
        key=key,
        ref=(_TASK, key),
        spec=spec,
        state=_ASSIGNED,
        ancestors=ancestors,
        attempt=1,
        lease_epoch=epoch,
        lease=make_lease(agent_id=agent_id, session_id=session_id, epoch=epoch, assign_time=now),
        create_time=now,
        update_time=now,
        queue_time=now,
        close_deadline=now + spec.timeouts.schedule_to_close,
    )
    return task, (_delegated(namespace, task_id, spec, ancestors, "QUEUED"), told_assigned(task, session_id))


def _delegated(namespace: str, task_id: str, spec: TaskSpec, ancestors: tuple[str, ...], state: str) -> Event:
    told = {"type": spec.type, "priority": spec.priority, "state": state, "parent_task_id": spec.parent_task_id}
    return Event(_TASK_DELEGATED, namespace, task_id, "", "", spec.role, spec.labels, ancestors, told)


def release(task: Task, ended: str, *, now: float) -> Step:
    """Note that a dependency has ended well (or is to be ignored); QUEUED when it was the last."""
    left = tuple(t for t in task.waiting_on if t != ended)
    if left or task.terminal:
        return task.evolve(waiting_on=left, update_time=now), ()
    if task.state is TaskState.PAUSED and task.paused_from is TaskState.BLOCKED:
        return task.evolve(waiting_on=left, paused_from=TaskState.QUEUED, update_time=now), ()
    if task.state is not TaskState.BLOCKED:
        return task.evolve(waiting_on=left, update_time=now), ()
    queued = task.evolve(waiting_on=left, state=TaskState.QUEUED, queue_time=now, update_time=now)
    return queued, (task_event(EventType.TASK_RELEASED, queued),)


def request_cancel(task: Task, reason: str, *, now: float, wait: bool = False) -> Step:
    """Ask for the end: CANCELED at once when nobody holds it, else CANCEL_REQUESTED; terminal tasks stay as they are.

    `wait`: children are to end first, so a task that nobody holds waits in CANCEL_REQUESTED too.
    """
    if task.terminal or task.state is TaskState.CANCEL_REQUESTED:
        return task, ()
    if task.lease is None and not wait:
        return canceled(task, reason, now=now)
    asked = task.evolve(state=TaskState.CANCEL_REQUESTED, reason=reason, question=None, update_time=now)
    return asked, (task_event(EventType.TASK_CANCEL_REQUESTED, asked, reason=reason),)


def expire(task: Task, clock: str, *, now: float) -> Step:
    """End the task because a clock of the whole task ran out."""
    error = TaskError(error_class=ErrorClass.TIMEOUT, reason=clock, message=f"the {clock} clock ran out")
    told = task_event(EventType.TASK_EXPIRED, task, clock=clock)
    ended = task.evolve(
        state=TaskState.EXPIRED,
        reason=error.message,
        error=error,
        attempts=closed(task, error, False, now),
        lease=None,
        question=None,
        update_time=now,
        end_time=now,
    )
    return ended, (told,)


def due(task: Task, *, now: float) -> Step:
    """Let a task whose wait after a failure is over go back to the queue."""
    if task.state is not TaskState.RETRY_WAIT:
        raise illegal(task, "queued")
    queued = task.evolve(state=TaskState.QUEUED, retry_time=0.0, queue_time=now, update_time=now)
    return queued, (task_event(EventType.TASK_REQUEUED, queued, attempt=task.attempt, reason="RETRY_DUE"),)


def fail_dependency(task: Task, ended: str, *, now: float) -> Step:
    """End a waiting task because one it depends on ended without success."""
    error = TaskError(
        error_class=ErrorClass.INVALID, reason="DEPENDENCY_FAILED", message=f"task {ended} ended without success"
    )
    return failed(task.evolve(waiting_on=(), update_time=now), error, now)


def pause(task: Task, *, now: float) -> Step:
    """Pause an open task; a held one keeps its lease. A paused one stays as it is."""
    if task.state is TaskState.PAUSED:
        return task, ()
    allowed = WAITING | {TaskState.ASSIGNED, TaskState.RUNNING}
    if task.state not in allowed:
        raise illegal(task, "paused")
    paused = task.evolve(state=TaskState.PAUSED, paused_from=task.state, pause_time=now, update_time=now)
    return paused, (task_event(EventType.TASK_PAUSED, paused),)


def resume(task: Task, *, now: float) -> Step:
    """Let a paused task go on where it was; the clock of a held attempt did not run."""
    if task.state is not TaskState.PAUSED:
        raise illegal(task, "resumed")
    lease = task.lease
    state = task.paused_from or TaskState.QUEUED
    changes: dict[str, object] = {}
    if lease is not None:
        state = TaskState.RUNNING if lease.start_time else TaskState.ASSIGNED
        if lease.close_deadline:
            changes["lease"] = Lease(
                agent_id=lease.agent_id,
                session_id=lease.session_id,
                epoch=lease.epoch,
                assign_time=lease.assign_time,
                start_time=lease.start_time,
                close_deadline=lease.close_deadline + (now - max(task.pause_time, lease.start_time)),
            )
    elif state in (TaskState.ASSIGNED, TaskState.RUNNING):
        state = TaskState.QUEUED
    if state is TaskState.QUEUED:
        changes["queue_time"] = now
    going = task.evolve(state=state, paused_from=None, pause_time=0.0, update_time=now, **changes)
    return going, (task_event(EventType.TASK_RESUMED, going, state=state.value),)


def ask(task: Task, question: Question, *, now: float) -> Step:
    """Note the question of the agent: INPUT_REQUIRED; with `release_slot` the lease ends."""
    task, facts = accept(task, now=now)
    if task.state is not TaskState.RUNNING:
        raise illegal(task, "asked about")
    told = task_event(EventType.TASK_INPUT_REQUESTED, task, question=question.question[:1024])
    changes: dict[str, object] = {}
    if question.release_slot:
        changes = {"lease": None, "attempts": closed(task, None, False, now)}
    asked = task.evolve(state=TaskState.INPUT_REQUIRED, question=question, update_time=now, **changes)
    return asked, (*facts, told)


def respond(task: Task, answer: Payload, *, now: float, defaulted: bool = False) -> Step:
    """Answer the open question: the attempt goes on, or the task is QUEUED for one that knows the answer."""
    if task.state is not TaskState.INPUT_REQUIRED:
        raise illegal(task, "answered")
    held = task.lease is not None
    answered = task.evolve(
        state=TaskState.RUNNING if held else TaskState.QUEUED,
        question=None,
        answers=(*task.answers, answer)[-MAX_ANSWERS_KEPT:],
        queue_time=task.queue_time if held else now,
        update_time=now,
    )
    return answered, (task_event(EventType.TASK_INPUT_RECEIVED, answered, defaulted=defaulted),)


def fail_without_lease(task: Task, error: TaskError, *, now: float) -> Step:
    """End a task that waits for an answer nobody gives, and that nobody holds."""
    return failed(task.evolve(question=None, update_time=now), error, now)


def approve(task: Task, *, now: float) -> Step:
    """Accept the reported result: SUCCEEDED."""
    if task.state is not TaskState.REPORTED:
        raise illegal(task, "reviewed")
    done = task.evolve(state=TaskState.SUCCEEDED, update_time=now, end_time=now)
    return done, (task_event(EventType.TASK_SUCCEEDED, done, attempt=done.attempt),)


def send_back(task: Task, comment: str, *, now: float) -> Step:
    """Refuse the reported result: QUEUED again, with the comment among the answers; FAILED when no attempt is left."""
    if task.state is not TaskState.REPORTED:
        raise illegal(task, "reviewed")
    told = task_event(EventType.TASK_SENT_BACK, task, comment=comment)
    if task.counted_attempts >= task.spec.retry.maximum_attempts:
        error = TaskError(error_class=ErrorClass.TOOL, reason="SENT_BACK", message=comment)
        ended, facts = failed(task, error, now)
        return ended.evolve(update_time=now), (told, *facts)
    note = Payload(content_type="text/plain", data=comment.encode())
    queued = task.evolve(
        state=TaskState.QUEUED,
        result=None,
        answers=(*task.answers, note)[-MAX_ANSWERS_KEPT:],
        queue_time=now,
        update_time=now,
    )
    return queued, (told,)


def retry_now(task: Task, *, now: float) -> Step:
    """Begin a new attempt of a terminal task, with fresh clocks and attempts; or of one in RETRY_WAIT at once."""
    if task.state is TaskState.RETRY_WAIT:
        return due(task, now=now)
    if not task.terminal:
        raise illegal(task, "retried")
    again = task.evolve(
        state=TaskState.QUEUED,
        reason="",
        counted_attempts=0,
        lost_leases=0,
        waiting_on=(),
        avoid=(),
        result=None,
        error=None,
        end_time=0.0,
        retry_time=0.0,
        queue_time=now,
        close_deadline=now + task.spec.timeouts.schedule_to_close,
        update_time=now,
    )
    return again, (task_event(EventType.TASK_RETRIED, again, previous_state=task.state.value),)


def next_deadline(task: Task, accept_timeout: float) -> tuple[float, str] | None:
    """Return when the next clock of this task runs out, and that clock's name; None when none runs."""
    state = task.state
    if state in _UNTIMED:
        return None
    lease = task.lease
    time, clock = task.close_deadline, ""
    if state is QUEUED:
        time, clock = task.queue_time + task.spec.timeouts.schedule_to_start, "SCHEDULE_TO_START"
    elif state is _RETRY_WAIT:
        time, clock = task.retry_time, "RETRY"
    elif state is _INPUT_REQUIRED and task.question and task.question.deadline:
        time, clock = task.question.deadline, "INPUT"
    elif lease is not None and state is not _PAUSED:
        if lease.close_deadline:
            time, clock = lease.close_deadline, "START_TO_CLOSE"
        else:
            time, clock = lease.assign_time + accept_timeout, "ACCEPT"
    return (time, clock) if clock and time < task.close_deadline else (task.close_deadline, "SCHEDULE_TO_CLOSE")
