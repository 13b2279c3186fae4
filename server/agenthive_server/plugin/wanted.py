"""The wanted set: which plugins are to be on and with which settings, as records in the store.

What the settings file says is the first state of a plugin; a record, once there is one, takes its place, on every
replica. Whoever switches a plugin builds on all wishes as they are: the revision of one further record, the *turn*,
grows with each that is written, and tells every replica whether it knows them all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.decide import Caller, Decisions, View, recall, remember
from agenthive_server.kernel.errors import revision_mismatch
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.kernel.records import Kind, StateRecord
from agenthive_server.kernel.state import HOST, StateRows, StateVerbs

from .configuration import Raw

NAMESPACE = "default"
"""Where the facts about plugins are told."""


PREFIX = "wanted/"
TURN = "turn"
NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is wanted of one plugin. `failed` says why the server switched it off, until someone enables it again."""

    enabled: bool = False
    config: Raw = field(default_factory=dict)
    failed: str = ""
    closed: bool = False
    """Whether nothing may pass without it: known also when it is not installed any more."""
    revision: int = 0
    """Of its record; zero while there is none."""


class Overtaken(Exception):
    """Another wish was written meanwhile."""


@dataclass(frozen=True, slots=True)
class Written:
    """A wish as it is now. `turn` is the one in which it was written; None when that was in an earlier call."""

    wish: Wish
    turn: int | None


class WantedSet:
    """Reads and writes wishes. A change is durable, and told by its event, when it returns."""

    def __init__(self, decisions: Decisions, state: StateVerbs, clock: Clock) -> None:
        self._decisions = decisions
        self._state = state
        self._clock = clock

    async def turn(self) -> int:
        """Return the present turn: it is another when a wish was written."""
        found = await self._state.get(HOST, TURN)
        return found.revision if found is not None else 0

    async def load(self) -> tuple[int, dict[str, Wish]]:
        """Return the turn, and all wishes that were ever written by then, by name."""
        turn = await self.turn()
        found: dict[str, Wish] = {}
        after = ""
        while True:
            page = await self._state.scan(HOST, PREFIX, after=after, limit=500)
            for record in page:
                found[record.id.removeprefix(PREFIX)] = _wish(record.value, record.revision)
            if len(page) < 500:
                return turn, found
            after = page[-1].id

    async def write(
        self,
        caller: Caller,
        name: str,
        wish: Wish,
        kind: EventType,
        data: Mapping[str, Any] = NOTHING,
        *,
        turn: int,
        expected: int = 0,
    ) -> Written:
        """Write a wish and the fact that tells of it.

        Raises `Conflict` when `expected` is given and not the present revision, `Overtaken` when the turn is another.
        """
        key = PREFIX + name

        def decide(view: View) -> Written:
            old, last = _find(view, key), _find(view, TURN)
            revision = old.revision if old is not None else 0
            if recall(view, caller) is not None:
                return Written(_wish(old.value, revision) if old is not None else wish, None)
            if expected and expected != revision:
                raise revision_mismatch(expected, revision)
            if turn != (last.revision if last is not None else 0):
                raise Overtaken
            StateRows(view).write(HOST, key, _bytes(wish))
            StateRows(view).write(HOST, TURN, b"")
            written = cast(StateRecord, _find(view, key))
            facts = {"plugin": name, **data}
            if kind is EventType.PLUGIN_CONFIGURED:
                facts["revision"] = written.revision
            view.emit(Event(type=kind, namespace=NAMESPACE, data=facts))
            remember(view, caller, [name], self._clock.now())
            return Written(_wish(written.value, written.revision), turn + 1)

        return await self._decisions.run(decide)

    async def tell(self, events: Sequence[Event]) -> None:
        """Write facts about plugins that change no wish."""
        await self._decisions.run(lambda view: view.emit(*events))


def _find(view: View, key: str) -> StateRecord | None:
    return cast("StateRecord | None", view.find((Kind.STATE, (HOST, key))))


def _bytes(wish: Wish) -> bytes:
    plain = {"enabled": wish.enabled, "config": dict(wish.config), "failed": wish.failed, "closed": wish.closed}
    return json.dumps(plain, ensure_ascii=False).encode()


def _wish(value: bytes, revision: int) -> Wish:
    plain = json.loads(value)
    return Wish(
        enabled=bool(plain["enabled"]),
        config=plain["config"],
        failed=str(plain["failed"]),
        closed=bool(plain.get("closed")),
        revision=revision,
    )
