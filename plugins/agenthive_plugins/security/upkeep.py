"""What goes on beside the calls: changes made elsewhere are taken over, what is over is removed, health is told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Final

from agenthive_server.plugin.api import Agent, Bell, Call, Clock, Event, KernelError, NotFound, State, Status, Verbs

from .audit import Trail
from .authentication import JTIS, revoked
from .bindings import BINDINGS, GENERATION, THREATS, Bindings, generation
from .callers import TOKENS, Book, Caller
from .config import SecurityConfig
from .gate import Gate
from .incidents import Incidents
from .issuing import Issuing
from .joins import NOTE, Entry
from .jwks import KeySource
from .ownership import owner_key, read_owner_of
from .records import Unreadable
from .requests import PREFIX as REQUESTS
from .requests import is_over
from .trail import Reader

DAY: Final = 86_400.0
EVERY: Final = 0.5
"""Seconds after which every replica looks for changes nobody told it of: it knows them all within one second."""

USES_EVERY: Final = 300.0
CLEAN_EVERY: Final = 3_600.0
KEEP_THREATS: Final = 90 * DAY
_BATCH: Final = 500

Report = Callable[[Status, str], None]


class Watch:
    """Runs on every replica: when it hears of a change, and twice a second."""

    def __init__(
        self,
        state: State,
        clock: Clock,
        book: Book,
        bindings: Bindings,
        issuing: Issuing,
        gate: Gate,
        incidents: Incidents,
        trail: Trail,
        report: Report,
        bell: Bell,
        open_calls: Callable[[], Collection[Call]],
        *,
        keys: KeySource | None = None,
        measured: Callable[[], None] = lambda: None,
    ) -> None:
        self.remark = ""
        """Something about the trail that stays to be said."""
        self._state = state
        self._clock = clock
        self._book = book
        self._bindings = bindings
        self._issuing = issuing
        self._gate = gate
        self._incidents = incidents
        self._bell = bell
        self._open_calls = open_calls
        self._trail = trail
        self._report = report
        self._keys = keys
        self._measured = measured
        self._generation: int | None = None
        self._uses_noted = clock.now()
        self._said: tuple[Status, str] | None = None

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self._bell.wait(EVERY)
            await self.once()

    def tell(self) -> None:
        """Tell health how things are."""
        self._say(*self._health())

    async def once(self) -> None:
        """Take over what changed elsewhere; record joins; tell how things are."""
        self._gate.record_joins()
        self._measured()
        try:
            await self.refresh()
            now = self._clock.now()
            if now - self._uses_noted >= USES_EVERY:
                since, self._uses_noted = self._uses_noted, now
                await self._issuing.note_uses(since)
        except KernelError as error:
            self._say(Status.DEGRADED, f"the state cannot be read: {error.message}")
            return
        self.tell()

    async def refresh(self) -> None:
        """Know what was changed, here or on another replica, since the last time; end what is open and may not be."""
        stored = await self._state.get(GENERATION)
        number, latest = generation(stored.value if stored is not None else None)
        if number == self._generation:
            return
        missed = number - self._generation if self._generation is not None else -1
        if 0 < missed <= len(latest):
            await self._take(set(latest[:missed]))
        else:
            await self._load()
        self._generation = number
        self._end_revoked()

    def _end_revoked(self) -> None:
        """End the streams, sessions and long waits whose token was revoked."""
        for call in list(self._open_calls()):
            who = call.notes.get(NOTE)
            if isinstance(who, Caller | Entry) and self._book.revoked(who.token_id):
                call.end(revoked(who.token_id))

    async def _take(self, changed: set[str]) -> None:
        known = {BINDINGS: self._bindings.load, THREATS: self._incidents.load}
        for what in changed:
            if what.startswith(TOKENS):
                await self._book.refresh(what, self._clock.now())
            else:
                await known.get(what, self._load)()

    async def _load(self) -> None:
        await self._bindings.load()
        await self._book.load(self._clock.now())
        await self._incidents.load()

    def _health(self) -> tuple[Status, str]:
        if self._trail.failing:
            status = Status.DOWN if self._trail.full else Status.DEGRADED
            return status, f"the audit trail cannot be written: {self._trail.failing}"
        if self._keys is not None and self._keys.failing:
            return Status.DEGRADED, self._keys.failing
        return (Status.DEGRADED, self.remark) if self.remark else (Status.OK, "")

    def _say(self, status: Status, text: str) -> None:
        if (status, text) != self._said:
            self._said = (status, text)
            self._report(status, text)


class Housekeeping:
    """Runs on one replica, once an hour."""

    def __init__(
        self,
        state: State,
        clock: Clock,
        issuing: Issuing,
        incidents: Incidents,
        reader: Reader,
        config: SecurityConfig,
        log: logging.Logger,
    ) -> None:
        self._state = state
        self._clock = clock
        self._issuing = issuing
        self._incidents = incidents
        self._reader = reader
        self._config = config
        self._log = log

    async def run(self) -> None:
        """Clean up until cancelled."""
        while True:
            await self.once()
            await self._clock.sleep(CLEAN_EVERY)

    async def once(self) -> None:
        """Remove what is over: tokens, memories of calls, used ids of JWTs, resolved threats, old records."""
        now = self._clock.now()
        await self._issuing.clean(self._config.tokens.keep_ended_days * DAY)
        await self._incidents.clean(KEEP_THREATS)
        await self._remove(REQUESTS, lambda raw: is_over(raw, now))
        await self._remove(JTIS, lambda raw: float(raw) < now)
        audit = self._config.audit
        before = int((now - audit.retention_days * DAY) * 1_000)
        try:
            removed = await self._reader.remove(int(now * 1_000), before=before, most_bytes=audit.maximum_bytes)
            rows = await self._reader.rows()
        except Unreadable as error:
            self._log.error("the audit trail is damaged: %s", error)
            return
        if removed:
            self._log.info("removed %d blocks of the audit trail", removed)
        for row in rows:
            # Whoever keeps the log keeps an anchor of the trail outside of the store.
            self._log.info("audit trail: chain %s ends with record %d, %s", row.chain, row.head.sequence, row.head.hash)

    async def _remove(self, prefix: str, over: Callable[[bytes], bool]) -> None:
        after = ""
        while page := await self._state.scan(prefix, after=after, limit=_BATCH):
            gone = [stored.key for stored in page if over(stored.value)]
            if gone:
                await self._state.delete_many(gone)
            after = page[-1].key


class Departures:
    """Ends the credential of an agent that was stopped for good."""

    def __init__(self, state: State, verbs: Verbs, issuing: Issuing) -> None:
        self._state = state
        self._verbs = verbs
        self._issuing = issuing

    async def agent_stopped(self, event: Event) -> None:
        """Revoke what the agent's worker shows, unless the agent is to come back. Harmless when repeated."""
        key = owner_key(event.namespace, event.agent_id)
        stored = await self._state.get(key)
        if stored is None or await self._comes_back(event):
            return
        owner = read_owner_of(stored.value)
        await self._state.delete(key)
        if owner.token_id and await self._last_one(owner.token_id, event.namespace):
            try:
                await self._issuing.revoke(owner.token_id, departed=True)
            except NotFound:
                return

    async def _comes_back(self, event: Event) -> bool:
        try:
            agent: Agent = await self._verbs.get_agent(event.agent_id, namespace=event.namespace)
        except NotFound:
            return False
        return agent.wanted != "STOPPED" or agent.state != "STOPPED"

    async def _last_one(self, token_id: str, namespace: str) -> bool:
        """Whether no other agent is the credential's: it is valid as long as any of them."""
        after, prefix = "", owner_key(namespace, "")
        while page := await self._state.scan(prefix, after=after):
            if any(read_owner_of(stored.value).token_id == token_id for stored in page):
                return False
            after = page[-1].key
        return True
