"""Opening a session: a worker says hello, brings its agents along or back, and learns which of its leases are valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import agent_transitions, attempts
from .agents import REMOTE, Agent, AgentSpec, AgentState, Wanted
from .clock import Clock
from .contact import Contacts
from .decide import Decisions, View
from .errors import NotFound, SessionFenced, agent_not_found
from .events import Event, EventType
from .hooks import Asked, Hooks, joining, spawned_as
from .index import Index
from .limits import Limits
from .owed import Owed
from .ports import Chance, NewId
from .proposals import Joining
from .records import Key, Kind
from .session_items import Hello, HostedAgent, LeaseRef, Link, Stop, Welcome
from .sessions import Session, SessionState

AGENTS_AT_ONCE = 200
LEASES_AT_ONCE = 200


def session_event(kind: EventType, session: Session, **data: object) -> Event:
    """Return a fact about a session."""
    return Event(type=kind, namespace=session.namespace, session_id=session.id, labels=session.labels, data=dict(data))


@dataclass(frozen=True, slots=True)
class Guest:
    """A worker at the door: where it wants in, who it is as far as the call says, and what it says of itself."""

    namespace: str
    principal: str
    hello: Hello
    peer: str
    notes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Opened:
    session: Session
    fenced: list[Key]
    """The sessions that lose agents by it."""
    credential: str


class SessionOpening:
    """Opens sessions, fences the older ones of the same agents, and tells the new one what it is owed."""

    def __init__(
        self,
        decisions: Decisions,
        index: Index,
        contacts: Contacts,
        owed: Owed,
        clock: Clock,
        new_id: NewId,
        chance: Chance,
        limits: Limits,
        hooks: Hooks,
        replica: str,
    ) -> None:
        self._hooks = hooks
        self._replica = replica
        self._decisions = decisions
        self._memory = decisions.memory
        self._index = index
        self._contacts = contacts
        self._owed = owed
        self._clock = clock
        self._new_id = new_id
        self._chance = chance
        self._limits = limits

    async def may_replace(self, guest: Guest) -> bool:
        """Whether a worker may end the session it says was its own; raises what the hooks refuse it with."""

        def decide(view: View) -> bool:
            hooks = self._hooks.current.before_join
            old = view.find_session((guest.namespace, guest.hello.replaces))
            if not hooks or old is None:
                return True
            return old.principal in ("", self._joining(hooks, view, guest, asking=True).principal)

        return await self._decisions.run(decide)

    async def open(self, guest: Guest, link: Link) -> Welcome:
        """Open or resume as `SessionVerbs.connect` says."""
        hello = guest.hello
        session_id = hello.session_id or self._new_id()
        with self._contacts.expecting((guest.namespace, session_id)):
            opened = await self._record(guest, session_id)
            session = opened.session
            # What others did to its leases and agents is known from here on.
            await self._decisions.fresh()
            await self._missing(session, {agent.agent_id for agent in hello.agents})
            await self._displace(session, hello.agents)
            old = self._contacts.get(session.key)
            if old is not None:
                old.link.fence(SessionFenced("the session was taken over by a newer stream"))
            self._contacts.add(session.key, session.epoch, link)
            for key in opened.fenced:
                self.fence(key)
            valid = self._valid(session, hello.leases)
            self._stop_strays(session, hello.agents, link)
            self._owed.deliver(session, link, {lease.task_id for lease in valid})
        return Welcome(
            session_id=session.id,
            epoch=session.epoch,
            resumed=bool(hello.session_id),
            valid_leases=tuple(valid),
            heartbeat_interval=self._limits.heartbeat_interval,
            reconnect_grace=self._limits.reconnect_grace,
            accept_timeout=self._limits.accept_timeout,
            principal=session.principal,
            credential=opened.credential,
        )

    async def _record(self, guest: Guest, session_id: str) -> _Opened:
        """Write the session and bring its agents in, if the hooks let it."""
        agents = guest.hello.agents
        first, rest = agents[:AGENTS_AT_ONCE], agents[AGENTS_AT_ONCE:]

        def decide(view: View) -> _Opened:
            hooks, principal, credential = self._hooks.current.before_join, guest.principal, ""
            if hooks:
                joined = self._joining(hooks, view, guest)
                principal, credential = joined.principal, joined.issued
            session = self._opened(view, guest, session_id, principal, checked=bool(hooks))
            return _Opened(session, self._adopt(session, first, view), credential)

        opened = await self._decisions.run(decide)
        for start in range(0, len(rest), AGENTS_AT_ONCE):
            batch = rest[start : start + AGENTS_AT_ONCE]
            opened.fenced.extend(await self._decisions.run(partial(self._adopt, opened.session, batch)))
        return opened

    def _joining(self, hooks: Asked[Joining], view: View, guest: Guest, *, asking: bool = False) -> Joining:
        return joining(
            hooks,
            view,
            guest.namespace,
            guest.principal,
            guest.hello,
            self._clock.now(),
            peer=guest.peer,
            notes=guest.notes,
            asking=asking,
        )

    def _opened(self, view: View, guest: Guest, session_id: str, principal: str, *, checked: bool) -> Session:
        hello = guest.hello
        if hello.session_id:
            return self._resumed(view, guest, principal, checked=checked)
        session = Session(
            namespace=guest.namespace,
            id=session_id,
            runner=hello.runner,
            labels=dict(hello.labels),
            software=hello.software,
            display_name=hello.display_name,
            principal=principal,
            open_time=self._clock.now(),
            replica=self._replica,
        )
        fact = session_event(
            EventType.SESSION_OPENED,
            session,
            agent_count=len(hello.agents),
            runner=hello.runner is not None,
            software=hello.software,
        )
        return view.put(session, fact)

    def _resumed(self, view: View, guest: Guest, principal: str, *, checked: bool) -> Session:
        """Take a session up again; that of somebody else looks like one that is over."""
        hello = guest.hello
        old = view.find_session((guest.namespace, hello.session_id))
        if old is None or (checked and old.principal not in ("", principal)):
            raise NotFound("no such session, or it has ended", reason="SESSION_NOT_FOUND")
        session = old.evolve(
            state=SessionState.OPEN,
            epoch=old.epoch + 1,
            suspect_time=0.0,
            draining=False,
            runner=hello.runner,
            principal=principal,
            replica=self._replica,
        )
        return view.put(session, session_event(EventType.SESSION_RESUMED, session, session_epoch=session.epoch))

    def _adopt(self, session: Session, hosted: Sequence[HostedAgent], view: View) -> list[Key]:
        """Bring agents into a session; returns the sessions that are fenced by it."""
        fenced: list[Key] = []
        now = self._clock.now()
        for entry in hosted:
            agent = view.find_agent((session.namespace, entry.agent_id))
            if agent is None:
                if entry.spec is None:
                    if session.runner is not None:
                        continue
                    raise agent_not_found(entry.agent_id)
                spec = self._introduced(view, session, entry, entry.spec, now)
                agent, facts = agent_transitions.spawn(
                    session.namespace, entry.agent_id, spec, now=now, floor=view.epoch_floor
                )
                agent = view.put(agent, *facts)
            elif entry.spec is not None and agent.spec.driver == REMOTE and entry.spec != agent.spec:
                agent = self._changed(view, session, entry, agent, now)
            if agent.session_id not in ("", session.id):
                fenced.append((session.namespace, agent.session_id))
            if agent.wanted is Wanted.STOPPED and agent.state is AgentState.STOPPED:
                continue
            if agent.spec.driver != REMOTE and agent.runner_session_id != session.id:
                continue
            there, facts = agent_transitions.ready(agent, session.id, now=now)
            if there is not agent:
                view.put(there, *facts)
        return fenced

    def _introduced(
        self, view: View, session: Session, entry: HostedAgent, spec: AgentSpec, now: float, *, known: bool = False
    ) -> AgentSpec:
        before = self._hooks.current.before_spawn
        if not before:
            return spec
        principal = session.principal
        return spawned_as(before, view, session.namespace, principal, entry.agent_id, spec, now, known=known)

    def _changed(self, view: View, session: Session, entry: HostedAgent, agent: Agent, now: float) -> Agent:
        """Take over another specification of an agent that is known, as the hooks amend it each time."""
        spec = self._introduced(view, session, entry, entry.spec or agent.spec, now, known=True)
        if spec == agent.spec:
            return agent
        changed, facts = agent_transitions.update(agent, spec, now=now)
        return view.put(changed, *facts)

    def _stop_strays(self, session: Session, hosted: Sequence[HostedAgent], link: Link) -> None:
        """Let a runner that comes back stop what was given to others meanwhile, or is known to nobody any more."""
        for entry in hosted if session.runner is not None else ():
            agent = self._memory.agent((session.namespace, entry.agent_id))
            if agent is None or session.id not in (agent.session_id, agent.runner_session_id):
                link.deliver(Stop(entry.agent_id, 0.0, sleep=False, reason="it is not this runner's any more"))

    async def _missing(self, session: Session, there: set[str]) -> None:
        """Note the agents of a resumed session that its worker does not host any more."""
        gone = [key for key in self._index.agents_by_session.get(session.key, {}) if key[1] not in there]
        for start in range(0, len(gone), AGENTS_AT_ONCE):
            await self._decisions.run(partial(self._lose_some, session, gone[start : start + AGENTS_AT_ONCE]))

    def _lose_some(self, session: Session, keys: Sequence[Key], view: View) -> None:
        for key in keys:
            agent = view.find_agent(key)
            if agent is None or agent.session_id != session.id:
                continue
            # One that is being woken has no process yet: its runner is told again.
            if agent.state is not AgentState.WAKING or session.runner is None:
                reason = "its worker came back without it"
                step = agent_transitions.ended(agent, AgentState.LOST, reason, now=self._clock.now())
                view.put(step[0], *step[1])

    async def _displace(self, session: Session, hosted: Sequence[HostedAgent]) -> None:
        """End the leases the agents of this session hold through other ones."""
        keys = [
            key
            for entry in hosted
            for key in self._index.leases_by_agent.get((session.namespace, entry.agent_id), {})
            if key not in self._index.leases_by_session.get(session.key, {})
        ]
        for start in range(0, len(keys), LEASES_AT_ONCE):
            await self._decisions.run(partial(self._displace_some, session, keys[start : start + LEASES_AT_ONCE]))

    def _displace_some(self, session: Session, keys: Sequence[Key], view: View) -> None:
        view.need((Kind.PROGRESS, key) for key in keys)
        for key in keys:
            task = view.task(*key)
            lease = task.lease
            agent = view.find_agent((task.namespace, lease.agent_id)) if lease else None
            if lease is None or agent is None or agent.session_id != session.id or lease.session_id == session.id:
                continue
            progress = view.find_progress(key)
            step = attempts.lose(
                task,
                "LEASE_LOST",
                now=self._clock.now(),
                chance=self._chance(),
                progressed=progress is not None and progress.attempt == task.attempt,
            )
            view.put(step[0], *step[1])

    def fence(self, key: Key) -> None:
        """End the stream of a session whose agents are all hosted by others now, if it is here."""
        contact = self._contacts.get(key)
        if contact is not None and not self._index.agents_by_session.get(key):
            contact.link.fence(SessionFenced("a newer session hosts the agents of this one"))

    def _valid(self, session: Session, leases: Sequence[LeaseRef]) -> list[LeaseRef]:
        valid: list[LeaseRef] = []
        for lease in leases:
            task = self._memory.task((session.namespace, lease.task_id))
            held = task.lease if task else None
            if held is not None and held.epoch == lease.epoch and held.session_id == session.id:
                valid.append(lease)
        return valid
