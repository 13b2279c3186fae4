"""Tasks, leases and sessions as the semantics promise them: a model that shares nothing with the kernel but its names.

The kernel tells what it did in events. The model knows which of them may come now, and what must have come by now.
"""

from __future__ import annotations

from dataclasses import dataclass, field

ACCEPT = 10.0
GRACE = 30.0
UNANSWERED = 3
SLACK = 3.0
"""How late a clock may be: it is looked at once a second, and what follows needs a moment."""

OPEN = {"QUEUED", "ASSIGNED", "RUNNING", "REPORTED", "RETRY_WAIT", "INPUT_REQUIRED", "PAUSED", "CANCEL_REQUESTED"}
OVER = {"SUCCEEDED", "FAILED", "CANCELED", "EXPIRED", "QUARANTINED"}


@dataclass
class Session:
    """One worker's contact, hosting one agent."""

    agent: str
    open: bool = True
    opened_at: float = 0.0
    lost_at: float = 0.0
    ended: bool = False
    # Assignments in a row without an answer.
    unanswered: int = 0


@dataclass
class Task:
    """One task."""

    id: str
    priority: int
    maximum: int
    review: bool
    start_to_close: float
    queued_at: float
    order: int
    state: str = "QUEUED"
    epoch: int = 0
    counted: int = 0
    lost: int = 0
    reported: int = 0
    session: str = ""
    agent: str = ""
    started: bool = False
    assigned_at: float = 0.0
    close_at: float = 0.0
    retry_at: tuple[float, float] = (0.0, 0.0)
    paused_from: str = ""
    paused_at: float = 0.0
    resumed_at: float = 0.0
    avoid: dict[str, float] = field(default_factory=dict)
    release: bool = False

    @property
    def held(self) -> bool:
        return bool(self.session)

    def free(self) -> None:
        self.session, self.agent, self.started, self.close_at = "", "", False, 0.0

    def queue(self, now: float) -> None:
        if self.state == "PAUSED":
            self.paused_from = "QUEUED"
        else:
            self.state, self.queued_at = "QUEUED", now

    def start(self, now: float) -> None:
        if not self.started:
            self.started, self.close_at = True, now + self.start_to_close
            if self.state == "ASSIGNED":
                self.state = "RUNNING"


class Wrong(AssertionError):
    """The kernel did what it must not, or did not do what it must."""


