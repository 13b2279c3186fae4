"""The verbs on tasks that callers use: delegate, cancel, retry, pause, resume, respond, review."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple, cast

from . import attempts, transitions
from .assign import Candidate, requirement
from .attempts import Step
from .clock import Clock
from .decide import Caller, Decisions, View, recall, remember
from .errors import BadRequest, Exists, Overloaded
from .hooks import Asked, Hooks, delegated_as
from .index import Index
from .ports import NewId
from .proposals import Delegating
from .records import Kind, Payload
from .replicas import Role
from .reserving import Reserving
from .sessions import SessionState
from .tasks import MAX_DEPTH, ChildrenPolicy, DependencyPolicy, Task, TaskSpec, TaskState


class NewTask(NamedTuple):
    """A task to be delegated; an empty id lets the kernel make one."""

    spec: TaskSpec
    id: str = ""


class TaskVerbs:
    """Every method answers when what it changed is durable.

    A call with a known request id answers with the outcome as it stands now.
    """

    def __init__(
        self,
        decisions: Decisions,
        index: Index,
        clock: Clock,
        new_id: NewId,
        hooks: Hooks,
        *,
        dispatching: Role,
        maximum_queued: int = 1_000_000,
    ) -> None:
        self._dispatching = dispatching
        self._hooks = hooks
        self._decisions = decisions
        self._index = index
        self._memory = decisions.memory
        self._clock = clock
        self._new_id = new_id
        self._maximum_queued = maximum_queued

    async def delegate(self, caller: Caller, tasks: Sequence[NewTask], *, use_existing: bool = False) -> list[Task]:
        """Accept tasks, all or none; returns them in the order given.

        A task whose turn it is goes straight to a free agent. Raises `BadRequest` (dependency cycle, reused request
        id),
        `NotFound` (pinned agent, parent, dependency), `Exists` (unless `use_existing`), `Overloaded` (queue full).
        """
        chosen = {task_id for _, task_id in tasks if task_id}
        specs = {task_id or self._new_id(): spec for spec, task_id in tasks}
        if len(specs) != len(tasks):
            raise BadRequest("two tasks of this call have the same task_id", field="tasks")
        order = _sorted(specs)

        def decide(view: View) -> list[Task]:
            known = recall(view, caller)
            if known is not None:
                return [view.task(caller.namespace, task_id) for task_id in known.refs]
            if self._index.pool.queued + len(specs) > self._maximum_queued:
                raise Overloaded("the queue is full", reason="QUOTA_EXCEEDED", retry_after=1.0)
            now, made = self._clock.now(), dict[str, Task]()
            before = self._hooks.current.before_delegate
            # A free agent is taken at once when nobody who came earlier wants one: a commit less.
            straight = self._dispatching.held and not self._index.pool.open
            with Reserving(self._index.pool, len(specs)) as taken:
                for task_id in order:
                    existing = view.peek((Kind.TASK, (caller.namespace, task_id))) if task_id in chosen else None
                    if existing is None:
                        spec = specs[task_id]
                        if before:
                            spec = self._amended(before, view, caller, task_id, spec, made, now)
                        free = taken if straight else None
                        made[task_id] = self._new_task(view, caller.namespace, task_id, spec, made, free, now)
                    elif use_existing:
                        view.check(existing)
                        made[task_id] = cast(Task, existing)
                    else:
                        why = f"task_id {task_id!r} is in use"
                        raise Exists(why, reason="TASK_EXISTS", metadata={"task_id": task_id})
            remember(view, caller, list(specs), now)
            return [made[task_id] for task_id in specs]

        return await self._decisions.run(decide)

    def _amended(
        self,
        before: Asked[Delegating],
        view: View,
        caller: Caller,
        task_id: str,
        spec: TaskSpec,
        made: Mapping[str, Task],
        now: float,
    ) -> TaskSpec:
        ancestors = self._ancestors(view, caller.namespace, spec, made) if spec.parent_task_id else ()
        return delegated_as(before, view, caller.namespace, caller.principal, task_id, spec, ancestors, now)

    def _new_task(
        self,
        view: View,
        namespace: str,
        task_id: str,
        spec: TaskSpec,
        made: Mapping[str, Task],
        taken: Reserving | None,
        now: float,
    ) -> Task:
        """Put a new task; with `taken` it goes straight to an agent that is free for it."""
        if spec.agent_id:
            view.agent(namespace, spec.agent_id)
        ancestors = self._ancestors(view, namespace, spec, made) if spec.parent_task_id else ()
        failed, waiting = self._dependencies(view, namespace, spec, made) if spec.depends_on else ("", ())
        if not failed and not waiting and taken is not None:
            agent = self._taken(view, namespace, spec, taken)
            if agent is not None:
                task, facts = transitions.new_assigned(
                    namespace,
                    task_id,
                    spec,
                    agent.key[1],
                    agent.session_id,
                    ancestors=ancestors,
                    now=now,
                    floor=view.epoch_floor,
                )
                return view.put(task, *facts)
        task, facts = transitions.new(namespace, task_id, spec, ancestors=ancestors, waiting_on=waiting, now=now)
        if failed:
            task, more = transitions.fail_dependency(task, failed, now=now)
            return view.put(task, *facts, *more)
        return view.put(task, *facts)

    def _taken(self, view: View, namespace: str, spec: TaskSpec, taken: Reserving) -> Candidate | None:
        """Take a slot of the best agent that is free for a new task, None when there is none."""
        agent = taken.choose(requirement(namespace, spec), spec)
        if agent is None:
            return None
        if agent.key not in taken:
            record = view.find_agent(agent.key)
            session = view.find_session((namespace, agent.session_id))
            if record is None or session is None or session.state is not SessionState.OPEN:
                return None
            view.check(record)
            view.check(session)
            for ending in self._index.ending(agent.key, taken.most):
                view.check(ending)
            self._dispatching.check(view)
        taken.take(agent)
        return agent

    def _ancestors(self, view: View, namespace: str, spec: TaskSpec, made: Mapping[str, Task]) -> tuple[str, ...]:
        parent = made.get(spec.parent_task_id) or view.task(namespace, spec.parent_task_id)
        if parent.terminal or parent.state is TaskState.CANCEL_REQUESTED:
            raise attempts.illegal(parent, "given children")
        if len(parent.ancestors) + 1 > MAX_DEPTH:
            raise BadRequest(f"tasks nest at most {MAX_DEPTH} deep", field="spec.parent_task_id")
        if parent.id not in made:
            view.check(parent)
        return (*parent.ancestors, parent.id)

    def _dependencies(
        self, view: View, namespace: str, spec: TaskSpec, made: Mapping[str, Task]
    ) -> tuple[str, tuple[str, ...]]:
        """Return the dependency that has failed already, if that matters, and those that have not ended."""
        waiting: list[str] = []
        for task_id in spec.depends_on:
            other = made.get(task_id) or view.task(namespace, task_id)
            if not other.terminal:
                waiting.append(task_id)
            elif other.state is not TaskState.SUCCEEDED and spec.dependency_policy is DependencyPolicy.FAIL:
                return task_id, ()
            if task_id not in made:
                view.check(other)
        return "", tuple(waiting)

    async def cancel(self, caller: Caller, task_id: str, reason: str) -> Task:
        """Ask a task to end: CANCELED when nobody holds it and no child has to be waited for, else CANCEL_REQUESTED."""

        def change(task: Task) -> Step:
            waits = task.spec.children_policy is ChildrenPolicy.WAIT and task.key in self._index.children
            return transitions.request_cancel(task, reason, now=self._clock.now(), wait=waits)

        return await self._change(caller, task_id, change)

    async def retry(self, caller: Caller, task_id: str) -> Task:
        """Begin a new attempt of a terminal task, or of one in RETRY_WAIT at once."""

        def change(view: View, task: Task) -> Step:
            if task.terminal:
                # Its progress left the memory with it; the next attempt is given the checkpoint.
                view.find_progress(task.key)
            return transitions.retry_now(task, now=self._clock.now())

        return await self._change_with(caller, task_id, change)

    async def pause(self, caller: Caller, task_id: str) -> Task:
        """Pause a task; a held one keeps its lease."""
        return await self._change(caller, task_id, lambda task: transitions.pause(task, now=self._clock.now()))

    async def resume(self, caller: Caller, task_id: str) -> Task:
        """Let a paused task go on."""
        return await self._change(caller, task_id, lambda task: transitions.resume(task, now=self._clock.now()))

    async def respond(self, caller: Caller, task_id: str, answer: Payload) -> Task:
        """Answer the question of a task in INPUT_REQUIRED."""
        return await self._change(
            caller, task_id, lambda task: transitions.respond(task, answer, now=self._clock.now())
        )

    async def review(self, caller: Caller, task_id: str, accept: bool, comment: str) -> Task:
        """Accept the result of a task in REPORTED, or send it back."""

        def change(task: Task) -> Step:
            now = self._clock.now()
            return transitions.approve(task, now=now) if accept else transitions.send_back(task, comment, now=now)

        return await self._change(caller, task_id, change)

    async def _change(self, caller: Caller, task_id: str, change: Callable[[Task], Step]) -> Task:
        return await self._change_with(caller, task_id, lambda _, task: change(task))

    async def _change_with(self, caller: Caller, task_id: str, change: Callable[[View, Task], Step]) -> Task:
        def decide(view: View) -> Task:
            task = view.task(caller.namespace, task_id)
            if recall(view, caller) is not None:
                return task
            changed, facts = change(view, task)
            if facts or changed is not task:
                changed = view.put(changed, *facts)
            else:
                # That there is nothing to do is a claim about the task, which this replica may see too late.
                view.check(task)
            remember(view, caller, [task_id], self._clock.now())
            return changed

        return await self._decisions.run(decide)


def _sorted(specs: Mapping[str, TaskSpec]) -> list[str]:
    """Return the tasks of a call: parents and dependencies first, then by priority; raises `BadRequest` on a cycle."""
    priorities = {task_id: spec.priority for task_id, spec in specs.items()}
    by_priority = sorted(specs, key=priorities.__getitem__)
    if not [spec for spec in specs.values() if spec.depends_on or spec.parent_task_id]:
        return by_priority
    graph: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(by_priority, ()))
    for task_id in by_priority:
        spec = specs[task_id]
        graph.add(task_id, *(other for other in (*spec.depends_on, spec.parent_task_id) if other in specs))
    try:
        return list(graph.static_order())
    except CycleError as error:
        circle = " → ".join(cast("list[str]", error.args[1]))
        raise BadRequest(
            f"the tasks depend on each other in a circle: {circle}", reason="DEPENDENCY_CYCLE", field="tasks"
        ) from None
