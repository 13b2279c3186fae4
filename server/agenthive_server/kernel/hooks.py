"""Where hooks stand in the verbs: a proposal is made of the decision under way, shown to each, and taken back.

A decision is made again after a conflict, and its hooks are asked again, each time with a new proposal over the new
change set: of what they did before nothing is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from . import attempts, transitions
from .agents import AgentSpec
from .attempts import Step
from .decide import View
from .errors import KernelError
from .pool import Pool
from .proposals import NO_HOOKS, Completing, Delegating, HookSet, Joining, Spawning
from .records import Payload, evolved
from .session_items import Hello, HostedAgent
from .sessions import Session
from .state import StateRows
from .tasks import ErrorClass, Task, TaskError, TaskSpec, TaskState

P = TypeVar("P")
Asked = Sequence[Callable[[P], None]]


class Hooks:
    """The hooks in effect. A decision reads `current` once and keeps to it; without hooks that is all it costs."""

    __slots__ = ("_pool", "current")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.current = NO_HOOKS

    def swap(self, hooks: HookSet) -> None:
        """Put other hooks in place of these, for the decisions that begin from now on."""
        self.current = hooks
        self._pool.scorers = hooks.score_agents


class Unwritten(StateRows):
    """The state of plugins for hooks that are asked what they think: what they write is dropped."""

    __slots__ = ()

    def write(self, plugin: str, key: str, value: bytes | None) -> None:
        """Drop it."""


def spawned_as(
    hooks: Asked[Spawning],
    view: View,
    namespace: str,
    principal: str,
    agent_id: str,
    spec: AgentSpec,
    now: float,
    *,
    known: bool = False,
) -> AgentSpec:
    """Return the specification an agent is recorded with; raises what a hook refuses with.

    `known`: its worker introduces it anew with another specification; nothing is spawned, so nothing is written.
    """
    rows = Unwritten(view) if known else StateRows(view)
    proposal = Spawning(namespace=namespace, principal=principal, now=now, rows=rows, agent_id=agent_id, spec=spec)
    for hook in hooks:
        hook(proposal)
    return proposal.spec


def delegated_as(
    hooks: Asked[Delegating],
    view: View,
    namespace: str,
    principal: str,
    task_id: str,
    spec: TaskSpec,
    ancestors: tuple[str, ...],
    now: float,
) -> TaskSpec:
    """Return the specification a task is accepted with; raises what a hook refuses with."""
    proposal = Delegating(
        namespace=namespace,
        principal=principal,
        now=now,
        rows=StateRows(view),
        task_id=task_id,
        spec=spec,
        ancestors=ancestors,
    )
    for hook in hooks:
        hook(proposal)
    return proposal.spec


def completed(
    hooks: Asked[Completing], view: View, session: Session, task: Task, result: Payload, now: float, chance: float
) -> Step:
    """End an attempt that reports a result as the hooks will have it: taken, sent back, or failed.

    A veto fails the attempt for good, with class POLICY. A hook that must be asked and cannot be lets nothing through:
    the attempt fails too, but as one that the retry policy may repeat. An error is no answer for a worker, which has
    nothing else to say.
    """
    lease = task.lease
    proposal = Completing(
        namespace=task.namespace,
        principal=session.principal,
        now=now,
        rows=StateRows(view),
        task=task,
        result=result,
        agent_id=lease.agent_id if lease else "",
    )
    try:
        for hook in hooks:
            hook(proposal)
    except KernelError as refusal:
        broken = refusal.reason == "PLUGIN_FAILED"
        error = TaskError(
            error_class=ErrorClass.TOOL if broken else ErrorClass.POLICY,
            reason=refusal.reason,
            message=refusal.message,
        )
        return attempts.fail_attempt(task, error, now=now, chance=chance)
    if not proposal.sent_back_by:
        return attempts.report(task, proposal.result, now=now)
    return _sent_back(task, proposal.result, proposal.comment, now)


def _sent_back(task: Task, result: Payload, comment: str, now: float) -> Step:
    if task.state is TaskState.CANCEL_REQUESTED:
        return attempts.canceled(task, task.reason, now=now)
    # As if the task had asked for a review and the reviewer did not like it.
    reviewed = task.evolve(spec=evolved(task.spec, {"requires_review": True}))
    reported, facts = attempts.report(reviewed, result, now=now)
    back, more = transitions.send_back(reported, comment, now=now)
    back = back.evolve(spec=task.spec)
    if task.state is TaskState.PAUSED and back.state is TaskState.QUEUED:
        back = back.evolve(state=TaskState.PAUSED, paused_from=TaskState.QUEUED)
    return back, (*facts, *more)


def joining(
    hooks: Asked[Joining],
    view: View,
    namespace: str,
    principal: str,
    hello: Hello,
    now: float,
    *,
    peer: str = "",
    notes: Mapping[str, Any] | None = None,
    asking: bool = False,
) -> Joining:
    """Return what became of the request of a worker to join; raises what a hook refuses with.

    `principal` in it is who the worker is from now on. `asking`: nothing is opened yet, so nothing is written.
    """
    old = view.find_session((namespace, hello.session_id)) if hello.session_id else None
    proposal = Joining(
        namespace=namespace,
        principal=principal,
        now=now,
        rows=Unwritten(view) if asking else StateRows(view),
        agents=hello.agents,
        session_id=hello.session_id,
        session_principal=old.principal if old else "",
        join_token=hello.join_token,
        credential=hello.credential,
        runner=hello.runner,
        labels=hello.labels,
        peer=peer,
        notes=notes or {},
    )
    for hook in hooks:
        hook(proposal)
    return proposal


def reported(hooks: Asked[Joining], view: View, session: Session, agent: HostedAgent, now: float) -> None:
    """Ask whether an open session may bring one more agent along; raises what a hook refuses with."""
    proposal = Joining(
        namespace=session.namespace,
        principal=session.principal,
        now=now,
        rows=StateRows(view),
        agents=(agent,),
        session_id=session.id,
        session_principal=session.principal,
        runner=session.runner,
        labels=session.labels,
        reported=True,
    )
    for hook in hooks:
        hook(proposal)