class Model:
    """What may be, and what must be."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.sessions: dict[str, Session] = {}
        self.current: dict[str, str] = {}
        self.orders = 0

    # What callers do: each raises `LookupError` when it is to be refused

    def delegate(
        self, task_id: str, priority: int, maximum: int, review: bool, start_to_close: float, now: float
    ) -> None:
        self.orders += 1
        self.tasks[task_id] = Task(task_id, priority, maximum, review, start_to_close, now, self.orders)

    def cancel(self, task: Task) -> None:
        if task.state in OVER or task.state == "CANCEL_REQUESTED":
            return
        task.state = "CANCEL_REQUESTED" if task.held else "CANCELED"

    def pause(self, task: Task, now: float) -> None:
        if task.state == "PAUSED":
            return
        if task.state not in ("QUEUED", "RETRY_WAIT", "ASSIGNED", "RUNNING"):
            raise LookupError
        task.paused_from, task.paused_at, task.state = task.state, now, "PAUSED"

    def resume(self, task: Task, now: float) -> None:
        if task.state != "PAUSED":
            raise LookupError
        task.resumed_at = now
        if task.held:
            task.state = "RUNNING" if task.started else "ASSIGNED"
            if task.started:
                task.close_at += now - max(task.paused_at, task.close_at - task.start_to_close)
        elif task.paused_from == "RETRY_WAIT":
            # Its wait may have ended meanwhile; then it is queued at the next look at the clocks.
            task.state, task.retry_at = "RETRY_WAIT", (task.retry_at[0], max(task.retry_at[1], now))
        else:
            task.state, task.queued_at = "QUEUED", now

    def respond(self, task: Task, now: float) -> None:
        if task.state != "INPUT_REQUIRED":
            raise LookupError
        if task.held:
            task.state = "RUNNING"
        else:
            task.state, task.queued_at = "QUEUED", now

    def retry(self, task: Task, now: float) -> None:
        if task.state in OVER:
            task.counted = task.lost = 0
            task.avoid.clear()
        elif task.state != "RETRY_WAIT":
            raise LookupError
        task.state, task.queued_at = "QUEUED", now

    def review(self, task: Task, accepted: bool, now: float) -> None:
        if task.state != "REPORTED":
            raise LookupError
        if accepted:
            task.state = "SUCCEEDED"
        elif task.counted >= task.maximum:
            task.state = "FAILED"
        else:
            task.state, task.queued_at = "QUEUED", now

    # What workers do: each returns the reason of the refusal, or nothing ----------------------------------------------

    def _stale(self, task: Task, session: str, epoch: int) -> str | None:
        """Whether it is refused (a reason), acknowledged as a repeat (empty), or to be applied (None)."""
        if task.held and task.session == session and task.epoch == epoch:
            self.sessions[session].unanswered = 0
            return None
        return "" if epoch and epoch == task.reported else "STALE_ATTEMPT"

    def accept(self, task: Task, session: str, epoch: int, now: float) -> str:
        stale = self._stale(task, session, epoch)
        if stale is None:
            task.start(now)
        return stale or ""

    def reject(self, task: Task, session: str, epoch: int, until: float, now: float) -> str:
        stale = self._stale(task, session, epoch)
        if stale is None:
            if task.state != "CANCEL_REQUESTED":
                task.avoid[task.agent] = until
            self._back(task, now)
            task.reported = epoch
        return stale or ""

    def hand_back(self, task: Task, session: str, epoch: int, now: float) -> str:
        stale = self._stale(task, session, epoch)
        if stale is None:
            self._back(task, now)
            task.reported = epoch
        return stale or ""

    def result(self, task: Task, session: str, epoch: int, now: float) -> str:
        stale = self._stale(task, session, epoch)
        if stale is None:
            task.counted += 1
            task.lost = 0
            task.state = "REPORTED" if task.review else "SUCCEEDED"
            task.free()
            task.reported = epoch
        return stale or ""

    def error(self, task: Task, session: str, epoch: int, kind: str, delay: float | None, now: float) -> str:
        stale = self._stale(task, session, epoch)
        if stale is None:
            self._failed(task, kind, delay, now)
            task.reported = epoch
        return stale or ""

    def ask(self, task: Task, session: str, epoch: int, release: bool, now: float) -> str:
        stale = self._stale(task, session, epoch)
        if stale is not None:
            return stale
        if task.state == "INPUT_REQUIRED":
            return ""
        if task.state not in ("ASSIGNED", "RUNNING"):
            return "ILLEGAL_TRANSITION"
        task.start(now)
        task.state = "INPUT_REQUIRED"
        if release:
            task.free()
            task.reported = epoch
        return ""

    def _back(self, task: Task, now: float) -> None:
        """The attempt ends uncounted."""
        task.free()
        if task.state == "CANCEL_REQUESTED":
            task.state = "CANCELED"
        else:
            task.queue(now)

    def _lost(self, task: Task, now: float) -> None:
        if task.started:
            self._failed(task, "INFRA", None, now)
        else:
            self._back(task, now)

    def _failed(self, task: Task, kind: str, delay: float | None, now: float) -> None:
        agent = task.agent
        task.free()
        if task.state == "CANCEL_REQUESTED":
            task.state = "CANCELED"
            return
        task.lost = task.lost + 1 if kind == "INFRA" else 0
        uncounted = kind in ("INFRA", "RATE_LIMITED", "QUOTA")
        last = not uncounted and task.counted + 1 >= task.maximum
        if not uncounted:
            task.counted += 1
        if kind == "INFRA" and task.lost >= 3:
            task.state = "QUARANTINED"
        elif kind in ("INVALID", "POLICY") or last:
            task.state = "FAILED"
        elif kind == "INFRA" and not delay:
            task.avoid[agent] = now + 5.0
            task.queue(now)
        else:
            if kind == "INFRA":
                task.avoid[agent] = now + 5.0
            longest = {"RATE_LIMITED": 36.0, "QUOTA": 36.0, "CONTEXT_FULL": 0.0}.get(kind, 60.0)
            wait = (delay, delay) if delay is not None else (30.0 if longest == 36.0 else 0.0, longest)
            task.retry_at = (now + wait[0], now + wait[1])
            if task.state == "PAUSED":
                task.paused_from = "RETRY_WAIT"
            else:
                task.state = "RETRY_WAIT"

    # Sessions ---------------------------------------------------------------------------------------------------------

    def connected(self, session_id: str, agent: str, now: float) -> None:
        """A hello without a session: the older session of the agent loses it, and its leases."""
        old = self.current.get(agent)
        self.sessions[session_id] = Session(agent, opened_at=now)
        self.current[agent] = session_id
        if old is not None:
            for task in self._held_by(old):
                self._lost(task, now)

    def resumed(self, session_id: str, now: float) -> bool:
        session = self.sessions[session_id]
        if session.ended:
            return False
        session.open, session.lost_at, session.opened_at = True, 0.0, now
        return True

    def lost(self, session_id: str, now: float) -> None:
        session = self.sessions[session_id]
        if session.open and not session.ended:
            session.open, session.lost_at = False, now

    def _held_by(self, session_id: str) -> list[Task]:
        return [task for task in self.tasks.values() if task.session == session_id]

    # What the kernel does by itself -----------------------------------------------------------------------------------

    def ended(self, session_id: str, now: float) -> None:
        """The kernel says that a session is over."""
        session = self.sessions[session_id]
        if session.ended:
            raise Wrong(f"{session_id} ended twice")
        # Nobody beats on a session that has lost its agent to a newer one.
        over = session.unanswered >= UNANSWERED or self.current[session.agent] != session_id
        if not over and (session.open or now < session.lost_at + GRACE):
            raise Wrong(f"{session_id} was ended within its grace")
        session.ended = True

    def requeued(self, task: Task, reason: str, now: float) -> None:
        """The kernel put a task back into the queue."""
        if reason == "RETRY_DUE":
            if task.state != "RETRY_WAIT" or now < task.retry_at[0]:
                raise Wrong(f"{task.id} is queued before its wait is over")
            task.state, task.queued_at = "QUEUED", now
        else:
            self._released(task, reason, now)

    def _released(self, task: Task, reason: str, now: float) -> None:
        if reason == "NO_ACCEPT":
            if task.started or now < self._told(task) + ACCEPT:
                raise Wrong(f"{task.id} had time to be accepted")
            task.avoid[task.agent] = now + ACCEPT
            self.sessions[task.session].unanswered += 1
            self._back(task, now)
        elif reason == "LEASE_LOST":
            if not self.sessions[task.session].ended:
                raise Wrong(f"{task.id} lost its lease though its session is not over")
            self._lost(task, now)
        else:
            raise Wrong(f"{task.id} was put back for {reason}")

    def lapsed(self, task: Task, now: float) -> None:
        """The kernel ended a held task's attempt in another way: its session was over, or its clock ran out."""
        if self.sessions[task.session].ended:
            self._lost(task, now)
        elif task.started and task.state != "PAUSED" and now >= task.close_at:
            self._failed(task, "TIMEOUT", None, now)
        elif not task.started and now >= self._told(task) + ACCEPT:
            self.sessions[task.session].unanswered += 1
            self._back(task, now)
        else:
            raise Wrong(f"the attempt of {task.id} was ended for no reason")

    def assigned(self, task: Task, agent: str, session_id: str, now: float) -> None:
        """The kernel gave a task to an agent."""
        session = self.sessions[session_id]
        if task.state != "QUEUED":
            raise Wrong(f"{task.id} was assigned in {task.state}")
        if session.ended or not session.open or self.current[agent] != session_id:
            raise Wrong(f"{task.id} was given to {session_id}, which is not in contact")
        if self.busy(agent):
            raise Wrong(f"{agent} has no slot for {task.id}")
        if task.avoid.get(agent, 0.0) > now:
            raise Wrong(f"{task.id} was to avoid {agent}")
        for other in self.tasks.values():
            first = other.state == "QUEUED" and other.priority < task.priority
            if first and other.avoid.get(agent, 0.0) + SLACK < now and other.queued_at < now:
                raise Wrong(f"{task.id} was preferred to {other.id}")
        task.state, task.session, task.agent = "ASSIGNED", session_id, agent
        task.epoch += 1
        task.assigned_at = now

    def _told(self, task: Task) -> float:
        """When its holder was told of a task last."""
        return max(task.assigned_at, self.sessions[task.session].opened_at)

    def busy(self, agent: str) -> bool:
        return any(task.agent == agent for task in self.tasks.values())

    def must(self, now: float) -> None:
        """Raise `Wrong` if something is overdue."""
        for name, session in self.sessions.items():
            late = not session.open and not session.ended and now > session.lost_at + GRACE + SLACK
            if late:
                raise Wrong(f"{name} outlived its grace")
        for task in self.tasks.values():
            self._must(task, now)

    def _must(self, task: Task, now: float) -> None:
        if task.state == "QUEUED":
            for agent, session_id in self.current.items():
                session = self.sessions[session_id]
                there = session.open and not session.ended and not self.busy(agent)
                if there and task.avoid.get(agent, 0.0) + SLACK < now:
                    raise Wrong(f"{task.id} waits although {agent} is free")
        elif task.state == "RETRY_WAIT" and now > task.retry_at[1] + SLACK:
            raise Wrong(f"{task.id} waits too long for its next attempt")
        elif task.held and self.sessions[task.session].ended:
            raise Wrong(f"{task.id} is held by a session that is over")
        elif task.held and task.state != "PAUSED":
            there = self.sessions[task.session].open
            late = now > max(self._told(task), task.resumed_at) + ACCEPT + SLACK
            if not task.started and there and late and task.state == "ASSIGNED":
                raise Wrong(f"{task.id} was not accepted in time and is still held")
            if task.started and now > task.close_at + SLACK:
                raise Wrong(f"{task.id} runs beyond its time")
