"""What each item of a worker does to the records: one function for each kind, run inside the decision of its frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import agent_transitions, attempts, message_verbs, transitions
from .agents import REMOTE, Agent, AgentSpec, AgentState
from .attempts import Step
from .decide import View
from .errors import BadRequest, KernelError, StaleAttempt, agent_not_found, task_not_found
from .events import Event
from .hooks import completed, reported, spawned_as
from .messages import MessageState
from .proposals import HookSet
from .records import Kind
from .session_items import (
    Accept,
    AgentReport,
    Ask,
    HandBack,
    HostedAgent,
    Item,
    MessagesDelivered,
    MessagesRead,
    Outgoing,
    Refusal,
    Reject,
    Result,
)
from .sessions import Session
from .tasks import ErrorClass, Progress, Task, TaskError, TaskState, Usage

# As in `attempts.py`: every result passes here.
_TASK = Kind.TASK


@dataclass(slots=True)
class Frame:
    """The decision of one frame: what it sees, whose it is, when, and where chance comes from."""

    view: View
    session: Session
    now: float
    chance: Callable[[], float]
    new_id: Callable[[], str]
    # Blobs that hold the output of attempts that end in this frame, by task id.
    outputs: dict[str, str]
    hooks: HookSet
    # The agent that holds the task looked at last: most frames are about one.
    holder: Agent | None = None

    def find_holder(self, agent_id: str) -> Agent | None:
        """Return an agent as this decision sees it, or None, and remember it as `holder`."""
        agent = self.holder
        if agent is None or agent.id != agent_id:
            agent = self.holder = self.view.find_agent((self.session.namespace, agent_id))
        return agent

    def put_agent(self, agent: Agent, facts: Sequence[Event] = ()) -> Agent:
        """Write an agent, so that `find_holder` finds it; returns it with its new revision."""
        self.holder = None
        return self.view.put(agent, *facts)


def apply_items(frame: Frame, entries: Sequence[Item], start: int) -> list[Refusal]:
    """Apply items in their order, of which the first has the index `start`.

    Returns those that could not be applied; they wrote nothing.
    """
    ended, progress = _looked_through(entries)
    if progress:
        frame.view.need((Kind.PROGRESS, (frame.session.namespace, task_id)) for task_id in progress)
    refusals: list[Refusal] = []
    for index, item in enumerate(entries, start):
        if type(item) is Accept and (item.task_id, item.epoch) in ended:
            # The result beside it implies that the task was accepted.
            continue
        try:
            _APPLY[type(item)](frame, item)
        except KernelError as error:
            refusals.append(Refusal(index, error.reason, error.message, getattr(item, "task_id", "")))
    return refusals


def _looked_through(entries: Sequence[Item]) -> tuple[set[tuple[str, int]], list[str]]:
    """Return task and epoch of all results, and the tasks whose progress is read or written."""
    ended, progress = set[tuple[str, int]](), list[str]()
    for item in entries:
        if type(item) is Accept:
            continue
        if type(item) is Result:
            ended.add((item.task_id, item.epoch))
            if item.usage is not None or item.error is not None:
                progress.append(item.task_id)
        elif (type(item) is HandBack or type(item) is Ask) and item.checkpoint:
            progress.append(item.task_id)
    return ended, progress


def _held(frame: Frame, task_id: str, epoch: int) -> Task | None:
    """Return the task if this session holds it with this epoch, None if its end was reported before; else raise.

    The agent that holds it is `frame.holder` then.
    """
    session = frame.session
    task: Task | None = frame.view.find((_TASK, (session.namespace, task_id)))  # type: ignore[assignment]  # the kind says so
    if task is None:
        raise task_not_found(task_id)
    lease = task.lease
    if lease is not None and lease.epoch == epoch and lease.session_id == session.id:
        agent = frame.find_holder(lease.agent_id)
        if agent is not None and agent.session_id and agent.session_id != session.id:
            raise StaleAttempt(f"agent {agent.id!r} lives in another session", reason="SESSION_FENCED")
        return task
    if epoch and epoch == task.reported_epoch:
        return None
    raise StaleAttempt(f"lease epoch {epoch} is over; the current one is {task.lease_epoch}")


def _put(frame: Frame, step: Step) -> None:
    task, facts = step
    if facts:
        frame.view.put(task, *facts)


def _accept(frame: Frame, item: Accept) -> None:
    task = _held(frame, item.task_id, item.epoch)
    if task is not None:
        _put(frame, attempts.accept(task, now=frame.now))
        _answered(frame)


def _answered(frame: Frame) -> None:
    agent = frame.holder
    if agent is not None and agent.unanswered:
        frame.put_agent(agent.evolve(unanswered=0))


def _reject(frame: Frame, item: Reject) -> None:
    task = _held(frame, item.task_id, item.epoch)
    if task is None:
        return
    _answered(frame)
    step = attempts.give_back(task, "REJECTED", now=frame.now, avoid_until=frame.now + item.retry_after)
    frame.view.put(step[0].evolve(reported_epoch=item.epoch), *step[1])


def _hand_back(frame: Frame, item: HandBack) -> None:
    task = _held(frame, item.task_id, item.epoch)
    if task is None:
        return
    if item.checkpoint:
        write_progress(frame.view, task, frame.now, checkpoint=item.checkpoint)
    _answered(frame)
    step = attempts.give_back(task, "HANDED_BACK", now=frame.now)
    frame.view.put(_closed(frame, step[0], item.epoch), *step[1])


def _closed(frame: Frame, task: Task, epoch: int) -> Task:
    blob = frame.outputs.get(task.id)
    return task.evolve(reported_epoch=epoch, output_blob_id=blob) if blob else task.evolve(reported_epoch=epoch)


def _result(frame: Frame, item: Result) -> None:
    task = _held(frame, item.task_id, item.epoch)
    if task is None:
        return
    _answered(frame)
    if item.usage is not None:
        write_progress(frame.view, task, frame.now, usage=item.usage)
    before = frame.hooks.before_complete
    if item.result is not None and not before:
        blob_id = frame.outputs.get(task.id, "")
        step = attempts.report(task, item.result, now=frame.now, reported_epoch=item.epoch, output_blob_id=blob_id)
        frame.view.put(step[0], *step[1])
        return
    if item.result is not None:
        step = completed(before, frame.view, frame.session, task, item.result, frame.now, frame.chance())
    elif item.error is not None:
        progress = frame.view.find_progress(task.key) if item.error.error_class is ErrorClass.INFRA else None
        progressed = progress is not None and progress.attempt == task.attempt
        step = attempts.fail_attempt(task, item.error, now=frame.now, chance=frame.chance(), progressed=progressed)
    elif task.state is TaskState.CANCEL_REQUESTED:
        step = attempts.canceled(task, task.reason, now=frame.now)
    else:
        error = TaskError(
            error_class=ErrorClass.TOOL, reason="CANCELED_BY_WORKER", message=item.canceled or "canceled by its worker"
        )
        step = attempts.fail_attempt(task, error, now=frame.now, chance=frame.chance())
    frame.view.put(_closed(frame, step[0], item.epoch), *step[1])


def _ask(frame: Frame, item: Ask) -> None:
    task = _held(frame, item.task_id, item.epoch)
    if task is None or task.state is TaskState.INPUT_REQUIRED:
        return
    span = task.spec.timeouts.input
    question = item.question
    step = transitions.ask(
        task,
        type(question)(
            question=question.question,
            schema=question.schema,
            default=question.default,
            release_slot=question.release_slot,
            deadline=frame.now + span if span else 0.0,
        ),
        now=frame.now,
    )
    _answered(frame)
    if item.checkpoint:
        write_progress(frame.view, task, frame.now, checkpoint=item.checkpoint)
    changed = step[0].evolve(reported_epoch=item.epoch) if question.release_slot else step[0]
    frame.view.put(changed, *step[1])


def _agent_report(frame: Frame, item: AgentReport) -> None:
    view, session, now = frame.view, frame.session, frame.now
    agent = view.find_agent((session.namespace, item.agent_id))
    if agent is None and item.spec is None:
        raise agent_not_found(item.agent_id)
    if frame.hooks.before_join and (agent is None or session.id not in (agent.session_id, agent.runner_session_id)):
        reported(frame.hooks.before_join, view, session, HostedAgent(agent_id=item.agent_id, spec=item.spec), now)
    if agent is None:
        agent = _registered(frame, item)
    if not _hosted_here(agent, session):
        raise StaleAttempt(f"agent {agent.id!r} lives in another session", reason="SESSION_FENCED")
    if item.state == "READY":
        step = agent_transitions.ready(agent, session.id, now=now)
    elif item.state == "SLEEPING":
        step = agent_transitions.asleep(agent, now=now)
    elif agent.state is AgentState.STOPPED:
        return
    else:
        state = AgentState.FAILED if item.state == "FAILED" else AgentState.STOPPED
        step = agent_transitions.ended(agent, state, item.reason, now=now, exit_code=item.exit_code)
    if step[0] is not agent:
        frame.put_agent(*step)


def _registered(frame: Frame, item: AgentReport) -> Agent:
    session, spec, before = frame.session, item.spec or AgentSpec(), frame.hooks.before_spawn
    if before:
        spec = spawned_as(before, frame.view, session.namespace, session.principal, item.agent_id, spec, frame.now)
    agent, facts = agent_transitions.spawn(
        session.namespace, item.agent_id, spec, now=frame.now, floor=frame.view.epoch_floor
    )
    return frame.put_agent(agent, facts)


def _hosted_here(agent: Agent, session: Session) -> bool:
    if agent.session_id:
        return agent.session_id == session.id
    return agent.runner_session_id == session.id or agent.spec.driver == REMOTE


def _messages(frame: Frame, agent_id: str, ids: tuple[str, ...], state: MessageState) -> None:
    for message_id in ids:
        message = frame.view.find_message((frame.session.namespace, message_id))
        if message is not None and (message.agent_id == agent_id or not message.agent_id):
            message_verbs.advance(frame.view, message, state)


def _delivered(frame: Frame, item: MessagesDelivered) -> None:
    _messages(frame, item.agent_id, item.message_ids, MessageState.DELIVERED)


def _read(frame: Frame, item: MessagesRead) -> None:
    _messages(frame, item.agent_id, item.message_ids, MessageState.READ)


def _outgoing(frame: Frame, item: Outgoing) -> None:
    sender = frame.view.find_agent((frame.session.namespace, item.sender_agent_id))
    if sender is None or sender.session_id != frame.session.id:
        raise BadRequest("the sender is no agent of this session", field="sender_agent_id")
    if not item.request_id:
        raise BadRequest("a message of an agent needs a request_id", field="request_id")
    message_verbs.send_from_agent(frame.view, frame.session, item, frame.new_id, frame.now)


def write_progress(
    view: View,
    task: Task,
    now: float,
    *,
    fraction: float | None = None,
    text: str | None = None,
    checkpoint: bytes | None = None,
    usage: Usage | None = None,
    context_usage: float | None = None,
) -> Progress:
    """Write what is new about an attempt; None means no news. A checkpoint outlives the attempt, the rest does not."""
    old = view.find_progress(task.key)
    if old is None:
        old = Progress(namespace=task.namespace, id=task.id, attempt=task.attempt)
    elif old.attempt != task.attempt:
        old = old.evolve(attempt=task.attempt, fraction=0.0, text="", usage=None, context_usage=0.0)
    news: dict[str, Any] = {
        "fraction": fraction,
        "text": text,
        "checkpoint": checkpoint,
        "usage": usage,
        "context_usage": context_usage,
    }
    return view.put(old.evolve(update_time=now, **{k: v for k, v in news.items() if v is not None}))


_APPLY: dict[type[Any], Callable[[Frame, Any], None]] = {
    Accept: _accept,
    Reject: _reject,
    HandBack: _hand_back,
    Result: _result,
    Ask: _ask,
    AgentReport: _agent_report,
    MessagesRead: _read,
    MessagesDelivered: _delivered,
    Outgoing: _outgoing,
}
