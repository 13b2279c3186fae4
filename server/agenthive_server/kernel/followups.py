"""What one event entails for any number of records: dependents released, children canceled, leases ended, mail sent.

A kernel handler with a stored cursor: it reads the log, acts in bounded change sets, and then moves its cursor. After
a crash it
acts again from the cursor; every action looks at the records as they are, so a repeat does nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import cast

from . import agent_transitions, attempts, message_verbs, transitions
from .agents import OVER, REMOTE, Agent, AgentState
from .clock import Clock
from .decide import Decisions, View
from .errors import CursorCompacted, KernelError
from .events import TERMINAL_EVENTS, Event, EventType
from .index import Index
from .memory import NEVER
from .messages import Broadcast, Message, MessageState
from .ports import Chance, Log, Notifier, Store
from .records import CursorRecord, Key, Kind
from .replicas import Role
from .session_verbs import LEFT
from .tasks import ChildrenPolicy, DependencyPolicy, Task, TaskState

BATCH = 200
"""Records changed at once."""

READ = 1_000
SAVE_EVERY = 2_000
SAVE_AFTER = 1.0
"""Events, and seconds, after which the cursor is stored."""

AGENT_GONE = frozenset(
    {EventType.AGENT_STOPPED, EventType.AGENT_FAILED, EventType.AGENT_LOST, EventType.AGENT_RESTARTING}
)
CANCELLING = frozenset({EventType.TASK_CANCEL_REQUESTED, EventType.TASK_CANCELED})

FOLLOWED = TERMINAL_EVENTS | AGENT_GONE | CANCELLING | {EventType.SESSION_ENDED, EventType.MESSAGE_SENT}
"""Events that may entail something."""

CURSOR: Key = ("", "kernel/followups")

_log = logging.getLogger(__name__)


class Followups:
    """Follows the log and does what events entail."""

    def __init__(
        self,
        decisions: Decisions,
        index: Index,
        store: Store,
        log: Log,
        notifier: Notifier,
        clock: Clock,
        chance: Chance,
        role: Role,
        known: Callable[[], float] = lambda: math.inf,
    ) -> None:
        """`known` says up to where in the log the memory knows what was committed: not beyond that is it followed."""
        self._role = role
        self._known = known
        self._decisions = decisions
        self._memory = decisions.memory
        self._index = index
        self._store = store
        self._log = log
        self._notifier = notifier
        self._clock = clock
        self._chance = chance
        self.position = 0
        self._saved = 0
        self._saved_at = 0.0
        self.failing = ""

    def begin(self) -> None:
        """Take up the stored cursor."""
        record = cast("CursorRecord | None", self._memory.latest((Kind.CURSOR, CURSOR)))
        self.position = self._saved = self._memory.followed_to = record.sequence if record else 0

    async def run(self) -> None:
        """Follow the log until cancelled, while this replica has the role; failures of the store delay it."""
        while True:
            try:
                if not self._role.held:
                    await self._role.acquire()
                    self.begin()
                self._look_again()
                read = await self._log.read(self.position, READ)
                known = self._known()
                events = read if not read or read[-1].sequence <= known else [e for e in read if e.sequence <= known]
                for event in events:
                    if event.type in FOLLOWED and self._entails(event):
                        self._reach(event.sequence - 1)
                        await self.follow(event)
                if events:
                    self._reach(events[-1].sequence)
                await self._save_now_and_then()
                self.failing = ""
            except CursorCompacted as gap:
                _log.error("follow-ups missed events", extra={"oldest_cursor": gap.metadata.get("oldest_cursor")})
                self.position = (await self._store.bounds()).oldest - 1
                continue
            except KernelError as error:
                self.failing = error.message
                await self._clock.sleep(0.5)
                continue
            if not events:
                await self._notifier.wait(self.position, 1.0)

    def _reach(self, sequence: int) -> None:
        self.position = self._memory.followed_to = sequence

    def _look_again(self) -> None:
        """Go back to where a change was made that came to nothing: it may have hidden what an event entails."""
        again, self._memory.look_again = self._memory.look_again, NEVER
        if again < self.position:
            self._reach(again)

    async def _save_now_and_then(self) -> None:
        """Store the cursor: seldom, because acting again is harmless, and a commit for every few events is not.

        Never beyond what was seen with a change that is in flight still.
        """
        position = min(self.position, self._memory.seen_for_sure)
        moved = position - self._saved
        if moved <= 0 or (moved < SAVE_EVERY and self._clock.monotonic() - self._saved_at < SAVE_AFTER):
            return

        def decide(view: View) -> None:
            old = cast("CursorRecord | None", view.find((Kind.CURSOR, CURSOR)))
            record = old or CursorRecord(namespace=CURSOR[0], id=CURSOR[1], sequence=0)
            view.put(record.evolve(sequence=position))

        await self._decisions.run(decide)
        self._saved = position
        self._saved_at = self._clock.monotonic()

    def _entails(self, event: Event) -> bool:
        """Whether an event of those that are followed entails something; most ends of tasks do not."""
        kind = event.type
        if kind not in TERMINAL_EVENTS or kind in CANCELLING:
            return True
        key, index = (event.namespace, event.task_id), self._index
        return bool(event.ancestors or key in index.dependents or key in index.children or key in index.mail_by_task)

    async def follow(self, event: Event) -> None:
        """Do what one event entails; harmless when repeated."""
        kind = event.type
        if kind in TERMINAL_EVENTS:
            await self._task_ended((event.namespace, event.task_id), event.ancestors)
        if kind in CANCELLING:
            await self._cancel_children((event.namespace, event.task_id), event.data.get("reason", ""))
            await self._parent_waits((event.namespace, event.task_id))
        elif kind is EventType.SESSION_ENDED:
            await self._session_ended((event.namespace, event.session_id), event.data.get("reason", ""))
        elif kind in AGENT_GONE:
            await self._agent_gone((event.namespace, event.agent_id))
        elif kind is EventType.MESSAGE_SENT and not event.agent_id and not event.task_id:
            await self._fan_out((event.namespace, event.data["message_id"]))

    # Tasks ----------------------------------------------------------------------------------------------------------

    async def _task_ended(self, key: Key, ancestors: tuple[str, ...]) -> None:
        if key in self._index.dependents:
            await self._each(self._index.dependents[key], lambda view, task: self._dependent(view, task, key))
        if key in self._index.children:
            await self._each(self._index.children[key], lambda view, task: self._orphan(view, task, key))
        if key in self._index.mail_by_task:
            await self._expire_mail(key)
        if ancestors:
            await self._parent_waits((key[0], ancestors[-1]))

    def _dependent(self, view: View, task: Task, key: Key) -> None:
        ended = view.task(*key)
        if key[1] not in task.waiting_on or not ended.terminal:
            return
        now = self._clock.now()
        # One that was canceled and waits for its children ends as canceled.
        failed = ended.state is not TaskState.SUCCEEDED and task.state is not TaskState.CANCEL_REQUESTED
        if failed and task.spec.dependency_policy is DependencyPolicy.FAIL:
            step = transitions.fail_dependency(task, key[1], now=now)
        else:
            step = transitions.release(task, key[1], now=now)
        view.put(step[0], *step[1])

    def _orphan(self, view: View, task: Task, parent_key: Key) -> None:
        parent = view.task(*parent_key)
        if parent.terminal and parent.spec.children_policy is ChildrenPolicy.CANCEL:
            self._cancel(view, task, f"parent {parent.id} has ended")

    async def _cancel_children(self, key: Key, reason: str) -> None:
        if key not in self._index.children:
            return
        parent = self._memory.task(key)
        if parent is not None and parent.spec.children_policy is ChildrenPolicy.CANCEL:
            text = f"parent {key[1]} was canceled: {reason}"
            await self._each(self._index.children[key], lambda view, task: self._cancel(view, task, text))

    def _cancel(self, view: View, task: Task, reason: str) -> None:
        waits = task.spec.children_policy is ChildrenPolicy.WAIT and task.key in self._index.children
        step = transitions.request_cancel(task, reason, now=self._clock.now(), wait=waits)
        if step[1]:
            view.put(step[0], *step[1])

    async def _parent_waits(self, key: Key) -> None:
        def decide(view: View) -> None:
            parent = cast("Task | None", view.find((Kind.TASK, key)))
            if parent is None or parent.state is not TaskState.CANCEL_REQUESTED or parent.lease is not None:
                return
            if not self._index.children.get(key):
                step = attempts.canceled(parent, parent.reason, now=self._clock.now())
                view.put(step[0], *step[1])

        await self._decisions.run(decide)

    async def _expire_mail(self, key: Key) -> None:
        def decide(view: View) -> None:
            for message_key in list(self._index.mail_by_task.get(key, {}))[:BATCH]:
                message = view.find_message(message_key)
                if message is not None and message.state is MessageState.QUEUED:
                    message_verbs.advance(view, message, MessageState.EXPIRED)

        await self._decisions.run(decide)

    # Sessions and agents --------------------------------------------------------------------------------------------

    async def _session_ended(self, key: Key, reason: str) -> None:
        if self._memory.session(key) is not None:
            return
        left = reason.startswith(LEFT)
        await self._each(
            self._index.leases_by_session.get(key, {}),
            lambda view, task: self._end_lease(view, task, key[1], left),
        )
        for agents in (self._index.agents_by_session, self._index.agents_by_runner):
            while batch := list(agents.get(key, {}))[:BATCH]:
                await self._decisions.run(partial(self._lose_agents, batch, key[1], left, reason))

    def _end_lease(self, view: View, task: Task, session_id: str, left: bool) -> None:
        if task.lease is None or task.lease.session_id != session_id:
            return
        now = self._clock.now()
        if left:
            step = attempts.give_back(task, "HANDED_BACK", now=now)
        else:
            step = attempts.lose(task, "LEASE_LOST", now=now, chance=self._chance(), progressed=progressed(view, task))
        view.put(step[0], *step[1])

    def _lose_agents(self, batch: Iterable[Key], session_id: str, left: bool, reason: str, view: View) -> None:
        now = self._clock.now()
        for key in batch:
            agent = view.find_agent(key)
            if agent is None or session_id not in (agent.session_id, agent.runner_session_id):
                continue
            if agent.state is AgentState.SLEEPING:
                view.put(agent_transitions.asleep(agent, now=now)[0].evolve(session_id="", runner_session_id=""))
                continue
            if agent.state in OVER or (left and agent.state in (AgentState.STARTING, AgentState.WAKING)):
                view.put(agent.evolve(session_id="", runner_session_id="", start_deadline=0.0))
                continue
            if left and agent.spec.driver != REMOTE and agent.state is not AgentState.DRAINING:
                step = agent_transitions.start_anew(agent, "its runner left", now=now, at=now)
            else:
                state = AgentState.STOPPED if left else AgentState.LOST
                step = agent_transitions.ended(agent, state, reason, now=now)
            view.put(step[0], *step[1])

    async def _agent_gone(self, key: Key) -> None:
        def end(view: View, task: Task) -> None:
            agent = view.find_agent(key)
            lease = task.lease
            if lease is None or lease.agent_id != key[1]:
                return
            if agent is not None and agent.session_id == lease.session_id and agent.state is AgentState.READY:
                return
            step = attempts.lose(
                task, "AGENT_GONE", now=self._clock.now(), chance=self._chance(), progressed=progressed(view, task)
            )
            view.put(step[0], *step[1])

        await self._each(self._index.leases_by_agent.get(key, {}), end)

    # Broadcasts -----------------------------------------------------------------------------------------------------

    async def _fan_out(self, key: Key) -> None:
        while self._memory.latest((Kind.BROADCAST, key)) is not None:
            await self._decisions.run(partial(self._fan_out_some, key))

    def _fan_out_some(self, key: Key, view: View) -> None:
        broadcast = cast("Broadcast | None", view.find((Kind.BROADCAST, key)))
        if broadcast is None:
            return
        agents = sorted(
            (agent for agent in self._memory.all(Agent) if self._meant(agent, broadcast)), key=lambda agent: agent.id
        )
        for agent in agents[:BATCH]:
            message_verbs.put_message(
                view,
                Message(
                    namespace=key[0],
                    id=f"{broadcast.id}/{agent.id}",
                    agent_id=agent.id,
                    sender_agent_id=broadcast.sender_agent_id,
                    payload=broadcast.payload,
                    urgency=broadcast.urgency,
                    create_time=broadcast.create_time,
                    expire_time=broadcast.expire_time,
                ),
            )
        if len(agents) <= BATCH:
            view.delete(broadcast)
        else:
            view.put(broadcast.evolve(done_until=agents[BATCH - 1].id))

    @staticmethod
    def _meant(agent: Agent, broadcast: Broadcast) -> bool:
        return (
            agent.namespace == broadcast.namespace
            and agent.state not in OVER
            and agent.id > broadcast.done_until
            and agent.id != broadcast.sender_agent_id
            and (not broadcast.role or agent.spec.role == broadcast.role)
        )

    # Many records ---------------------------------------------------------------------------------------------------

    async def _each(self, keys: Iterable[Key], act: Callable[[View, Task], None]) -> None:
        """Act on each of these tasks in bounded change sets; those that are gone or terminal are left out."""
        todo = list(keys)
        for start in range(0, len(todo), BATCH):
            await self._decisions.run(partial(_act, todo[start : start + BATCH], act))


def _act(batch: Sequence[Key], act: Callable[[View, Task], None], view: View) -> None:
    view.need((kind, key) for kind in (Kind.TASK, Kind.PROGRESS) for key in batch)
    for key in batch:
        task = cast("Task | None", view.find((Kind.TASK, key)))
        if task is not None and not task.terminal:
            act(view, task)


def progressed(view: View, task: Task) -> bool:
    """Whether the present attempt of a task has reported progress or a checkpoint."""
    progress = view.find_progress(task.key)
    return progress is not None and progress.attempt == task.attempt
